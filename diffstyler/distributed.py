"""Processes of one run: those that work apart tell each other through files alone what they did; a team works as one.

Ranks that communicate wait for each other, and hang or time out when one is slow or gone. A file lock needs neither:
the kernel frees it when its holder ends, however it ends.
"""

from __future__ import annotations

import json
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import Popen
from types import FrameType
from typing import TypeVar

import lightning
import torch
from filelock import FileLock, Timeout
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.utilities.exceptions import SIGTERMException

#: how often a process that has nothing to do looks whether others left it something
POLL_SECONDS = 0.2
T = TypeVar("T")


def part(trainer: lightning.Trainer) -> None:
    """From here on no rank waits for another, nor dies with one: the first tells in the end which ended early."""
    trainer.strategy.barrier("part")
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []  # else it kills all where one has died, and nobody tells why
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # Lightning would otherwise communicate before every step


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what runs inside at once, such as a compilation of minutes, where Lightning, which is told of it
    first, waits for the step's end."""

    def end(signum: int, frame: FrameType | None) -> None:
        if callable(before):
            before(signum, frame)
        raise SIGTERMException

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_codes(trainer: lightning.Trainer) -> list[int]:
    """Wait for the ranks that this process has started -> their exit codes; none where something else started them."""
    processes: list[Popen] = getattr(trainer.strategy.launcher, "procs", [])
    return [process.wait() for process in processes]


@dataclass(frozen=True)
class Team:
    """Ranks that do one thing together: each takes its share of a step's rows, and what they compute is summed.

    They communicate in every step: where one ends, the others end with an error.
    """

    rank: int = 0
    size: int = 1

    @property
    def share(self) -> slice:
        """This rank's rows."""
        return slice(self.rank, None, self.size)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Over all ranks, in place; bitwise the same in each."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def agree(self, value: T) -> T:
        """What the first rank says."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


@dataclass(frozen=True)
class Told:
    """What became of one row of a manifest: a picture, or the ``reason`` why not."""

    id: str
    origin: str = ""
    reason: str | None = None


class Tally:
    """What became of every row of a run. Each rank adds what it did; the first one reads what all of them did.

    Args:
        folder: that all ranks see.
        run: names this run among others over the same folder; the same in all ranks.
        rank: of this process.
        ranks: how many there are.
    """

    def __init__(self, folder: Path, run: str, rank: int, ranks: int) -> None:
        self.folder = folder
        self.run, self.rank, self.ranks = run, rank, ranks
        self._told: list[Told] = []
        if ranks > 1:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._file(rank, "lock"))
            self._lock.acquire()

    @classmethod
    def of(cls, trainer: lightning.Trainer, folder: Path) -> Tally:
        """This run's; every rank calls it before it parts from the others."""
        run = trainer.strategy.broadcast(secrets.token_hex(8))
        if trainer.is_global_zero:
            sweep_ranks(folder)
        return cls(folder, run, trainer.global_rank, trainer.world_size)

    def add(self, told: Told) -> None:
        self._told.append(told)
        if self.rank > 0:
            with self._file(self.rank, "jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(told)) + "\n")

    def close(self) -> None:
        """This rank has nothing more to tell."""
        if self.ranks > 1:
            self._lock.release()

    def collect(self) -> list[Told]:
        """Wait until every other rank has closed or ended -> what all of them told; only the first rank asks."""
        told = [*self._told, *(line for rank in range(1, self.ranks) for line in self._collect_from(rank))]
        self.close()
        if self.ranks > 1:
            sweep_ranks(self.folder)
        return told

    def _collect_from(self, rank: int) -> Iterator[Told]:
        with FileLock(self._file(rank, "lock")).acquire(poll_interval=POLL_SECONDS):
            path = self._file(rank, "jsonl")
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
            whole = [line for line in lines if line.endswith("\n")]  # a killed rank may leave a part of one
        return (Told(**json.loads(line)) for line in whole)

    def _file(self, rank: int, kind: str) -> Path:
        return self.folder / f"{self.run}-{rank}.{kind}"


def sweep_ranks(folder: Path) -> None:
    """Remove what runs have left in a tally's folder that ended, however they did, and the folder when it is empty."""
    for run in {path.name.rpartition("-")[0] for path in folder.glob("*-*.*")}:
        with ExitStack() as held, suppress(Timeout):  # what is locked belongs to a run that goes on
            for path in folder.glob(f"{run}-*.lock"):
                held.enter_context(FileLock(path).acquire(blocking=False))
            for path in folder.glob(f"{run}-*.*"):
                path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
