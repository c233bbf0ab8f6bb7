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
    from diffstyler.adapters import LoRALibrary, export_lora
    from diffstyler.api import add_lora, fit, fit_all, masks, stylize, stylize_row
    from diffstyler.backbones import StableDiffusion
    from diffstyler.fit.data import FitData
    from diffstyler.fit.finetuner import LoRAFinetuner
    from diffstyler.manifests.pictures import read_manifest
    from diffstyler.predict.data import PredictData
    from diffstyler.predict.stylizer import Stylizer

__all__ = [
    "FitData",
    "LoRAFinetuner",
    "LoRALibrary",
    "PredictData",
    "StableDiffusion",
    "Stylizer",
    "add_lora",
    "export_lora",
    "fit",
    "fit_all",
    "masks",
    "read_manifest",
    "stylize",
    "stylize_row",
]

_HOMES = {
    **dict.fromkeys(("add_lora", "fit", "fit_all", "masks", "stylize", "stylize_row"), "api"),
    "read_manifest": "manifests.pictures",
    "LoRALibrary": "adapters",
    "export_lora": "adapters",
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
    home = f"diffstyler.{_HOMES[name]}"
    if home not in sys.modules:
        with quiet():
            importlib.import_module(home)
    return getattr(importlib.import_module(home), name)
