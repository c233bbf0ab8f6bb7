"""Processes of one run: those that work apart part, and share the work by a farm; a team works as one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import Popen
from types import FrameType
from typing import TypeVar

import lightning
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.utilities.exceptions import SIGTERMException

T = TypeVar("T")

#: signals upon which a run is ended, or its state is kept
_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


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


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals wait until what runs inside is done: short work that must not be left halfway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {signum: signal.signal(signum, lambda signum, frame: came.append(signum)) for signum in _ENDING}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        for signum in dict.fromkeys(came):
            signal.raise_signal(signum)


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
