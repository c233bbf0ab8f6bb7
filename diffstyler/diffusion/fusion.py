"""What the regions of a picture want at one step, and where they lie -> the next latents of the whole picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from diffstyler.diffusion.ddim import ddim_step
from diffstyler.diffusion.injection import Injection
from diffstyler.types import Step, Trajectory

Tensors = Sequence[Tensor]


class Fusion(ABC):
    """How regions and content become one picture at each step."""

    #: the injection under which the base model draws what lies outside all masks; None: the content's own trajectory
    outside: Injection | None = None

    @abstractmethod
    def __call__(self, step: Step, x: Tensor, content: Trajectory, noise_preds: Tensors, weights: Tensors) -> Tensor:
        """x_t -> x_t', (C, h, w).

        Args:
            step: from t to t'.
            x: x_t (C, h, w).
            content: z^c on the sampling grid: ``latents[step.index]`` is z_t^c, the next one z_t'^c.
            noise_preds: ε_i (C, h, w) of each region.
            weights: the share (h, w) of every cell that each region has, Σ <= 1.
        """

    def latent_mask(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """A mask (H, W) on the latent grid (h, w) = ``size``: the mean over the area of each cell."""
        return functional.adaptive_avg_pool2d(mask[None], size)[0]


@dataclass(frozen=True)
class FuseLatents(Fusion):
    """x_t' = Σ M_i y_i + (1 − Σ M_i) z_t'^c with y_i = DDIM(x_t, ε_i) (the method)."""

    def __call__(self, step: Step, x: Tensor, content: Trajectory, noise_preds: Tensors, weights: Tensors) -> Tensor:
        y = [ddim_step(x, noise_pred, step.level, step.level_to) for noise_pred in noise_preds]
        return blend(y, weights, content.latents[step.index + 1])


@dataclass(frozen=True)
class FuseNoise(Fusion):
    """One step along ε = Σ M_i ε_i + (1 − Σ M_i) ε^c, with the ε^c that leads the content from z_t to z_t'.

    Args:
        outside: in place of ε^c, what the base model predicts with an empty prompt under this injection.
        hard_masks: a cell belongs to the last region whose mask, resized bilinearly, is not zero there.

    With both arguments this is how the authors' code fuses.
    """

    outside: Injection | None = None
    _: KW_ONLY
    hard_masks: bool = False

    def __call__(self, step: Step, x: Tensor, content: Trajectory, noise_preds: Tensors, weights: Tensors) -> Tensor:
        (a, b), (a_to, b_to) = ((level.signal, level.sigma) for level in (step.level, step.level_to))
        z, z_to = content.latents[step.index], content.latents[step.index + 1]
        own = (a * z_to - a_to * z) / (a * b_to - a_to * b)
        return ddim_step(x, blend(noise_preds, weights, own), step.level, step.level_to)

    def latent_mask(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        if not self.hard_masks:
            return super().latent_mask(mask, size)
        levels = 255 * functional.interpolate(mask[None, None], size, mode="bilinear")[0, 0]
        return (levels >= 0.5).float()  # the authors resize 8-bit pictures: less than half a level is 0


@dataclass(frozen=True)
class FuseClean(Fusion):
    """One step towards x0 = Σ M_i x0_i + (1 − Σ M_i) z_0^c: the pull to the content outside is the strongest here."""

    def __call__(self, step: Step, x: Tensor, content: Trajectory, noise_preds: Tensors, weights: Tensors) -> Tensor:
        clean = blend([step.level.clean(x, noise_pred) for noise_pred in noise_preds], weights, content.clean)
        return ddim_step(x, step.level.noise(x, clean), step.level, step.level_to)


def shares(masks: Sequence[Tensor | None]) -> list[Tensor]:
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


def blend(values: Tensors, weights: Tensors, rest: Tensor) -> Tensor:
    """Σ w_i v_i + (1 − Σ w_i) rest, values (C, h, w) and weights (h, w); exact where a weight is 1."""
    total = sum(weights, start=torch.zeros((), device=rest.device, dtype=rest.dtype))
    blended = (1 - total) * rest
    for value, weight in zip(values, weights, strict=True):
        blended = blended + weight * value
    return blended
