"""Finished pictures -> files: the picture, its sidecar, and a list of what failed, whichever rank made them."""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import lightning
from filelock import FileLock
from lightning.pytorch.callbacks import BasePredictionWriter
from torchvision.transforms.functional import to_pil_image

from diffstyler import storage
from diffstyler.distributed import exit_codes, part
from diffstyler.errors import told_lines
from diffstyler.farm import Farm, RankFarm, Told
from diffstyler.files import atomic_write, file_sha256, own_folder, read_json, read_json_lines, sweep
from diffstyler.images import load_image, save_image, to_image
from diffstyler.predict.contact_sheet import write_sheet
from diffstyler.types import Failed, RowProblem, Stylized, Triple
from diffstyler.workers import Workers

log = logging.getLogger(__name__)


FAILURES_NAME = "failures.jsonl"

#: batches whose pictures may be on their way to the disk while the next one is made
BATCHES_UNDER_WAY = 2


class PredictError(RuntimeError):
    """Some pictures could not be made, or a rank ended early; the text says which and why. The others are written."""


class RowsOfRun(Protocol):
    """What is told of a run's rows in the end."""

    triples: Sequence[Triple]
    problems: Sequence[RowProblem]


class StylizationWriter(BasePredictionWriter):
    """Writes ``<id>.png`` and ``<id>.json`` as soon as a batch is done, and the contact sheet at the end.

    Args:
        output_dir: the folder; made if it is not there.
    """

    def __init__(self, output_dir: Path) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = storage.local(output_dir)
        self.farm: Farm = RankFarm()  #: whose rows these are, and who is told what became of them
        self._by_ranks = True
        self.workers = Workers(apart=False)
        self._parted = False
        self._under_way: deque[Future[Stylized | Failed]] = deque()
        self._rows: dict[str, Triple] = {}

    def share(self, farm: Farm) -> None:
        """From now on the rows are this farm's, rather than shared by the ranks."""
        self.farm, self._by_ranks = farm, False

    def is_done(self, id: str, key: str) -> bool:
        """Whether this very picture lies in the folder already, as it was written."""
        sidecar = self._sidecar(id)
        return sidecar.get("key") == key and self._is_whole(id, sidecar)

    def write_on_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        prediction: Sequence[Future[Stylized | Failed]],
        batch_indices: Sequence[int] | None,
        batch: Iterable[Triple],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Pictures are written as they are finished; those of earlier batches than the last ones are waited for."""

        def written(outcome: Future[Stylized | Failed]) -> Stylized | Failed:
            made = outcome.result()
            if isinstance(made, Stylized):
                self.write(made)
            return made

        self._under_way += [self.workers.submit(written, outcome) for outcome in prediction]
        rows = list(batch)
        self._rows |= {triple.id: triple for triple in rows}
        self._settle(BATCHES_UNDER_WAY * len(rows) if self.workers.apart else 0)

    def _settle(self, under_way: int = 0) -> None:
        """Tell what became of pictures, until no more than these are on their way."""
        while len(self._under_way) > under_way or (self._under_way and self._under_way[0].done()):
            made = self._under_way.popleft().result()
            del self._rows[made.id]
            if isinstance(made, Failed):
                self.farm.fail(made.id, made.reason)
            else:
                self.farm.finish(made.id)
        if not self._under_way:  # the rows that are left were there already
            for triple in self._rows.values():
                if self._has(triple.id):
                    self.farm.finish(triple.id)
            self._rows = {}

    def write(self, stylized: Stylized) -> None:
        """Masks and picture first, then the sidecar: it says that its picture is complete, and the picture's hash.

        What was made of this id with other settings is kept under another name.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._keep_former(stylized.id, str(stylized.provenance.get("key")))
        for name, mask in stylized.masks.items():
            path = self.output_dir / name
            own_folder(path.parent)
            save_image(to_pil_image(mask), path)
        sha256 = save_image(to_image(stylized.pixels), self.output_dir / f"{stylized.id}.png")
        text = json.dumps(
            {**stylized.provenance, "result_sha256": sha256}, indent=2, sort_keys=True, ensure_ascii=False
        )
        atomic_write(self.output_dir / f"{stylized.id}.json", (text + "\n").encode())

    def _keep_former(self, id: str, key: str) -> None:
        """A picture of this id that was made otherwise gets a name of its own, ``<id>@<its key>``, with its masks."""
        sidecar = self._sidecar(id)
        other = str(sidecar.get("key"))
        if other == key or not re.fullmatch("[0-9a-f]{64}", other) or not self._is_whole(id, sidecar):
            return
        former = f"{id}@{other[:8]}"
        moves = {f"{id}.png": f"{former}.png"}
        regions = sidecar.get("regions")
        for number, region in enumerate(regions if isinstance(regions, list) else [], start=1):
            old, new = (f"masks/{name}-{number}.png" for name in (id, former))
            if isinstance(region, dict) and region.get("mask_file") == old:
                moves[old] = region["mask_file"] = new
        text = json.dumps({**sidecar, "id": former, "result": f"{former}.png"}, indent=2, sort_keys=True)
        atomic_write(self.output_dir / f"{former}.json", (text + "\n").encode())
        for old, new in reversed(moves.items()):
            if storage.fetch(self.output_dir / old, changes=True).is_file():
                (self.output_dir / old).replace(self.output_dir / new)
                storage.put(self.output_dir / new)
                storage.remove(self.output_dir / old)
        log.info("%s was made otherwise before; that picture is %s now", self.output_dir / f"{id}.png", f"{former}.png")

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self._by_ranks:
            self.farm = RankFarm.of(trainer, self.output_dir / ".ranks")
        if trainer.is_global_zero:
            for folder in ("", "masks", "thumbnails"):
                sweep(self.output_dir / folder)
        self._parted = False

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._part(trainer)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._part(trainer)  # a rank without rows never starts

    def _part(self, trainer: lightning.Trainer) -> None:
        if not self._parted:
            part(trainer)
        self._parted = True

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The first rank reports for all, when the others have ended.

        Raises:
            PredictError: a row of the manifest has no picture.
        """
        self._settle()
        if not self.farm.leads:
            self.farm.close()
            return
        assert isinstance(self.farm, RankFarm)
        told = self.farm.collect()
        self.report(told, trainer.datamodule, ranks_failed=any(exit_codes(trainer)))  # type: ignore[attr-defined]

    def report(self, told: Iterable[Told], data: RowsOfRun, *, ranks_failed: bool = False) -> None:
        """Write the contact sheet and the list of failures of a run that is over.

        Args:
            told: what became of its rows.
            data: all of them.
            ranks_failed: a process of it ended with an error.

        Raises:
            PredictError: a row has no picture.
        """
        origins = {triple.id: triple.origin for triple in data.triples}
        failed = [Failed(row.id, row.origin, str(row)) for row in data.problems]
        reasons = {line.id: line.reason for line in told if line.reason is not None}
        failed += [Failed(id, origin, reasons[id]) for id, origin in origins.items() if id in reasons]
        self.output_dir.mkdir(parents=True, exist_ok=True)
        write_sheet(self.output_dir)
        self._report(failed, origins.keys() | {row.id for row in data.problems})
        known = {line.id for line in failed}
        lost = [id for id in origins if id not in known and not self._has(id)]
        problems = []
        if failed:
            report = self.output_dir / FAILURES_NAME
            named = told_lines([f"  {_line(line)}" for line in failed])
            problems.append(f"{len(failed)} pictures could not be made (see {storage.told(report)}):\n{named}")
        if lost:
            some = ", ".join(lost[:3]) + (", …" if len(lost) > 3 else "")
            problems.append(f"a rank ended early, {len(lost)} pictures are missing ({some}); run the same again")
        if not lost and ranks_failed:
            problems.append("a rank ended with an error after its work was done")
        if problems:
            raise PredictError("\n".join(problems))

    def _report(self, failed: Sequence[Failed], made: Collection[str]) -> None:
        """List what failed, in place of what was said of the same rows before; rows of other manifests stay listed."""
        report = self.output_dir / FAILURES_NAME
        lock = FileLock(self.output_dir / ".failures.lock")
        with lock:
            storage.fetch(report, changes=True)
            others = [old for old in read_json_lines(report) if str(old.get("id")) not in made]
            lines = [*others, *(asdict(line) for line in failed)]
            if lines:
                atomic_write(report, "".join(json.dumps(line) + "\n" for line in lines).encode())
            else:
                storage.remove(report)
            Path(lock.lock_file).unlink(missing_ok=True)

    def _sidecar(self, id: str) -> dict:
        """Of a picture; {} where there is none."""
        try:
            return read_json(storage.fetch(self.output_dir / f"{id}.json", changes=True))
        except (ValueError, OSError):
            return {}

    def _is_whole(self, id: str, sidecar: dict) -> bool:
        picture = self.output_dir / f"{id}.png"
        if not storage.is_there(picture):
            return False
        if storage.is_remote(picture):  # it was put as a whole, before its sidecar
            return True
        if "result_sha256" in sidecar:
            return file_sha256(picture) == sidecar["result_sha256"]
        try:
            load_image(picture)  # made before sidecars had hashes
        except ValueError:
            return False
        return True

    def _has(self, id: str) -> bool:
        return all(storage.is_there(self.output_dir / f"{id}{suffix}") for suffix in (".png", ".json"))


def _line(failed: Failed) -> str:
    place, reason = failed.origin or failed.id, failed.reason
    return reason if reason.startswith(place) else f"{place}: {reason}"
