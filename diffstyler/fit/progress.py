"""One progress bar for `fit`: LoRAs done, adapter-steps, how many a second, loss, time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import lightning
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

if TYPE_CHECKING:
    from diffstyler.fit.finetuner import LoRAFinetuner

#: how often the first rank looks what others have finished
NOTICE_SECONDS = 2.0


class Speed(ProgressColumn):
    """Steps of all LoRAs together in a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} adapter-steps/s")


class FitProgress(lightning.Callback):
    """Shows the steps of all LoRAs of the run, whichever process takes them, with the time left."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.task = TaskID(0)
        self._noticed = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: LoRAFinetuner) -> None:  # type: ignore[override]
        total, done = pl_module.step_count()
        if total == 0 or not trainer.is_global_zero:
            return
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            Speed(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self.progress.start()
        self.task = self.progress.add_task(self._title(pl_module), total=total, completed=done, loss=float("nan"))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: LoRAFinetuner,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.progress is None:
            return
        if time.monotonic() - self._noticed > NOTICE_SECONDS:
            pl_module.farm.notice()
            self._noticed = time.monotonic()
        _, done = pl_module.step_count()
        self.progress.update(self.task, completed=done, description=self._title(pl_module), loss=pl_module.last_loss)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: LoRAFinetuner) -> None:  # type: ignore[override]
        self._stop()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    @staticmethod
    def _title(finetuner: LoRAFinetuner) -> str:
        return f"LoRAs {len(finetuner.finished)}/{len(finetuner.farm.jobs)}"
