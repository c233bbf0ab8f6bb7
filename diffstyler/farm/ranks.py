"""Rows of a manifest, dealt to the ranks of a run; what became of each, told to the first one."""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from diffstyler.farm.base import POLL_SECONDS, Farm, Job, Told

if TYPE_CHECKING:
    import lightning


class RankFarm(Farm):
    """Rows dealt to the ranks, each a piece of equal length; what became of each is told to the first rank by a file.

    Ranks that communicate wait for each other, and hang or time out when one is slow or gone. A file lock needs
    neither: the kernel frees it when its holder ends, however it ends.

    Args:
        folder: that all ranks see; it is made where there are several. None = nobody asks what became of the rows.
        run: names this run among others over the same folder; the same in all ranks.
        rank: of this process.
        ranks: how many there are.
    """

    def __init__(self, folder: Path | None = None, run: str = "", rank: int = 0, ranks: int = 1) -> None:
        self.folder = folder if ranks > 1 else None
        self.run, self.rank, self.ranks = run, rank, ranks
        self.leads = rank == 0
        self._left: deque[str] = deque()
        self._told: list[Told] = []
        self._read: dict[int, int] = {}  # bytes, of each rank's file
        self._heard: list[Told] = []
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._file(rank, "lock"))
            self._lock.acquire()

    @classmethod
    def of(cls, trainer: lightning.Trainer, folder: Path) -> RankFarm:
        """This run's; every rank calls it before it parts from the others."""
        run = trainer.strategy.broadcast(secrets.token_hex(8))
        if trainer.is_global_zero:
            sweep_ranks(folder)
        return cls(folder, run, trainer.global_rank, trainer.world_size)

    def offer(self, jobs: Sequence[Job]) -> None:
        start, stop = (-(-len(jobs) * r // self.ranks) for r in (self.rank, self.rank + 1))  # the first rank has a row
        self._left = deque(job.key for job in jobs[start:stop])

    def claim(self, kinds: Collection[str] = (), most: int = 1) -> list[str]:
        return [self._left.popleft() for _ in range(min(most, len(self._left)))]

    def finish(self, key: str) -> None:
        self._tell(Told(key))

    def fail(self, key: str, reason: str) -> None:
        self._tell(Told(key, reason))

    def left(self) -> list[str]:
        return list(self._left)

    def close(self) -> None:
        """This rank has nothing more to tell."""
        if self.folder is not None:
            self._lock.release()

    def _tell(self, told: Told) -> None:
        self._told.append(told)
        if self.rank > 0 and self.folder is not None:
            with self._file(self.rank, "jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(told)) + "\n")

    def collect(self) -> list[Told]:
        """Wait until every other rank has closed or ended -> what all of them told; only the first rank asks."""
        told = [*self._told, *(line for rank in range(1, self.ranks) for line in self._collect_from(rank))]
        self.close()
        if self.folder is not None:
            sweep_ranks(self.folder)
        return told

    def so_far(self) -> list[Told]:
        """What all ranks have told by now; only the first rank asks."""
        for rank in range(1, self.ranks):
            with suppress(OSError), self._file(rank, "jsonl").open("rb") as file:
                file.seek(self._read.get(rank, 0))
                text = file.read()
                whole = text[: text.rfind(b"\n") + 1]
                self._read[rank] = self._read.get(rank, 0) + len(whole)
                self._heard += [Told(**json.loads(line)) for line in whole.splitlines()]
        return [*self._told, *self._heard]

    def _collect_from(self, rank: int) -> Iterator[Told]:
        with FileLock(self._file(rank, "lock")).acquire(poll_interval=POLL_SECONDS):
            path = self._file(rank, "jsonl")
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
            whole = [line for line in lines if line.endswith("\n")]  # a killed rank may leave a part of one
        return (Told(**json.loads(line)) for line in whole)

    def _file(self, rank: int, kind: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.run}-{rank}.{kind}"


def sweep_ranks(folder: Path) -> None:
    """Remove what runs have left in a farm's folder that ended, however they did, and the folder when it is empty."""
    for run in {path.name.rpartition("-")[0] for path in folder.glob("*-*.*")}:
        with ExitStack() as held, suppress(Timeout):  # what is locked belongs to a run that goes on
            for path in folder.glob(f"{run}-*.lock"):
                held.enter_context(FileLock(path).acquire(blocking=False))
            for path in folder.glob(f"{run}-*.*"):
                path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
