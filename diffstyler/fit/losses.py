"""What the fine-tuning minimizes: the UNet's output and what it should have been -> one loss a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Noised:
    """R rows of diffused latents: z_t = √ᾱ z_0 + √(1−ᾱ) ε. Tensors (R, C, h, w), ``alphas`` (R, 1, 1, 1) is ᾱ."""

    clean: torch.Tensor
    noise: torch.Tensor
    alphas: torch.Tensor
    prediction_type: str
    #: (R, 1, h, w) in [0, 1]: the cells that count; None = all of them
    mask: torch.Tensor | None = None

    def mean(self, error: torch.Tensor) -> torch.Tensor:
        """Of an error (R, C, h, w) over the cells that count, one value a row; 0 where none does."""
        if self.mask is None:
            return error.mean((1, 2, 3))
        weights = (error.shape[1] * self.mask.sum((1, 2, 3))).clamp(min=1e-8)
        masked = (error * self.mask).sum((1, 2, 3)) / weights
        # a row without a mask does not depend on whether another row has one
        return torch.where(self.mask.amin((1, 2, 3)) == 1, error.mean((1, 2, 3)), masked)

    @property
    def latents(self) -> torch.Tensor:
        """z_t."""
        return self.alphas.sqrt() * self.clean + (1 - self.alphas).sqrt() * self.noise

    @property
    def target(self) -> torch.Tensor:
        """What the UNet should output: ε, or v = √ᾱ ε − √(1−ᾱ) z_0 (Salimans and Ho 2022)."""
        if self.prediction_type == "epsilon":
            return self.noise
        return self.alphas.sqrt() * self.noise - (1 - self.alphas).sqrt() * self.clean

    def predicted_clean(self, output: torch.Tensor) -> torch.Tensor:
        """z_0 as the UNet's output implies it."""
        if self.prediction_type == "epsilon":
            return (self.latents - (1 - self.alphas).sqrt() * output) / self.alphas.sqrt()
        return self.alphas.sqrt() * self.latents - (1 - self.alphas).sqrt() * output


class DiffusionLoss(ABC):
    """A loss of diffusion models."""

    @abstractmethod
    def __call__(self, output: torch.Tensor, noised: Noised) -> torch.Tensor:
        """The UNet's output (R, C, h, w) in float32 -> one loss a row (R,)."""


class NoiseLoss(DiffusionLoss):
    """‖ε − ε(z_t)‖² (Ho et al. 2020, eq. 14), or the same on v where the model predicts v."""

    def __call__(self, output: torch.Tensor, noised: Noised) -> torch.Tensor:
        return noised.mean((output - noised.target).square())


class CleanLoss(DiffusionLoss):
    """‖z_0 − z_0(z_t)‖²: global structure and color rather than noise (ConsisLoRA, arXiv 2503.10614).

    For a model that predicts ε it is the noise loss weighted by (1−ᾱ) / ᾱ, which grows without bound as ᾱ nears 0;
    ``max_weight`` bounds it.
    """

    def __init__(self, max_weight: float = 20.0) -> None:
        if max_weight <= 0:
            raise ValueError(f"max_weight: expected more than 0, got {max_weight}")
        self.max_weight = max_weight

    def __call__(self, output: torch.Tensor, noised: Noised) -> torch.Tensor:
        error = noised.mean((noised.predicted_clean(output) - noised.clean).square())
        if noised.prediction_type != "epsilon":
            return error
        weight = (1 - noised.alphas) / noised.alphas
        return error * (self.max_weight / weight).clamp(max=1).flatten()


class MinSNRLoss(DiffusionLoss):
    """The noise loss weighted by min(SNR, γ) / SNR, for v by min(SNR, γ) / (SNR + 1) (Hang et al. 2023)."""

    def __init__(self, gamma: float = 5.0) -> None:
        if gamma <= 0:
            raise ValueError(f"gamma: expected more than 0, got {gamma}")
        self.gamma = gamma

    def __call__(self, output: torch.Tensor, noised: Noised) -> torch.Tensor:
        snr = (noised.alphas / (1 - noised.alphas)).flatten()
        norm = snr if noised.prediction_type == "epsilon" else snr + 1
        return noised.mean((output - noised.target).square()) * snr.clamp(max=self.gamma) / norm
