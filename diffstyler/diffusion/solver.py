"""A noise prediction, and the step before it -> the ε along which one DDIM step is taken: how many steps it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from diffstyler.types import NoiseLevel, Step


@dataclass(frozen=True)
class Before:
    """Where the step before led: its noise ``level`` and the x0 (C, h, w) that was predicted there."""

    level: NoiseLevel
    clean: torch.Tensor


class Solver(ABC):
    """How the sampling grid is walked down."""

    @abstractmethod
    def __call__(
        self, step: Step, x: torch.Tensor, noise_pred: torch.Tensor, before: Before | None
    ) -> tuple[torch.Tensor, Before | None]:
        """ε (C, h, w) for a DDIM step from x_t, and what the next step is to know of this one.

        Args:
            step: from t to t'.
            x: x_t (C, h, w).
            noise_pred: ε(x_t), guided.
            before: of the step before; None in the first one.
        """


@dataclass(frozen=True)
class DDIM(Solver):
    """Each step by itself (Song et al. 2021)."""

    def __call__(
        self, step: Step, x: torch.Tensor, noise_pred: torch.Tensor, before: Before | None
    ) -> tuple[torch.Tensor, None]:
        return noise_pred, None


@dataclass(frozen=True)
class DPMSolverMultistep(Solver):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2, midpoint): x0 is extrapolated along λ = log(s / σ).

    D = x0 + (x0 − x0_before) h / (2 h_before), with the h that lead from λ to λ; a DDIM step towards D is its update.
    Twenty steps do what takes DDIM about fifty. The first step is DDIM's, and of fewer than 15 the last one too.
    """

    def __call__(
        self, step: Step, x: torch.Tensor, noise_pred: torch.Tensor, before: Before | None
    ) -> tuple[torch.Tensor, Before]:
        clean = step.level.clean(x, noise_pred)
        here = Before(step.level, clean)
        if before is None or (step.count < FEW and step.index == step.count - 1):
            return noise_pred, here
        h, h_before = _lambda(step.level_to) - _lambda(step.level), _lambda(step.level) - _lambda(before.level)
        extrapolated = clean + (clean - before.clean) * float(h / (2 * h_before))
        return step.level.noise(x, extrapolated), here


#: steps below which the last one is not extrapolated
FEW = 15


def _lambda(level: NoiseLevel) -> torch.Tensor:
    """Half the logarithm of the signal-to-noise ratio; −∞ where there is no signal."""
    signal, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in (level.signal, level.sigma))
    return (signal / sigma).log()
