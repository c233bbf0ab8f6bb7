"""The picture that a step is on its way to, and the style picture -> the same with patches like the style's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diffstyler.diffusion.denoiser import one_thread
from diffstyler.errors import DiffstylerError
from diffstyler.types import Step

#: cells of a part below which it has no distribution worth matching
FEWEST_CELLS = 16
#: of a distribution
QUANTILES = 128
#: of the style's deviation: values that lie nearer to each other count as hardly different
FLAT = 0.02


@dataclass(frozen=True, eq=False)
class Part:
    """Latents (C, h, w), and which of their h · w cells count: (n,) int64, None = all."""

    latents: Tensor
    cells: Tensor | None = None

    @property
    def is_tiny(self) -> bool:
        """Too small to have a distribution."""
        count = self.latents[0].numel() if self.cells is None else len(self.cells)
        return count < FEWEST_CELLS


class StyleMatching(ABC):
    """What brings the predicted x_0 of a styled region nearer to its style picture at each step."""

    #: the style picture's latents are needed
    needs_style: bool = True

    @abstractmethod
    def __call__(self, step: Step, clean: Part, style: Part, strength: float, content: Tensor) -> Tensor:
        """x̂_0 -> x̂_0 (C, h, w).

        Args:
            step: from t to t'.
            clean: x̂_0, predicted at t, and the region's cells.
            style: E(style picture) and the cells that are of the style; its size may differ.
            strength: of the style, 0 … 2: 0 = as it was.
            content: E(content), (C, h, w).
        """


@dataclass(frozen=True)
class NoMatching(StyleMatching):
    """x̂_0 as it is predicted: the style comes by its LoRA, the starting latents and the prompt alone (the method)."""

    needs_style = False

    def __call__(self, step: Step, clean: Part, style: Part, strength: float, content: Tensor) -> Tensor:
        return clean.latents


@dataclass(frozen=True)
class PatchTransport(StyleMatching):
    """Latent patches of x̂_0 get the distribution of the style's, by one iteration of a sliced transport a step.

    In a rotated basis of patch space, another one at each step, the values of every axis are moved, in their order, to
    the quantiles of the style's; the moves are turned back, and overlapping patches average them (Pitié et al. 2007,
    on patches as Rabin et al. 2011). What lies beside what stays; the denoiser, under the style's LoRA, makes a picture
    of it at the next step. Since only the order of values counts, x̂_0 is brought back to the content before: its
    structure holds, and its colors do not come with it.

    Args:
        rate: how far, 0 … 1; times the style's strength where that is less than 1.
        patch: side of the patches, in latent cells; odd.
        content_weight: how far x̂_0 is brought back to the content's latents first, times t / T and how far the
            patches then go; 0 … 1.
    """

    rate: float = 1.0
    _: KW_ONLY
    patch: int = 3
    content_weight: float = 0.4

    def __post_init__(self) -> None:
        for name, value in {"rate": self.rate, "content_weight": self.content_weight}.items():
            if not (isinstance(value, (int, float)) and 0 <= value <= 1):
                raise DiffstylerError(f"matching.{name}: expected a share in 0 … 1, got {value}")
        if self.patch not in (1, 3, 5, 7):
            raise DiffstylerError(f"matching.patch: expected 1, 3, 5 or 7 latent cells, got {self.patch}")

    def __call__(self, step: Step, clean: Part, style: Part, strength: float, content: Tensor) -> Tensor:
        latents, rate = clean.latents, self.rate * min(1.0, strength)
        sides = (*latents.shape[1:], *style.latents.shape[1:])
        if rate == 0 or clean.is_tiny or style.is_tiny or min(sides) < self.patch:
            return latents
        latents = torch.lerp(latents, content.to(latents), rate * self.content_weight * step.time)
        # several threads may add in another order, and a picture is not to depend on how many there are
        threads = one_thread() if latents.device.type == "cpu" else nullcontext()
        with threads, torch.autocast(latents.device.type, enabled=False):
            return latents + rate * self._moves(step.index, Part(latents, clean.cells), style).to(latents.dtype)

    def _moves(self, index: int, clean: Part, style: Part) -> Tensor:
        """Of each cell, the mean over the patches that it is in, (C, h, w)."""
        side = self.patch // 2
        here, wanted = self._patches(clean), self._patches(style)
        turn = _rotation(len(here), index, here.device)
        turned = turn.T @ here
        moves = turn @ (_moved(turned, turn.T @ wanted) - turned)
        height, width = clean.latents.shape[1:]
        if clean.cells is not None:
            everywhere = moves.new_zeros(len(moves), height * width)
            moves = everywhere.index_copy_(1, clean.cells, moves)
        size = height + 2 * side, width + 2 * side
        both = functional.fold(torch.stack([moves, torch.ones_like(moves)]), size, self.patch)
        total, count = both[:, :, side : size[0] - side, side : size[1] - side]
        return total / count

    def _patches(self, part: Part) -> Tensor:
        """(C · patch², n): around each cell that counts, reflected at the edges."""
        padded = functional.pad(part.latents[None].float(), (self.patch // 2,) * 4, mode="reflect")
        patches = functional.unfold(padded, self.patch)[0]
        return patches if part.cells is None else patches[:, part.cells]


def _moved(values: Tensor, wanted: Tensor) -> Tensor:
    """Each row of ``values`` (D, n), by an increasing, piecewise linear map of its quantiles to those of ``wanted``
    (D, m). Where values are nearly equal the map is not steeper than FLAT allows, and equal ones stay equal."""
    if values.device.type == "cpu":  # numpy is several times as fast there
        order, known = (torch.from_numpy(made) for made in (values.numpy().argsort(1), np.sort(wanted.numpy(), axis=1)))
    else:
        order, known = values.argsort(1), wanted.sort(1).values
    ranked = values.gather(1, order)
    apart = torch.linspace(-FLAT, FLAT, QUANTILES, device=values.device)
    own, other = quantiles(ranked, QUANTILES) + wanted.std(dim=1, keepdim=True) * apart, quantiles(known, QUANTILES)
    place = (torch.searchsorted(own, ranked, right=True) - 1).clamp(0, QUANTILES - 2)
    low, high, to_low, to_high = (q.gather(1, p) for q in (own, other) for p in (place, place + 1))
    share = ((ranked - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return torch.empty_like(values).scatter_(1, order, to_low.lerp(to_high, share))


def quantiles(ranked: Tensor, count: int) -> Tensor:
    """Of rows in order (D, n), evenly spread from the least to the most, (D, count)."""
    places = torch.linspace(0, ranked.shape[1] - 1, count, device=ranked.device)
    below = places.floor().long()
    return ranked[:, below].lerp(ranked[:, (below + 1).clamp(max=ranked.shape[1] - 1)], places - below)


@lru_cache(maxsize=1024)
def _rotation(size: int, index: int, device: torch.device) -> Tensor:
    """An orthonormal basis (size, size), the same for the same ``index`` on every machine's run."""
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].float().to(device)
