"""The jobs of a fit, and what memory there is -> how many LoRAs are fitted at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from diffstyler.backbones import Backbone
from diffstyler.errors import DiffstylerError
from diffstyler.fit.bench import slot_memory, widest
from diffstyler.fit.jobs import FitJob, FitSettings
from diffstyler.memory.forecast import FitForecast, forecast_fit
from diffstyler.memory.measure import WIDTHS, free_memory, widest_pack
from diffstyler.memory.plan import GIB, FitPlan, plan_fit

log = logging.getLogger(__name__)

#: what the frozen weights are stored in, for each precision of the Trainer
BASE_DTYPES = {
    "32-true": torch.float32,
    "64-true": torch.float64,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


@dataclass(frozen=True, eq=False)
class Sizing:
    """How wide the pack of a run is.

    ``pack_size`` as asked for; ``ranks`` share the jobs, or fit one ``together``; at most ``most_slots``.
    """

    backbone: Backbone
    run: FitSettings
    jobs: Sequence[FitJob]
    precision: str
    pack_size: int | Literal["auto"]
    ranks: int
    together: bool
    most_slots: float

    def width(self, device: torch.device, processes: int) -> int:
        """Slots of the pack: as many as wanted, and where the memory decides, as many as fit."""
        at_most = int(min(self.slots_wanted, self.most_slots))
        if self.pack_size != "auto":
            return at_most
        memory = slot_memory(self.backbone, self.run, self.jobs, device, self.adapter_dtype)
        return widest_pack(memory, free_memory(device, processes), at_most)

    @property
    def slots_wanted(self) -> int:
        """The pack size; where it is "auto", a rank's share of the LoRAs."""
        if self.pack_size != "auto":
            return max(1, min(self.pack_size, len(self.jobs)))
        return min(1 if self.together and self.ranks > 1 else -(-len(self.jobs) // self.ranks), WIDTHS[-1])

    def plan(self, gib: float) -> FitPlan:
        """Pack and gradient checkpointing such that a step takes at most so much memory; said in the log."""
        plan = plan_fit(self.forecast(), gib * GIB, self.run.batch_size, self.slots_wanted)
        log.info("max_memory %g GiB: %s", gib, plan)
        return plan

    def forecast(self) -> FitForecast:
        """What a LoRA with the largest crops costs, before anything is loaded.

        Raises:
            DiffstylerError: nothing can be forecast for this model.
        """

        def largest(resolution: int, multiple: int) -> tuple[int, int]:
            side = max(job.settings.crops.side(resolution, multiple) for job in self.jobs)
            return side, side

        return forecast_fit(self.backbone, largest, self.base_dtype, widest(self.run, self.jobs).config)

    @property
    def base_dtype(self) -> torch.dtype:
        """Of the frozen weights.

        Raises:
            DiffstylerError: the fit does not know that precision.
        """
        if self.precision not in BASE_DTYPES:
            raise DiffstylerError(f"trainer.precision: expected one of {', '.join(BASE_DTYPES)}; got {self.precision}")
        return BASE_DTYPES[self.precision]

    @property
    def adapter_dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == "64-true" else torch.float32
