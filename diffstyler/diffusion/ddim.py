"""A step of the sampler between two noise levels."""

from __future__ import annotations

import torch

from diffstyler.types import NoiseLevel


def ddim_step(x: torch.Tensor, noise_pred: torch.Tensor, level: NoiseLevel, level_to: NoiseLevel) -> torch.Tensor:
    """x0 = (x − σ ε) / s; x' = s' x0 + σ' ε, with s = √ᾱ and σ = √(1−ᾱ).

    Song et al. 2021, eq. 12 with η = 0. Downward it denoises, upward it inverts.
    """
    return level_to.noised(level.clean(x, noise_pred), noise_pred)


def clean_between(x: torch.Tensor, x_to: torch.Tensor, level: NoiseLevel, level_to: NoiseLevel) -> torch.Tensor:
    """The x0 of which both are noised by the same ε: (σ x' − σ' x) / (σ s' − σ' s).

    Of one DDIM step it is the x0 that was predicted; of a fused one what all regions and the content predict together.
    """
    scale = level.sigma * level_to.signal - level_to.sigma * level.signal
    return (level.sigma * x_to - level_to.sigma * x) / scale
