"""The LoRAs of a run: what is to be fitted, what is there, and what could not be; a farm shares them out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from filelock import FileLock, Timeout

from diffstyler import storage
from diffstyler.adapters import FittedLoRA, LoRALibrary
from diffstyler.farm import Farm, Job, LockFarm
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
        if storage.is_there(self.path):
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
        for line in read_json_lines(storage.fetch(self.path, changes=True)):
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
                storage.remove(self.path)


class JobQueue:
    """The jobs of one run: each is claimed, then finished, failed or left to others.

    Args:
        library: where the LoRAs go.
        jobs: one for each LoRA that is to be there in the end; those with equal identity count once.
        farm: shares them out; by default the library's folder does.
    """

    def __init__(self, library: LoRALibrary, jobs: Sequence[FitJob], farm: Farm | None = None) -> None:
        self.library = library
        self.jobs: dict[str, FitJob] = {}
        for job in jobs:
            self.jobs.setdefault(job.identity.key, job)
        self.failures = FailureLog(library.lora_dir)
        self.farm = farm if farm is not None else LockFarm(library.unfinished, self._note)
        self._finished: dict[str, FittedLoRA] = library.find([job.identity for job in self.jobs.values()])
        self._adopted: set[str] = set()
        self.order(lambda job: job.settings.steps)
        for key in self._finished.keys() & {*self.farm.left()}:  # whoever made it could not tell any more
            self._finish(self.jobs[key])

    def order(self, size: Callable[[FitJob], float], kind: Callable[[FitJob], str] = lambda job: "") -> None:
        """From now on the largest jobs come first; those of one ``kind`` can be fitted side by side."""
        open_jobs = [job for key, job in self.jobs.items() if key not in self._finished]
        work = [Job(job.identity.key, size(job), kind(job)) for job in open_jobs]
        self.farm.offer(sorted(work, key=lambda job: -job.size))

    @property
    def waiting(self) -> list[FitJob]:
        """Not known to be finished or failed, and not claimed here; the largest first."""
        known = self._finished.keys() | self._adopted
        return [self.jobs[key] for key in self.farm.left() if key not in known]

    @property
    def finished(self) -> list[FittedLoRA]:
        """The LoRAs that are known to be there, whoever fitted them."""
        return [self._finished[key] for key in self.jobs if key in self._finished]

    def claim(self, kinds: Collection[str] = ()) -> FitJob | None:
        """The next job that nobody works on, of these kinds or of any, from now on this process's own; None if there
        is none now."""
        while keys := self.farm.claim(kinds):
            job = self.jobs[keys[0]]
            if not self._settled(job):
                return job
            self._finish(job)
        return None

    def notice(self) -> None:
        """Find out which of the waiting jobs other processes have finished."""
        self._finished.update(self.library.find([job.identity for job in self.waiting]))

    def adopt(self, key: str) -> FitJob:
        """Take part in a job that another rank of the same team has claimed."""
        self._adopted.add(key)
        return self.jobs[key]

    def publish(
        self, job: FitJob, write: Callable[[Path], None], history: Sequence[str] = (), steps_taken: int | None = None
    ) -> FittedLoRA:
        """Put a claimed job's LoRA, which ``write`` writes into a folder, into the library."""
        entry = self.library.publish(job.identity, write, history, steps_taken)
        self._finished[job.identity.key] = entry
        self.farm.finish(job.identity.key)
        return entry

    def fail(self, job: FitJob, reason: str) -> None:
        """Give a claimed job up: no process of this run tries it again."""
        self.library.forget_state(job.identity)
        self.farm.fail(job.identity.key, reason)

    def failed(self) -> list[Failure]:
        """The jobs of this run that were given up, whoever tried them."""
        return [failure for failure in self.failures.of_this_run() if failure.key in self.jobs]

    def close(self) -> None:
        """Leave what is claimed and not finished to others."""
        self.farm.close()

    def _finish(self, job: FitJob) -> None:
        """What another process has done; that may have left a state when it was stopped."""
        self.library.forget_state(job.identity)
        self.farm.finish(job.identity.key)

    def _note(self, key: str, reason: str) -> None:
        job = self.jobs[key]
        self.failures.add(Failure(key, job.identity.role, str(job.picture.paths[0]), reason))

    def _settled(self, job: FitJob) -> bool:
        """Whether another process finished or failed the job; only asked of a job that is claimed."""
        if entry := self.library.get(job.identity):
            self._finished[job.identity.key] = entry
        return entry is not None or any(f.key == job.identity.key for f in self.failures.of_this_run())
