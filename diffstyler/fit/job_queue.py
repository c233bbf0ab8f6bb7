"""The LoRAs of a run, shared through the library's folder by every process that works on it.

Each job has a lock file that the kernel frees when its holder ends, however it ends. Whoever holds the lock works on
the job; nothing else is exchanged between processes, ranks or nodes (which must see the same file system).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from filelock import FileLock, Timeout

from diffstyler.adapters import FittedLoRA, LoRALibrary
from diffstyler.files import atomic_write, read_json_lines
from diffstyler.fit.jobs import FitJob

log = logging.getLogger(__name__)

FAILURES_NAME = "failures.jsonl"


@dataclass(frozen=True)
class Failure:
    """A LoRA that could not be fitted: the ``key`` of its identity, its role and picture, why, and in which run."""

    key: str
    role: str
    picture: str
    reason: str
    run: str = ""


class FailureLog:
    """``failures.jsonl`` of a library: one line for each LoRA that a run could not fit; absent when there is none.

    A run's lines are its own: no other run removes them while it goes on.
    """

    def __init__(self, lora_dir: Path) -> None:
        self.path = lora_dir / FAILURES_NAME
        self.run = ""
        self._folder = lora_dir / ".unfinished"
        self._alive: FileLock | None = None

    def begin(self, run: str, roles: set[str]) -> None:
        """Lead a run: what failed over pictures of these roles in runs that have ended is forgotten."""
        self.end()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.run, self._alive = run, FileLock(self._file(run))
        self._alive.acquire()
        going_on = {file.stem for file in self._folder.glob("run-*.lock") if not self._sweep(file)}
        if self.path.is_file():
            self._rewrite(lambda old: [f for f in old if f.role not in roles or self._file(f.run).stem in going_on])

    def end(self) -> None:
        """The run is over, and has told its failures."""
        if self._alive is not None:
            self._file(self.run).unlink(missing_ok=True)
            self._alive.release()
        self._alive = None

    def read(self) -> list[Failure]:
        """Of all runs; lines that are none are left out, with a warning."""
        failures = []
        for line in read_json_lines(self.path):
            if {"key", "role", "picture", "reason"} <= line.keys() and all(isinstance(v, str) for v in line.values()):
                failures.append(Failure(**{field.name: line.get(field.name, "") for field in fields(Failure)}))
            else:
                log.warning("%s: a line is damaged: expected a LoRA that failed; left out", self.path)
        return failures

    def of_this_run(self) -> list[Failure]:
        return [failure for failure in self.read() if failure.run == self.run]

    def add(self, failure: Failure) -> None:
        """In place of what this run said of the same LoRA before."""
        own = replace(failure, run=self.run)
        self._rewrite(lambda old: [*(f for f in old if (f.key, f.run) != (own.key, own.run)), own])

    def _file(self, run: str) -> Path:
        """What the leader of a run keeps locked as long as it goes on."""
        return self._folder / f"run-{run}.lock"

    def _sweep(self, file: Path) -> bool:
        """Whether the run has ended."""
        try:
            with FileLock(file).acquire(blocking=False):
                file.unlink(missing_ok=True)
        except Timeout:
            return False
        return True

    def _rewrite(self, change: Callable[[list[Failure]], list[Failure]]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "failures.lock"):
            lines = [json.dumps(asdict(failure), ensure_ascii=False) + "\n" for failure in change(self.read())]
            if lines:
                atomic_write(self.path, "".join(lines).encode())
            else:
                self.path.unlink(missing_ok=True)


class JobQueue:
    """The jobs of one run: each is claimed, then finished, failed or left to others.

    Args:
        library: where the LoRAs go.
        jobs: one for each LoRA that is to be there in the end; those with equal identity count once.
    """

    def __init__(self, library: LoRALibrary, jobs: Sequence[FitJob]) -> None:
        self.library = library
        self.jobs: dict[str, FitJob] = {}
        for job in jobs:
            self.jobs.setdefault(job.identity.key, job)
        self.failures = FailureLog(library.lora_dir)
        there = library.find([job.identity for job in self.jobs.values()])
        self._finished: dict[str, FittedLoRA] = there
        waiting = [job for job in self.jobs.values() if job.identity.key not in there]
        #: neither finished, failed nor claimed here; the longest first
        self.waiting = sorted(waiting, key=lambda job: -job.settings.steps)
        self._locks: dict[str, FileLock] = {}

    @property
    def finished(self) -> list[FittedLoRA]:
        """The LoRAs that are known to be there, whoever fitted them."""
        return [self._finished[key] for key in self.jobs if key in self._finished]

    def claim(self, wanted: Callable[[FitJob], bool] = lambda job: True) -> FitJob | None:
        """The next wanted job that nobody works on, from now on this process's own; None if there is none now."""
        for job in filter(wanted, list(self.waiting)):
            lock = FileLock(self.library.lock_file(job.identity))
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            self.waiting.remove(job)
            self._locks[job.identity.key] = lock
            if not self._settled(job):
                return job
            self._unlock(job)
        return None

    def order(self, size: Callable[[FitJob], float]) -> None:
        """From now on the largest jobs come first."""
        self.waiting.sort(key=lambda job: -size(job))

    def notice(self) -> None:
        """Find out which of the waiting jobs other processes have finished."""
        there = self.library.find([job.identity for job in self.waiting])
        self._finished.update(there)
        self.waiting = [job for job in self.waiting if job.identity.key not in there]

    def adopt(self, key: str) -> FitJob:
        """Take part in a job that another rank of the same team has claimed."""
        job = self.jobs[key]
        self.waiting = [other for other in self.waiting if other is not job]
        return job

    def publish(
        self, job: FitJob, write: Callable[[Path], None], history: Sequence[str] = (), steps_taken: int | None = None
    ) -> FittedLoRA:
        """Put a claimed job's LoRA, which ``write`` writes into a folder, into the library."""
        entry = self.library.publish(job.identity, write, history, steps_taken)
        self._finished[job.identity.key] = entry
        self._unlock(job)
        return entry

    def fail(self, job: FitJob, reason: str) -> None:
        """Give a claimed job up: no process of this run tries it again."""
        identity = job.identity
        self.failures.add(Failure(identity.key, identity.role, str(job.picture.paths[0]), reason))
        self.library.forget_state(identity)
        self._unlock(job)

    def failed(self) -> list[Failure]:
        """The jobs of this run that were given up, whoever tried them."""
        return [failure for failure in self.failures.of_this_run() if failure.key in self.jobs]

    def close(self) -> None:
        """Leave what is claimed and not finished to others."""
        for lock in self._locks.values():
            lock.release()
        self._locks = {}

    def _unlock(self, job: FitJob) -> None:
        """Whoever locks a settled job from now on finds that out, under whichever file."""
        self.library.lock_file(job.identity).unlink(missing_ok=True)
        self._locks.pop(job.identity.key).release()

    def _settled(self, job: FitJob) -> bool:
        """Whether another process finished or failed the job; only asked under its lock."""
        if entry := self.library.get(job.identity):
            self._finished[job.identity.key] = entry
        return entry is not None or any(f.key == job.identity.key for f in self.failures.of_this_run())
