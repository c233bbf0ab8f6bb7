"""What every figure is made of: a picture, its content and styles in; named numbers out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from PIL import Image
from torch.nn import functional

from diffstyler.errors import DiffstylerError
from diffstyler.images import fit_size, to_tensor

#: what `diffstyler test` writes into a folder of pictures, and what its report reads
FIGURES_NAME = "figures.jsonl"
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


class NotComputedError(DiffstylerError):
    """A figure that needs a file or a package that is not there; the text says which one."""


@dataclass(frozen=True, eq=False)
class Styled:
    """A part of a picture and what it was to become.

    ``style``: the style picture, None where only a LoRA is known. ``mask`` (H, W) in [0, 1] at the content's size: the
    share of each pixel that shows this style; None = everywhere.
    """

    style: Image.Image | None
    mask: torch.Tensor | None = None
    prompt: str = ""


@dataclass(frozen=True, eq=False)
class Sample:
    """A stylized picture beside its content, both of one size, and its styled parts.

    ``resolution``: the short side that pictures are compared at. ``key``: what tells the result from one of other
    settings.
    """

    id: str
    content_image: Image.Image
    result_image: Image.Image
    regions: tuple[Styled, ...]
    resolution: int = 256
    key: str = ""

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) that content and result are compared at."""
        return fit_size(self.content_image.size, self.resolution, 8)

    @cached_property
    def content(self) -> torch.Tensor:
        """(3, h, w) in [-1, 1]."""
        return to_tensor(self.content_image, self.size)

    @cached_property
    def result(self) -> torch.Tensor:
        """(3, h, w) in [-1, 1]."""
        return to_tensor(self.result_image, self.size)

    @cached_property
    def parts(self) -> list[Part]:
        """The regions whose style picture is known and whose mask covers something."""
        parts = []
        for region in self.regions:
            if region.style is None:
                continue
            style = to_tensor(region.style, fit_size(region.style.size, self.resolution, 8))
            mask = None
            if region.mask is not None:
                mask = functional.adaptive_avg_pool2d(region.mask[None], self.size)[0] > 0.5
                if not mask.any():
                    continue
            parts.append(Part(self.content, self.result, style, mask, region.prompt))
        return parts


@dataclass(frozen=True, eq=False)
class Part:
    """What one style made: content and result (3, h, w) and style (3, h', w') in [-1, 1], mask (h, w) bool."""

    content: torch.Tensor
    result: torch.Tensor
    style: torch.Tensor
    mask: torch.Tensor | None
    prompt: str

    @cached_property
    def crop(self) -> torch.Tensor:
        """The result in the bounding box of its mask, for networks that want a rectangle; at least 32 pixels a side."""
        if self.mask is None:
            return self.result
        spans = []
        for side, hits in zip(self.mask.shape, (self.mask.any(1), self.mask.any(0)), strict=True):
            inside = hits.nonzero().flatten()
            start, stop = int(inside[0]), int(inside[-1]) + 1
            missing = max(0, min(32, side) - (stop - start))
            start = max(0, min(start - missing // 2, side - (stop - start) - missing))
            spans.append(slice(start, max(stop, start + min(32, side))))
        return self.result[:, spans[0], spans[1]]


class Metric(ABC):
    """Figures of single pictures."""

    #: their names, and whether more is better
    figures: ClassVar[Mapping[str, bool]]

    @abstractmethod
    def __call__(self, sample: Sample) -> dict[str, float]:
        """Figures by name; those that a picture has no answer to are left out."""


class SetMetric(ABC):
    """Figures of all pictures together."""

    figures: ClassVar[Mapping[str, bool]]
    #: said beside the figures, such as how features were made
    mode: str = ""

    @abstractmethod
    def add(self, sample: Sample, figures: Mapping[str, float]) -> None:
        """One more picture, and its own figures."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Of what was added; empty where that is too little."""


def luminance(pixels: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in [-1, 1] -> (1, 1, H, W) in [0, 1]."""
    return ((pixels.float() / 2 + 0.5) * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(0)[None, None]


def mean_over(parts: Iterable[Part], measure: Callable[[Part], float | None]) -> float | None:
    """Of a figure, over the parts of a picture that have it; None where none does."""
    values = [value for part in parts if (value := measure(part)) is not None]
    return sum(values) / len(values) if values else None


def named(name: str, value: float | None) -> dict[str, float]:
    return {} if value is None else {name: value}
