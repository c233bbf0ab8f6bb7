"""A ceiling on memory and a forecast in; how a run is cut so that it stays below, out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diffstyler.errors import DiffstylerError
from diffstyler.images import ImageError, fit_size, image_size
from diffstyler.memory.forecast import FitForecast, PredictForecast

GIB = 2**30
#: rows of a UNet call beyond which nothing is gained
MOST_ROWS = 64


class MemoryBudgetError(DiffstylerError):
    """It does not fit however it is cut; the text says by how much, and what to do."""


@dataclass(frozen=True)
class PredictPlan:
    """Rows in a UNet call at most, whether the autoencoder works in tiles, whether idle parts leave the device."""

    rows: int
    tiling: bool
    offload: bool
    bytes: float

    def __str__(self) -> str:
        more = [text for on, text in ((self.tiling, "tiled decoding"), (self.offload, "idle parts offloaded")) if on]
        return ", ".join([f"{self.rows} rows a call", *more, f"{self.bytes / GIB:.2f} GiB forecast"])


@dataclass(frozen=True)
class FitPlan:
    """LoRAs fitted at once, and whether activations are computed again in the backward pass."""

    slots: int
    checkpointing: bool
    bytes: float

    def __str__(self) -> str:
        more = ["gradient checkpointing"] if self.checkpointing else []
        return ", ".join([f"a pack of {self.slots}", *more, f"{self.bytes / GIB:.2f} GiB forecast"])


def largest_of(pictures: Iterable[Path], resolution: int | None) -> Callable[[int, int], tuple[int, int]]:
    """The largest size that any of these pictures is worked on at: for ``forecast``.

    Args:
        pictures: those that cannot be read fail when their turn comes.
        resolution: short side, in pixels; None = the model's.
    """

    def largest(native: int, multiple: int) -> tuple[int, int]:
        shapes = [(native, native)]
        for picture in pictures:
            with suppress(ImageError):
                shapes.append(fit_size(image_size(picture), resolution or native, multiple))
        return max(shapes[1:] or shapes, key=math.prod)

    return largest


def plan_predict(forecast: PredictForecast, ceiling: float, styles: int) -> PredictPlan:
    """The most rows that fit; tiles, then offloading, only where they must be.

    Args:
        forecast: of the model at the largest size of the run.
        ceiling: in bytes.
        styles: LoRAs on the device at once.

    Raises:
        MemoryBudgetError: not even a source row and a target fit.
    """
    for tiling, offload in ((False, False), (True, False), (True, True)):
        costs = {n: forecast.bytes(n, styles, offload=offload, tiling=tiling) for n in range(2, MOST_ROWS + 1)}
        fitting = [rows for rows, cost in costs.items() if cost <= ceiling]
        if fitting:
            return PredictPlan(fitting[-1], tiling, offload, costs[fitting[-1]])
    raise MemoryBudgetError(_too_small(ceiling, costs[2], "two rows, tiles and offloading"))


def plan_fit(forecast: FitForecast, ceiling: float, batch_size: int, slots: int) -> FitPlan:
    """The largest pack up to ``slots`` that fits; gradient checkpointing only where not even one LoRA fits without.

    Args:
        forecast: of the model at the crops' size.
        ceiling: in bytes.
        batch_size: rows of each LoRA.
        slots: LoRAs that could be fitted at once.

    Raises:
        MemoryBudgetError: not even one LoRA with gradient checkpointing fits.
    """
    for checkpointing in (False, True):
        costs = {n: forecast.bytes(n, batch_size, checkpointing=checkpointing) for n in range(1, slots + 1)}
        fitting = [count for count, cost in costs.items() if cost <= ceiling]
        if fitting:
            return FitPlan(fitting[-1], checkpointing, costs[fitting[-1]])
    raise MemoryBudgetError(_too_small(ceiling, costs[1], "one LoRA with gradient checkpointing"))


def _too_small(ceiling: float, least: float, what: str) -> str:
    return (
        f"max_memory {ceiling / GIB:g} GiB: {what} still take {least / GIB:.2f} GiB by forecast; allow more, or use "
        "model.backbone.quantization nf4, a lower precision, a smaller resolution or batch_size"
    )
