"""What a network's output means: the way between it, the noise ε and the clean latents x0."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from diffstyler.types import NoiseLevel


class Prediction(ABC):
    """A parameterization of a denoiser. All latents (B, C, h, w), levels broadcast over them."""

    #: as model files call it
    name: str

    @abstractmethod
    def target(self, clean: torch.Tensor, noise: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """What the network should output for z = signal · x0 + sigma · ε."""

    @abstractmethod
    def noise(self, output: torch.Tensor, latents: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """ε as the output for latents z implies it."""

    @abstractmethod
    def clean(self, output: torch.Tensor, latents: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """x0 as the output for latents z implies it."""


class NoisePrediction(Prediction):
    """The output is ε (Ho et al. 2020)."""

    name = "epsilon"

    def target(self, clean: torch.Tensor, noise: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        return noise

    def noise(self, output: torch.Tensor, latents: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        return output

    def clean(self, output: torch.Tensor, latents: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        return (latents - level.sigma * output) / level.signal


class VelocityPrediction(Prediction):
    """The output is v = √ᾱ ε − √(1−ᾱ) x0 (Salimans and Ho 2022, appendix D)."""

    name = "v_prediction"

    def target(self, clean: torch.Tensor, noise: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        return level.signal * noise - level.sigma * clean

    def noise(self, output: torch.Tensor, latents: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        return level.signal * output + level.sigma * latents

    def clean(self, output: torch.Tensor, latents: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        return level.signal * latents - level.sigma * output


PREDICTIONS: dict[str, Prediction] = {kind.name: kind() for kind in (NoisePrediction, VelocityPrediction)}
