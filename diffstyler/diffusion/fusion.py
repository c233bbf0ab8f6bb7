"""What the regions of a picture want at one step, and where they lie -> the next latents of the whole picture."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from diffstyler.diffusion.ddim import ddim_step
from diffstyler.diffusion.injection import Injection


@dataclass(frozen=True)
class Step:
    """One DDIM step of one picture, from ᾱ = ``alpha`` to ``alpha_to``; all latents (C, h, w).

    ``x_t`` is the picture's, ``content`` and ``content_to`` are the content's own at both ends, ``clean`` its z_0.
    """

    x_t: torch.Tensor
    alpha: float
    alpha_to: float
    content: torch.Tensor
    content_to: torch.Tensor
    clean: torch.Tensor


class Fusion(ABC):
    """How regions and content become one picture at each step."""

    #: the injection under which the base model draws what lies outside all masks; None: the content's own trajectory
    outside: Injection | None = None

    @abstractmethod
    def __call__(
        self, step: Step, noise_preds: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Each region's ε (C, h, w) and its share (h, w) of every cell, Σ <= 1 -> x_t' (C, h, w)."""

    def latent_mask(self, mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """A mask (H, W) on the latent grid (h, w) = ``size``: the mean over the area of each cell."""
        return functional.adaptive_avg_pool2d(mask[None], size)[0]


class FuseLatents(Fusion):
    """x_t' = Σ M_i y_i + (1 − Σ M_i) z_t'^c with y_i = DDIM(x_t, ε_i) (the method)."""

    def __call__(
        self, step: Step, noise_preds: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        styled = [ddim_step(step.x_t, noise_pred, step.alpha, step.alpha_to) for noise_pred in noise_preds]
        return blend(styled, weights, step.content_to)


class FuseNoise(Fusion):
    """One step along ε = Σ M_i ε_i + (1 − Σ M_i) ε^c, with the ε^c that leads the content from z_t to z_t'.

    Args:
        outside: in place of ε^c, what the base model predicts with an empty prompt under this injection.
        hard_masks: a cell belongs to the last region whose mask, resized bilinearly, is not zero there.

    With both arguments this is how the authors' code fuses.
    """

    def __init__(self, outside: Injection | None = None, *, hard_masks: bool = False) -> None:
        self.outside = outside
        self.hard_masks = hard_masks

    def __call__(
        self, step: Step, noise_preds: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        a, b = math.sqrt(step.alpha), math.sqrt(1 - step.alpha)
        a_to, b_to = math.sqrt(step.alpha_to), math.sqrt(1 - step.alpha_to)
        content = (a * step.content_to - a_to * step.content) / (a * b_to - a_to * b)
        return ddim_step(step.x_t, blend(noise_preds, weights, content), step.alpha, step.alpha_to)

    def latent_mask(self, mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if not self.hard_masks:
            return super().latent_mask(mask, size)
        levels = 255 * functional.interpolate(mask[None, None], size, mode="bilinear")[0, 0]
        return (levels >= 0.5).float()  # the authors resize 8-bit pictures: less than half a level is 0


class FuseClean(Fusion):
    """One step towards x0 = Σ M_i x0_i + (1 − Σ M_i) z_0^c: the pull to the content outside is the strongest here."""

    def __call__(
        self, step: Step, noise_preds: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        a, b = math.sqrt(step.alpha), math.sqrt(1 - step.alpha)
        clean = blend([(step.x_t - b * noise_pred) / a for noise_pred in noise_preds], weights, step.clean)
        return ddim_step(step.x_t, (step.x_t - a * clean) / b, step.alpha, step.alpha_to)


def shares(masks: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """Masks in [0, 1], later ones on top, None = everywhere -> each one's share of every cell; they sum to at most 1.

    From the top down, each takes what those above left: w_i = min(m_i, 1 − Σ_{j > i} w_j).
    """
    some = next((mask for mask in masks if mask is not None), torch.ones(()))
    left = torch.ones_like(some)
    weights = []
    for mask in reversed(masks):
        weights.append(left if mask is None else torch.minimum(mask, left))
        left = left - weights[-1]
    return weights[::-1]


def blend(values: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], rest: torch.Tensor) -> torch.Tensor:
    """Σ w_i v_i + (1 − Σ w_i) rest, values (C, h, w) and weights (h, w); exact where a weight is 1."""
    total = sum(weights, start=torch.zeros((), device=rest.device, dtype=rest.dtype))
    blended = (1 - total) * rest
    for value, weight in zip(values, weights, strict=True):
        blended = blended + weight * value
    return blended
