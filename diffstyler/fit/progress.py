"""What is seen of a fit: one bar (LoRAs done, adapter-steps, how many a second, loss, time left), and any loggers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import lightning
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from diffstyler.fit.bench import FitBench
from diffstyler.fit.job_queue import JobQueue
from diffstyler.fit.slot import Slot
from diffstyler.images import to_tensor

#: how often the first rank looks what others have finished
NOTICE_SECONDS = 2.0


class Speed(ProgressColumn):
    """Steps of all LoRAs together in a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} adapter-steps/s")


class Fitting(Protocol):
    """What is shown of a fit."""

    queue: JobQueue
    bench: FitBench | None


class FitProgress(lightning.Callback):
    """Shows the steps of all LoRAs of the run, whichever process takes them, with the time left."""

    def __init__(self) -> None:
        #: is told the steps done and all steps, besides the bar
        self.report: Callable[[int, int], None] | None = None
        #: are told the picture of a LoRA, its steps done, and the loss, or what it draws by then
        self.loss: Callable[[Path, int, float], None] | None = None
        self.preview: Callable[[Path, int, Image.Image], None] | None = None
        self.progress: Progress | None = None
        self.task = TaskID(0)
        self._noticed = 0.0
        self._fit: Any = None
        self._losses: dict[int, float] = {}  # the latest of each slot

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._fit = pl_module
        self._losses = {}
        settings = {**pl_module.run.record(), "pack_size": trainer.datamodule.pack_size}  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            logger.log_hyperparams({**settings, "pictures": len(pl_module.queue.jobs)})

    def on_loss(self, slot: Slot, step: int, loss: float) -> None:
        self._losses[slot.index] = loss
        if self.loss is not None:
            self.loss(slot.job.picture.paths[0], step, loss)
        told = {f"loss/{slot.name}": loss}
        if step == slot.step:
            told[f"learning_rate/{slot.name}"] = slot.learning_rate
        for logger in self._fit.loggers:
            logger.log_metrics(told, step)

    def on_preview(self, slot: Slot, preview: Image.Image) -> None:
        name = f"preview/{slot.name}"
        if self.preview is not None:
            self.preview(slot.job.picture.paths[0], slot.step, preview)
        for logger in self._fit.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, to_tensor(preview) / 2 + 0.5, slot.step)
            elif isinstance(logger, WandbLogger):
                logger.log_image(name, [preview], slot.step)

    def on_wait(self) -> None:
        self.show(self._fit)
        if self._fit.trainer.received_sigterm:
            raise SIGTERMException

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if pl_module.bench is None or not (trainer.is_global_zero and pl_module.queue.farm.leads):
            return
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            Speed(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self.progress.start()
        total = sum(job.settings.steps for job in pl_module.queue.jobs.values())
        self.task = self.progress.add_task("LoRAs", total=total, loss="")
        self.show(pl_module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.show(pl_module)

    def show(self, fit: Fitting) -> None:
        """How far it is now."""
        if self.progress is None or fit.bench is None:
            return
        if time.monotonic() - self._noticed > NOTICE_SECONDS:
            fit.queue.notice()
            self._noticed = time.monotonic()
        total = sum(job.settings.steps for job in fit.queue.jobs.values())
        title = f"LoRAs {len(fit.queue.finished)}/{len(fit.queue.jobs)}"
        done = total - fit.bench.steps_left
        self.progress.update(self.task, completed=done, description=title)
        if self.report is not None:
            self.report(done, total)
        if self._losses:
            self.progress.update(self.task, loss=f"loss {sum(self._losses.values()) / len(self._losses):.3f}")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._noticed = -math.inf  # what others have finished by now
        self.show(pl_module)
        self._stop()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
