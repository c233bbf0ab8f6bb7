"""A fit or a predict with ``--farm``.

On a cluster what to do is settled and checked here, workers do it, here it is told; a folder is only looked at.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from rich.progress import Progress, TextColumn

from diffstyler import storage
from diffstyler.cli.lightning_cli import FIT, PREDICT, Run
from diffstyler.cli.settings import with_presets
from diffstyler.errors import DiffstylerError
from diffstyler.farm import Farm, Job, RankFarm, Told
from diffstyler.farm.folder import FolderFarm, Seen
from diffstyler.farm.ray import RayFarm
from diffstyler.farm.status import Status
from diffstyler.fit.finetuner import verdict
from diffstyler.fit.job_queue import Failure, JobQueue
from diffstyler.fit.jobs import FitPicture
from diffstyler.predict.data import ordered
from diffstyler.predict.row_check import CheckedRows
from diffstyler.types import Triple

RUNS = {"fit": FIT, "predict": PREDICT}


@dataclass(eq=False)
class Fitting:
    """What a worker that fits LoRAs is sent: the words of the command, and pictures, which are looked at already."""

    words: Sequence[str]
    folder: str
    pictures: Sequence[FitPicture]
    backbone: Any = None  # stays loaded

    def __call__(self, farm: Farm, together: int | None) -> None:
        cli = _again(FIT, self.words, self.folder, {"data.pack_size": together})
        self.backbone = cli.model.backbone = self.backbone or cli.model.backbone
        cli.model.farm = farm
        cli.datamodule.looked_at_elsewhere, cli.datamodule.pictures = True, self.pictures
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)


@dataclass(eq=False)
class Predicting:
    """What a worker that makes pictures is sent: the words of the command, and rows, which are checked already."""

    words: Sequence[str]
    folder: str
    triples: Sequence[Triple]
    checked: CheckedRows
    model: Any = field(default=None)  # stays loaded, with what it has in its caches

    def __call__(self, farm: Farm, together: int | None) -> None:
        cli = _again(PREDICT, self.words, self.folder, {"data.batch_size": together})
        self.model = self.model or cli.model
        self.model.checked_elsewhere = self.checked
        self.model.writer.share(farm)
        cli.datamodule.manifest, cli.datamodule.triples = None, self.triples
        cli.trainer.predict(self.model, datamodule=cli.datamodule, return_predictions=False)


class Page(Callback):
    """Of a run of this machine: the farm that is its folder is told what there is to do, and sees how far it is."""

    def __init__(self, farm: FolderFarm) -> None:
        self.farm = farm
        self._open = ExitStack()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        queue: JobQueue = pl_module.queue  # type: ignore[assignment]
        library, jobs = queue.library, [Job(key, job.settings.steps) for key, job in queue.jobs.items()]
        finished: set[str] = set()

        def look() -> Seen:
            still_open = queue.jobs.keys() - finished
            finished.update(library.find([queue.jobs[key].identity for key in still_open]))
            taken = {file.stem for file in library.unfinished.glob("*.lock")} & still_open - finished
            return Seen(finished, {failure.key: failure.reason for failure in queue.failures.read()}, len(taken))

        if trainer.is_global_zero:
            watched = self.farm.watched(library.lora_dir, "LoRAs", jobs, look, trainer.world_size)
            self._open.enter_context(watched)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module
        if model.writer is None or not model.writer.farm.leads:
            return
        ranks: RankFarm = model.writer.farm
        jobs = [Job(triple.id) for triple in trainer.datamodule.triples]  # type: ignore[attr-defined]

        def look() -> Seen:
            told = ranks.so_far()
            failures = {one.id: one.reason for one in told if one.reason is not None}
            return Seen({one.id for one in told} - failures.keys(), failures, len(jobs))  # the ranks have them all

        self._open.enter_context(self.farm.watched(model.writer.output_dir, "pictures", jobs, look, trainer.world_size))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._open.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._open.close()


def _with_page(farm: FolderFarm, trainer: Trainer) -> Trainer:
    trainer.callbacks.append(Page(farm))  # type: ignore[attr-defined]
    return trainer


def fit_on(farm: RayFarm | FolderFarm, cli: LightningCLI, words: Sequence[str]) -> None:
    """Raises: FitError, as a fit on one machine; FarmError where workers end again and again."""
    if isinstance(farm, FolderFarm):
        _with_page(farm, cli.trainer).fit(cli.model, datamodule=cli.datamodule)
        return
    model, data = _attached(cli)
    data.setup("fit")
    model.setup("fit")
    if data.together is not None:
        raise DiffstylerError("data.together: one LoRA is one job; fit it without a farm")
    queue = model.queue
    model.begin_failures(secrets.token_hex(8))
    try:
        model.library.sweep()
        work = Fitting(_inlined(words), str(Path.cwd()), data.pictures)
        jobs = [Job(job.identity.key, job.settings.steps) for job in queue.waiting]
        for told in _run(farm, work, jobs, model.library.lora_dir, "LoRAs", offered=False):
            if told.reason is not None:
                job = queue.jobs[told.id]
                picture = storage.told(job.picture.paths[0])
                queue.failures.add(Failure(told.id, job.settings.role, picture, told.reason))
        queue.notice()
        verdict(queue, [], 0, data.problems)
    finally:
        queue.failures.end()


def predict_on(farm: RayFarm | FolderFarm, cli: LightningCLI, words: Sequence[str]) -> None:
    """Raises: PredictError, as a predict on one machine; FarmError where workers end again and again."""
    if isinstance(farm, FolderFarm):
        _with_page(farm, cli.trainer).predict(cli.model, datamodule=cli.datamodule, return_predictions=False)
        return
    model, data = _attached(cli)
    data.setup("predict")
    model.setup("predict")
    if model.writer is None:
        raise DiffstylerError("output_dir: expected a folder or a URL, for workers send their pictures nowhere else")
    work = Predicting(_inlined(words), str(Path.cwd()), data.triples, model.checked)
    jobs = [Job(triple.id) for triple in ordered(data.triples)]
    told = _run(farm, work, jobs, model.writer.output_dir, "pictures", offered=True)
    model.writer.report(told, data)


def _run(farm: RayFarm, work: Any, jobs: Sequence[Job], folder: Path, what: str, *, offered: bool) -> list[Told]:
    with _shown() as show, Status(folder, what, farm.port, show) as status:
        return farm.run(work, jobs, offered=offered, watch=status)


@contextmanager
def _shown() -> Iterator[Any]:
    """One line that changes."""
    with Progress(TextColumn("{task.description}")) as progress:
        task = progress.add_task("")
        yield lambda line: progress.update(task, description=line)


def _attached(cli: LightningCLI) -> tuple[Any, Any]:
    """Model and data as the Trainer has them at the start of a run, which goes no further here."""
    if cli.trainer.world_size != 1:
        raise DiffstylerError("trainer.devices, trainer.num_nodes: a worker of a farm has one device; leave them out")
    cli.model.trainer = cli.datamodule.trainer = cli.trainer
    cli.trainer.datamodule = cli.datamodule  # type: ignore[attr-defined]
    return cli.model, cli.datamodule


def _again(run: Run, words: Sequence[str], folder: str, settings: dict[str, int | None]) -> LightningCLI:
    """In a worker: Trainer, model and data of the command."""
    if Path(folder).is_dir():
        os.chdir(folder)  # else its paths are URLs, or start at the root
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    own = {**settings, "trainer.logger": "false"}
    return run.cli([*words, *(part for name, value in own.items() if value for part in (f"--{name}", str(value)))])


def _inlined(words: Iterable[str]) -> list[str]:
    """The words of a command with its configs in them, which other machines need not have."""
    words, configs = with_presets(words)
    texts = {config: config if config.lstrip().startswith("{") else _as_json(Path(config)) for config in configs}
    return [texts.get(word, f"--config={texts[word[9:]]}" if word[9:] in texts else word) for word in words]


def _as_json(config: Path) -> str:
    return json.dumps(yaml.safe_load(config.read_text(encoding="utf-8")) or {})
