"""A step of the sampler between two noise levels."""

from __future__ import annotations

import math

import torch


def ddim_step(x: torch.Tensor, noise_pred: torch.Tensor, alpha: float, alpha_to: float) -> torch.Tensor:
    """From the noise level ᾱ to ᾱ': x0 = (x − √(1−ᾱ) ε) / √ᾱ; x' = √ᾱ' x0 + √(1−ᾱ') ε.

    Song et al. 2021, eq. 12 with η = 0. Downward it denoises, upward it inverts.
    """
    x0 = (x - math.sqrt(1 - alpha) * noise_pred) / math.sqrt(alpha)
    return math.sqrt(alpha_to) * x0 + math.sqrt(1 - alpha_to) * noise_pred
