"""What every masker offers: a picture and what to look for in; a mask of the picture's size out."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, TypeVar

import torch
from PIL import Image
from pydantic import Field, ValidationError
from scipy import ndimage

from diffstyler.checks import in_our_words
from diffstyler.errors import DiffstylerError

if TYPE_CHECKING:
    from diffstyler.backbones import Backbone

Share = Annotated[float, Field(ge=0, le=1, strict=True)]


class NothingFoundError(DiffstylerError):
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

    def find_objects(self, picture: Image.Image, phrase: str) -> list[torch.Tensor]:
        """The masks of the single things that ``phrase`` names, at least one, the surest first.

        For a masker without objects, the connected parts of :meth:`find_text`'s mask, the largest first.

        Raises:
            NothingFoundError: nothing in the picture matches.
        """
        parts, count = ndimage.label(self.find_text(picture, phrase).numpy() >= 0.5)  # type: ignore[misc]
        masks = [torch.from_numpy(parts == part).float() for part in range(1, count + 1)]
        return sorted(masks, key=lambda mask: -mask.sum())

    def find_points(
        self, picture: Image.Image, positive: list[tuple[float, float]], negative: list[tuple[float, float]]
    ) -> torch.Tensor:
        """The mask of what lies under the ``positive`` points and not under the ``negative`` ones, (x, y) in pixels.

        For a masker without objects, the region around the points, by color and edges.

        Raises:
            NothingFoundError: nothing lies there.
        """
        from diffstyler.masking.region import grow_region  # OpenCV

        return grow_region(picture, positive, negative)

    def find_box(self, picture: Image.Image, box: tuple[float, float, float, float]) -> torch.Tensor:
        """The mask of what the box (x0, y0, x1, y1), in pixels, holds: the box itself, for a masker without objects.

        Raises:
            NothingFoundError: nothing lies there.
        """
        x0, y0, x1, y1 = (round(value) for value in box)
        mask = torch.zeros(picture.height, picture.width)
        mask[y0:y1, x0:x1] = 1
        return mask


Kind = TypeVar("Kind", bound=Masker)


def checked_options(kind: type[Kind]) -> type[Kind]:
    """For a masker that is a pydantic dataclass, so that its fields are its options, checked by their types.

    Its constructor's DiffstylerError names each wrong option as ``masker.<name>``, what was expected and what came.
    """
    construct = kind.__init__

    @functools.wraps(construct)
    def init(self: Kind, *args: object, **options: object) -> None:
        try:
            construct(self, *args, **options)
        except ValidationError as error:
            problems = [(".".join(map(str, e["loc"])), e) for e in error.errors(include_url=False)]
            texts = [f"{f'masker.{name}: ' if name else ''}{in_our_words(e, kind)}" for name, e in problems]
            raise DiffstylerError("\n".join(texts)) from error

    kind.__init__ = init
    return kind
