"""What the processes of a run that share work ask: what is mine to do, and who is told what became of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

#: how often a process that has nothing to do looks whether others left it something
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do, named by its ``key``.

    ``size``: how much work it is beside the others; ``kind``: jobs of one kind can be done side by side.
    """

    key: str
    size: float = 1.0
    kind: str = ""


@dataclass(frozen=True)
class Told:
    """What became of the job of this ``id``: it is done, or the ``reason`` why not."""

    id: str
    reason: str | None = None


class Farm(ABC):
    """The jobs of a run, each claimed by one process alone, which then finishes or fails it, or leaves it to others.

    A process that ends, however it ends, leaves what it has claimed.
    """

    #: whether this process stays until all is done, and tells in the end what became of all
    leads: bool = True

    @abstractmethod
    def offer(self, jobs: Sequence[Job]) -> None:
        """All there is to do, what comes first first; every process of a run offers the same."""

    @abstractmethod
    def claim(self, kinds: Collection[str] = (), most: int = 1) -> list[str]:
        """The next jobs that nobody has, of these kinds or of any, from now on this process's own; none where there
        are none now."""

    @abstractmethod
    def finish(self, key: str) -> None:
        """A claimed job is done."""

    @abstractmethod
    def fail(self, key: str, reason: str) -> None:
        """A claimed job is given up: no process of this run tries it again."""

    @abstractmethod
    def left(self) -> list[str]:
        """What this process has not claimed and does not know to be settled, in order."""

    def count_left(self) -> int:
        """How many these are."""
        return len(self.left())

    @abstractmethod
    def close(self) -> None:
        """Leave what is claimed and not settled to others."""
