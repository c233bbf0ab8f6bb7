"""What the fine-tuning minimizes: the UNet's output and what it should have been -> one loss a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from diffstyler.backbones import NoisePrediction, Prediction
from diffstyler.errors import DiffstylerError
from diffstyler.types import NoiseLevel


@dataclass(frozen=True)
class Noised:
    """R rows of diffused latents: z_t = signal · z_0 + sigma · ε. Tensors (R, C, h, w), ``level`` (R, 1, 1, 1)."""

    clean: torch.Tensor
    noise: torch.Tensor
    level: NoiseLevel
    prediction: Prediction
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
        return self.level.noised(self.clean, self.noise)

    @property
    def target(self) -> torch.Tensor:
        """What the network should output."""
        return self.prediction.target(self.clean, self.noise, self.level)

    @property
    def snr(self) -> torch.Tensor:
        """(signal / sigma)², (R,)."""
        return torch.as_tensor(self.level.signal / self.level.sigma).square().flatten()


class DiffusionLoss(ABC):
    """A loss of diffusion models."""

    @abstractmethod
    def __call__(self, output: torch.Tensor, noised: Noised) -> torch.Tensor:
        """The UNet's output (R, C, h, w) in float32 -> one loss a row (R,)."""


@dataclass(frozen=True)
class NoiseLoss(DiffusionLoss):
    """‖ε − ε(z_t)‖² (Ho et al. 2020, eq. 14), or the same on v where the model predicts v."""

    def __call__(self, output: torch.Tensor, noised: Noised) -> torch.Tensor:
        return noised.mean((output - noised.target).square())


@dataclass(frozen=True)
class CleanLoss(DiffusionLoss):
    """‖z_0 − z_0(z_t)‖²: global structure and color rather than noise (ConsisLoRA, arXiv 2503.10614).

    For a model that predicts ε it is the noise loss weighted by 1 / SNR, which grows without bound as the signal nears
    0; ``max_weight`` bounds it.
    """

    max_weight: float = 20.0

    def __post_init__(self) -> None:
        if not self.max_weight > 0:
            raise DiffstylerError(f"max_weight: expected more than 0, got {self.max_weight}")

    def __call__(self, output: torch.Tensor, noised: Noised) -> torch.Tensor:
        clean = noised.prediction.clean(output, noised.latents, noised.level)
        error = noised.mean((clean - noised.clean).square())
        if not isinstance(noised.prediction, NoisePrediction):
            return error
        return error * (self.max_weight * noised.snr).clamp(max=1)


@dataclass(frozen=True)
class MinSNRLoss(DiffusionLoss):
    """The noise loss weighted by min(SNR, γ) / SNR, for v by min(SNR, γ) / (SNR + 1) (Hang et al. 2023)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise DiffstylerError(f"gamma: expected more than 0, got {self.gamma}")

    def __call__(self, output: torch.Tensor, noised: Noised) -> torch.Tensor:
        norm = noised.snr if isinstance(noised.prediction, NoisePrediction) else noised.snr + 1
        return noised.mean((output - noised.target).square()) * noised.snr.clamp(max=self.gamma) / norm
