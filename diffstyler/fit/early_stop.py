"""The held-out losses of a LoRA in; out comes whether it has learned what it will."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffstyler.errors import DiffstylerError


@dataclass(frozen=True)
class EarlyStop:
    """A LoRA is done when its held-out loss, smoothed, falls no more.

    The held-out loss is what the LoRA minimizes, on noise and timesteps that are never trained on: drawn once from
    the LoRA's seed, the timesteps spread evenly over all noise levels.

    Args:
        every: steps between two looks at the held-out loss.
        rows: that a look takes the mean of, rounded up to whole steps.
        smoothing: share of the past in the running mean, 0 … below 1.
        improvement: the fraction by which the running mean must fall below its lowest to count as lower.
        patience: looks without a new lowest before the LoRA stops.
    """

    every: int = 20
    rows: int = 8
    smoothing: float = 0.6
    improvement: float = 0.002
    patience: int = 3

    def __post_init__(self) -> None:
        for name in ("every", "rows", "patience"):
            if getattr(self, name) < 1:
                raise DiffstylerError(f"early_stop.{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("smoothing", "improvement"):
            if not 0 <= getattr(self, name) < 1:
                raise DiffstylerError(
                    f"early_stop.{name}: expected a fraction in 0 … below 1, got {getattr(self, name)}"
                )

    def stops(self, losses: Sequence[float]) -> bool:
        """Whether a LoRA with these held-out losses, the latest last, is done."""
        lowest, waited = float("inf"), 0
        for mean in self._smoothed(losses):
            if mean < lowest * (1 - self.improvement):
                lowest, waited = mean, 0
            else:
                waited += 1
        return waited >= self.patience

    def _smoothed(self, losses: Sequence[float]) -> Iterator[float]:
        mean = losses[0] if losses else 0.0
        for loss in losses:
            mean = self.smoothing * mean + (1 - self.smoothing) * loss
            yield mean
