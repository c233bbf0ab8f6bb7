"""Localized image style transfer with diffusion models: fit LoRAs, stylize regions, by the thousand.

The names below are loaded on first use, so that ``import diffstyler`` is free.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from diffstyler.chatter import quiet
from diffstyler.moved import MovedModules

if TYPE_CHECKING:
    from diffstyler.api import fit, masks, stylize
    from diffstyler.backbones import StableDiffusion
    from diffstyler.fit.data import FitData
    from diffstyler.fit.finetuner import LoRAFinetuner
    from diffstyler.predict.data import PredictData
    from diffstyler.predict.stylizer import Stylizer

__all__ = ["FitData", "LoRAFinetuner", "PredictData", "StableDiffusion", "Stylizer", "fit", "masks", "stylize"]

_HOMES = {
    "fit": "api",
    "masks": "api",
    "stylize": "api",
    "StableDiffusion": "backbones",
    "FitData": "fit.data",
    "PredictData": "predict.data",
    "LoRAFinetuner": "fit.finetuner",
    "Stylizer": "predict.stylizer",
}

sys.meta_path.append(MovedModules())


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffstyler' has no attribute '{name}'")
    with quiet():
        return getattr(importlib.import_module(f"diffstyler.{_HOMES[name]}"), name)
