"""Processes that share a folder, as every run does by itself, and one page that tells how far all of them are."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffstyler.errors import DiffstylerError
from diffstyler.farm.base import Job
from diffstyler.farm.ledger import WINDOW, Counts
from diffstyler.farm.status import EVERY, Status

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What the folder says: keys that are done, what was given up and why, and how many jobs somebody has."""

    finished: Set[str]
    failures: Mapping[str, str]
    running: int


class Tally:
    """How far a run is, by what its folder says from time to time.

    Args:
        jobs: all there is to do.
        look: reads the folder.
        clock: seconds.
    """

    def __init__(
        self, jobs: Sequence[Job], look: Callable[[], Seen], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sizes = {job.key: job.size for job in jobs}
        self._look, self._clock = look, clock
        self._history: deque[tuple[float, float]] = deque()  # when, and how much was left then

    def counts(self) -> Counts:
        """Of now. The rate is that of the last ten minutes, from the first look on: what was there then counts not."""
        seen = self._look()
        finished = self._sizes.keys() & seen.finished
        failures = {key: why for key, why in seen.failures.items() if key in self._sizes and key not in finished}
        waiting = self._sizes.keys() - finished - failures.keys()
        left, now = sum(self._sizes[key] for key in waiting), self._clock()
        while len(self._history) > 1 and self._history[0][0] < now - WINDOW:
            self._history.popleft()
        self._history.append((now, left))
        began, was_left = self._history[0]
        running = min(seen.running, len(waiting))
        return Counts(
            jobs=len(self._sizes),
            finished=len(finished),
            running=running,
            waiting=len(waiting) - running,
            failures=failures,
            left=left,
            rate=(was_left - left) / (now - began) if was_left > left and now > began else None,
        )


class FolderFarm:
    """Processes on one machine or several that share a folder, as without a farm; a page says how far they are.

    Args:
        name: of the page, where several runs write into one folder: ``farm-NAME.json`` in place of ``farm.json``.
        port: where Prometheus finds the same, on this machine alone; None = nowhere.
    """

    def __init__(self, *, name: str = "", port: int | None = None) -> None:
        if set(name) & set("/\\\0"):
            raise DiffstylerError(f"farm.name: expected a part of a file's name, got {name!r}")
        if port is not None and port < 1:
            raise DiffstylerError(f"farm.port: expected a number above 0, got {port}")
        self.name, self.port = name, port

    @contextmanager
    def watched(
        self, folder: Path, what: str, jobs: Sequence[Job], look: Callable[[], Seen], workers: int
    ) -> Iterator[None]:
        """Inside, the page is written every two seconds, and once more in the end.

        Args:
            folder: where it goes.
            what: the jobs are, such as "pictures".
            jobs: all of them.
            look: says what is settled; called in a thread.
            workers: processes of this run.
        """
        tally, ended = Tally(jobs, look), threading.Event()
        with Status(folder, what, self.port, name=self.name) as status:

            def write(workers: int) -> None:
                try:
                    status(tally.counts(), workers)
                except OSError as error:  # a page is a comfort, not a need
                    log.debug("the farm's page: %s", error)

            def keep() -> None:
                write(workers)
                while not ended.wait(EVERY):
                    write(workers)

            thread = threading.Thread(target=keep, daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                status.due()
                write(0)
