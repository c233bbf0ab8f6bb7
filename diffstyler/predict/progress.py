"""What is seen of a predict: one bar over the denoising and inversion steps of all pictures, with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import lightning
from PIL import Image
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffstyler.diffusion.initial import InitialLatents
from diffstyler.types import Triple


class Predicting(Protocol):
    """What is shown of a predict."""

    num_inference_steps: int
    inversion_steps: int
    initial: InitialLatents


class PredictProgress(lightning.Callback):
    """Counts the steps of every picture, and of the inversion of every content and style, on the first rank.

    What turns out to be there already counts as done.
    """

    def __init__(self) -> None:
        #: is told the steps done and all steps, besides the bar
        self.report: Callable[[int, int], None] | None = None
        #: is shown every picture as it is by now, after every ``preview_every`` steps
        self.preview: Callable[[Image.Image], None] | None = None
        self.preview_every = 5
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._ends: list[int] = []  # steps done after each batch
        self._titles: list[str] = []
        self._batch = self._done = 0

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        loader: Any = trainer.predict_dataloaders
        share = loader.batch_sampler.sampler
        if not share.farm.leads:
            return
        rows, size = [loader.dataset[row] for row in share.rows], share.together
        batches = [rows[first : first + size] for first in range(0, len(rows), size)]
        made = [sum(map(len, batches[:after])) for after in range(len(batches) + 1)]
        self._titles = [f"pictures {before}/{made[-1]}" for before in made]
        self._ends, self._batch, self._done = list(steps_after(pl_module, batches)), 0, 0
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress.start()
        self._task = self._progress.add_task(self._titles[0], total=max(self._ends, default=0))

    def step(self, pictures: int) -> None:
        """So many pictures have taken one step."""
        if self._batch < len(self._ends):
            self._show(min(self._done + pictures, self._ends[self._batch]))

    def on_predict_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self._batch < len(self._ends):
            self._batch += 1
            self._show(self._ends[self._batch - 1])

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def _show(self, done: int) -> None:
        self._done = done
        if self._progress is not None:
            self._progress.update(self._task, completed=done, description=self._titles[self._batch])
        if self.report is not None:
            self.report(done, self._ends[-1])

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._ends = []


def steps_after(run: Predicting, batches: Iterable[Iterable[Triple]]) -> Iterator[int]:
    """Steps that are done when each batch is: of its pictures, and of contents and styles that are new with it."""
    done, contents, styles = 0, set(), set()
    for batch in batches:
        for triple in batch:
            done += run.num_inference_steps + (0 if triple.content in contents else run.inversion_steps)
            contents.add(triple.content)
            new = {(region.style, region.style_mask) for region in triple.regions} - styles
            styles |= new
            done += len(new) * run.num_inference_steps if run.initial.needs_style else 0
        yield done
