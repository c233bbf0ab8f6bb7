"""The content's and the style's noise -> where the denoising starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffstyler.diffusion.fusion import blend, shares
from diffstyler.errors import DiffstylerError


class InitialLatents(ABC):
    """Where the denoising starts."""

    #: the style picture's own inversion is needed
    needs_style: bool = False

    @abstractmethod
    def __call__(self, content: torch.Tensor, style: torch.Tensor | None, seed: int) -> torch.Tensor:
        """z_T of the content (C, h, w), of the style (C, h', w') or None, and the row's seed -> x_T (C, h, w)."""


@dataclass(frozen=True)
class FromContent(InitialLatents):
    """x_T = √(1−n) z_T^c + √n ε: the content's layout, with a share n of fresh noise drawn by the row's seed.

    Args:
        noise: n, 0 … 1; 0 = no noise, every seed gives the same picture.
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise DiffstylerError(f"initial.noise: expected a share in 0 … 1, got {self.noise}")

    def __call__(self, content: torch.Tensor, style: torch.Tensor | None, seed: int) -> torch.Tensor:
        if self.noise == 0:
            return content
        fresh = torch.randn(content.shape, generator=torch.Generator().manual_seed(seed)).to(content)
        return (1 - self.noise) ** 0.5 * content + self.noise**0.5 * fresh


@dataclass(frozen=True)
class FromContentAdaIN(InitialLatents):
    """The content's z_T with each channel's mean and deviation of the style's (Huang and Belongie 2017, eq. 8)."""

    needs_style = True

    def __call__(self, content: torch.Tensor, style: torch.Tensor | None, seed: int) -> torch.Tensor:
        assert style is not None
        mean, std = content.mean((1, 2), keepdim=True), content.std((1, 2), keepdim=True)
        return (content - mean) / std * style.std((1, 2), keepdim=True) + style.mean((1, 2), keepdim=True)


@dataclass(frozen=True)
class FromStyle(InitialLatents):
    """x_T = z_T^s: the style's own noise; the content comes in by injection alone.

    Cells that a smaller style picture does not have are those of its other side: noise stays noise.
    """

    needs_style = True

    def __call__(self, content: torch.Tensor, style: torch.Tensor | None, seed: int) -> torch.Tensor:
        assert style is not None
        rows, columns = (torch.arange(side, device=style.device) for side in content.shape[1:])
        return style[:, rows % style.shape[1]][:, :, columns % style.shape[2]]


def initial_latents(
    content: torch.Tensor, starts: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """x_T of the whole picture (C, h, w): each region's own start where its mask is, the content's z_T elsewhere."""
    return blend(starts, shares(masks), content)
