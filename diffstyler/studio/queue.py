"""What people ask for in, what the worker makes of it out: a queue in one SQLite file that outlives both of them."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from diffstyler.errors import DiffstylerError

Kind = Literal["restyle", "compare", "fit"]
State = Literal["waiting", "running", "done", "failed", "cancelled"]

#: who is served first: somebody waits for a picture, fits take long and go on where they were
KINDS: tuple[Kind, ...] = ("restyle", "compare", "fit")
OPEN: tuple[State, ...] = ("waiting", "running")
#: workers that may die of a job before it is given up
MOST_TRIES = 3
#: seconds that one process waits for another's write
PATIENCE = 30

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
  id TEXT PRIMARY KEY, session TEXT NOT NULL, kind TEXT NOT NULL, request TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'waiting', asked_to_end INTEGER NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0,
  done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '',
  result TEXT NOT NULL DEFAULT '{}', created REAL NOT NULL, started REAL, ended REAL);
CREATE TABLE IF NOT EXISTS losses (job TEXT, step INTEGER, loss REAL, PRIMARY KEY (job, step));
"""


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Args:
        id: 32 hexadecimal digits that nobody guesses; names the job's folder.
        session: whose it is.
        kind: what is to be done.
        request: how, as plain JSON values.
        state: how far it is.
        asked_to_end: somebody wants a running one to end.
        tries: workers that took it.
        done: steps of ``total``, of what ``note`` says.
        total: of the present part of the work; 0 = not known.
        note: what is being done, or why it failed.
        result: what came of it, as plain JSON values.
        created: when it was asked for, in seconds since 1970; so ``started``, of its present part, and ``ended``.
    """

    id: str
    session: str
    kind: Kind
    request: dict
    state: State
    asked_to_end: bool
    tries: int
    done: int
    total: int
    note: str
    result: dict
    created: float
    started: float | None
    ended: float | None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    @property
    def seconds_left(self) -> float | None:
        """Of what ``note`` says, by the time that its steps took so far; None while that is not known."""
        if self.state != "running" or self.started is None or not 0 < self.done <= self.total:
            return None
        return (time.time() - self.started) / self.done * (self.total - self.done)


class JobQueue:
    """The jobs in one file, for any number of processes and threads.

    Args:
        path: the SQLite file; made if it is not there.

    Raises:
        DiffstylerError: it is no queue.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._open() as db:
                db.execute("PRAGMA journal_mode=WAL")
                db.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise DiffstylerError(
                f"{path}: expected the queue of a studio, but reading it failed ({error}); name another folder"
            ) from error

    # ---- who asks

    def submit(self, kind: Kind, session: str, request: Mapping[str, object]) -> Job:
        """Put a job at the end of the queue."""
        return self.submit_all(kind, session, [request])[0]

    def submit_all(self, kind: Kind, session: str, requests: Sequence[Mapping[str, object]]) -> list[Job]:
        """Put jobs at the end of the queue, all at once: no worker sees some of them."""
        ids = [secrets.token_hex(16) for _ in requests]
        with self._open() as db:
            db.executemany(
                "INSERT INTO jobs (id, session, kind, request, created) VALUES (?, ?, ?, ?, ?)",
                [(id, session, kind, json.dumps(r), time.time()) for id, r in zip(ids, requests, strict=True)],
            )
        return [self.get(id) for id in ids]

    def get(self, id: str) -> Job:
        """Raises: DiffstylerError: there is no such job."""
        jobs = self._jobs("id = ?", id)
        if not jobs:
            raise DiffstylerError(f"there is no job {id}; was the folder of the studio emptied?")
        return jobs[0]

    def latest(self, kind: Kind, session: str) -> Job | None:
        """What this session asked for last."""
        return next(iter(self._jobs("kind = ? AND session = ?", kind, session, order="created DESC LIMIT 1")), None)

    def all(self, kind: Kind) -> list[Job]:
        """Of every session, the oldest first."""
        return self._jobs("kind = ?", kind)

    def before(self, job: Job) -> int:
        """How many are to be served before a waiting one."""
        rank = KINDS.index(job.kind)
        others = self._jobs("state IN ('waiting', 'running') AND id != ?", job.id)
        return sum((KINDS.index(other.kind), other.created) < (rank, job.created) for other in others)

    def cancel(self, id: str) -> None:
        """A waiting job is over; a running one is asked to end, and does at its next step."""
        with self._open() as db:
            now = time.time()
            db.execute("UPDATE jobs SET state = 'cancelled', ended = ? WHERE id = ? AND state = 'waiting'", (now, id))
            db.execute("UPDATE jobs SET asked_to_end = 1 WHERE id = ? AND state = 'running'", (id,))

    def forget(self, kind: Kind) -> None:
        """Take what is over off the list."""
        with self._open() as db:
            db.execute("DELETE FROM jobs WHERE kind = ? AND state NOT IN ('waiting', 'running')", (kind,))
            db.execute("DELETE FROM losses WHERE job NOT IN (SELECT id FROM jobs)")

    def losses(self, id: str) -> list[tuple[int, float]]:
        """(step, loss) of a fit, in order."""
        with self._open() as db:
            return list(db.execute("SELECT step, loss FROM losses WHERE job = ? ORDER BY step", (id,)))

    # ---- who works

    def recover(self) -> None:
        """What the worker before this one left is waiting again; what several died of is given up."""
        with self._open() as db:
            told = f"{MOST_TRIES} workers ended on it; the log of the studio says more"
            db.execute(
                "UPDATE jobs SET state = 'failed', note = ?, ended = ? WHERE state = 'running' AND tries >= ?",
                (told, time.time(), MOST_TRIES),
            )
            db.execute("UPDATE jobs SET state = 'cancelled' WHERE state = 'running' AND asked_to_end")
            db.execute("UPDATE jobs SET state = 'waiting' WHERE state = 'running'")

    def interrupted(self, note: str) -> None:
        """Whoever ran these jobs has ended; what is seen of them until the next one takes over."""
        with self._open() as db:
            db.execute("UPDATE jobs SET note = ?, done = 0, total = 0 WHERE state = 'running'", (note,))

    def claim(self, together: int = 1) -> list[Job]:
        """The next job, from now on running; of fits that differ by their pictures alone up to ``together``."""
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            ranks = " ".join(f"WHEN '{kind}' THEN {rank}" for rank, kind in enumerate(KINDS))
            waiting = self._jobs("state = 'waiting'", order=f"CASE kind {ranks} END, created", db=db)
            if not waiting:
                return []
            first = waiting[0]
            alike = [job for job in waiting if job.kind == "fit" and _settings(job) == _settings(first)]
            distinct: dict[str, Job] = {}
            for job in alike:
                distinct.setdefault(job.request["picture"], job)
            taken = list(distinct.values())[:together] if first.kind == "fit" else [first]
            for job in taken:
                db.execute(
                    "UPDATE jobs SET state = 'running', tries = tries + 1, done = 0, total = 0, started = ?, note = '' "
                    "WHERE id = ?",
                    (time.time(), job.id),
                )
        return [self.get(job.id) for job in taken]

    def begin(self, id: str, note: str) -> None:
        """A part of the work begins."""
        self._update(id, note=note, done=0, total=0, started=time.time())

    def progress(self, id: str, done: int, total: int) -> None:
        self._update(id, done=done, total=total)

    def add_loss(self, id: str, step: int, loss: float) -> None:
        with self._open() as db:
            db.execute("INSERT OR REPLACE INTO losses VALUES (?, ?, ?)", (id, step, loss))

    def show(self, id: str, **result: object) -> None:
        """Add to what came of a job so far."""
        self._update(id, result=json.dumps({**self.get(id).result, **result}))

    def finish(self, id: str, **result: object) -> None:
        self.show(id, **result)
        self._update(id, state="done", ended=time.time(), note="")

    def fail(self, id: str, reason: str) -> None:
        self._update(id, state="failed", ended=time.time(), note=reason)

    def end(self, id: str) -> None:
        """It was asked to."""
        self._update(id, state="cancelled", ended=time.time(), note="")

    def put_back(self, id: str) -> None:
        """It waits again; nothing is wrong with it."""
        with self._open() as db:
            db.execute("UPDATE jobs SET state = 'waiting', tries = tries - 1 WHERE id = ?", (id,))

    def is_asked_to_end(self, id: str) -> bool:
        with self._open() as db:
            return bool(db.execute("SELECT asked_to_end FROM jobs WHERE id = ?", (id,)).fetchone()[0])

    def somebody_waits(self, kind: Kind) -> bool:
        """Whether a job waits that is to be served before those of this kind."""
        first = KINDS[: KINDS.index(kind)]
        return bool(self._jobs(f"state = 'waiting' AND kind IN ({', '.join('?' * len(first))})", *first))

    # ---- the file

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """What is done inside is done as a whole."""
        db = sqlite3.connect(self.path, timeout=PATIENCE)
        try:
            db.execute("PRAGMA synchronous=NORMAL")
            with db:
                yield db
        finally:
            db.close()

    def _jobs(
        self, where: str, *values: object, order: str = "created", db: sqlite3.Connection | None = None
    ) -> list[Job]:
        names = [field.name for field in fields(Job)]
        text = f"SELECT {', '.join(names)} FROM jobs WHERE {where} ORDER BY {order}"
        if db is not None:
            return [_job(dict(zip(names, row, strict=True))) for row in db.execute(text, values)]
        with self._open() as own:
            return self._jobs(where, *values, order=order, db=own)

    def _update(self, id: str, **values: object) -> None:
        with self._open() as db:
            names = ", ".join(f"{name} = ?" for name in values)
            db.execute(f"UPDATE jobs SET {names} WHERE id = ?", (*values.values(), id))


def _job(row: dict) -> Job:
    row["request"], row["result"] = json.loads(row["request"]), json.loads(row["result"])
    row["asked_to_end"] = bool(row["asked_to_end"])
    return Job(**row)


def _settings(job: Job) -> dict:
    return {name: value for name, value in job.request.items() if name not in PICTURES}


#: what of a fit's request says which picture it is of
PICTURES: Sequence[str] = ("picture", "name")
