"""What every masker offers: a picture and what to look for in; a mask of the picture's size out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from PIL import Image

if TYPE_CHECKING:
    from diffstyler.backbones import Backbone


class NothingFoundError(ValueError):
    """The picture does not show what the prompt asks for; the text says how near it came."""


class Masker(ABC):
    """Finds what words, points and boxes mean in a picture.

    All masks are (H, W) float32 on the CPU, 1 = in, 0 = out, of the upright picture's size.
    """

    def setup(self, backbone: Backbone) -> None:  # noqa: B027
        """Called once before the first picture, with the loaded base model."""

    @property
    @abstractmethod
    def settings(self) -> dict:
        """All that determines a mask besides the picture and the prompt, as plain JSON values, for provenance."""

    @abstractmethod
    def find_text(self, picture: Image.Image, phrase: str) -> torch.Tensor:
        """The mask of what ``phrase`` names.

        Raises:
            NothingFoundError: nothing in the picture matches.
        """

    @abstractmethod
    def find_points(
        self, picture: Image.Image, positive: list[tuple[float, float]], negative: list[tuple[float, float]]
    ) -> torch.Tensor:
        """The mask of what lies under the ``positive`` points and not under the ``negative`` ones, (x, y) in pixels.

        Raises:
            NothingFoundError: nothing lies there.
        """

    def find_box(self, picture: Image.Image, box: tuple[float, float, float, float]) -> torch.Tensor:
        """The mask of what the box (x0, y0, x1, y1), in pixels, holds: the box itself, for a masker without objects.

        Raises:
            NothingFoundError: nothing lies there.
        """
        x0, y0, x1, y1 = (round(value) for value in box)
        mask = torch.zeros(picture.height, picture.width)
        mask[y0:y1, x0:x1] = 1
        return mask
