"""How far a farm is, for people and machines: a JSON file that is rewritten while it runs, and text for Prometheus."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffstyler.errors import MOST_TOLD, DiffstylerError
from diffstyler.farm.ledger import Counts
from diffstyler.files import atomic_write

STATUS_NAME = "farm.json"
#: seconds between two writings
EVERY = 2.0
GAUGES = {
    "jobs": "jobs in all",
    "finished": "jobs that are done",
    "failed": "jobs that were given up",
    "running": "jobs that a worker has",
    "waiting": "jobs that nobody has",
    "workers": "workers that were started and have not ended",
    "rate": "work a second over the last ten minutes, in the unit of the jobs' sizes",
    "seconds_left": "at this rate",
}


@dataclass(eq=False)
class Status:
    """Is told how far a farm is and writes it down.

    Args:
        folder: where ``farm.json`` goes.
        what: the jobs are, such as "pictures".
        port: of Prometheus, on this machine alone; None = nowhere.
        show: is given the one line.
        name: of the file among others, ``farm-NAME.json``; "" = ``farm.json``.
    """

    folder: Path
    what: str
    port: int | None = None
    show: Callable[[str], None] = lambda line: None
    name: str = ""
    _gauges: dict[str, Any] = field(default_factory=dict)
    _server: Any = None
    _began: float = field(default_factory=time.time)
    _written: float = 0.0

    def __enter__(self) -> Status:
        """Raises: DiffstylerError: the port is taken, or there is no prometheus_client."""
        if self.port is not None:
            try:
                from prometheus_client import CollectorRegistry, Gauge, start_http_server
            except ImportError as error:
                raise DiffstylerError("farm.port: needs prometheus_client; install diffstyler[ray]") from error
            registry = CollectorRegistry()
            self._gauges = {
                name: Gauge(f"diffstyler_farm_{name}", text, registry=registry) for name, text in GAUGES.items()
            }
            try:
                self._server, _ = start_http_server(self.port, addr="127.0.0.1", registry=registry)
            except OSError as error:
                raise DiffstylerError(f"farm.port {self.port}: expected a port that is free, got: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def due(self) -> None:
        """The file is written with the next call."""
        self._written = 0.0

    def __call__(self, counts: Counts, workers: int) -> None:
        """So far it is now; the file is written every two seconds, and in the end."""
        told = {
            "jobs": counts.jobs,
            "finished": counts.finished,
            "failed": len(counts.failures),
            "running": counts.running,
            "waiting": counts.waiting,
            "workers": workers,
            "rate": counts.rate,
            "seconds_left": counts.seconds_left,
        }
        for name, gauge in self._gauges.items():
            gauge.set(float("nan") if told[name] is None else told[name])
        self.show(line(self.what, told))
        now = time.time()
        if now - self._written < EVERY and counts.open:
            return
        self._written = now
        failures = [{"key": key, "reason": reason} for key, reason in list(counts.failures.items())[:MOST_TOLD]]
        page = {"what": self.what, "began": self._began, "written": now, **told, "failures": failures}
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / (f"farm-{self.name}.json" if self.name else STATUS_NAME)
        atomic_write(file, (json.dumps(page, indent=2, ensure_ascii=False) + "\n").encode())


def line(what: str, told: dict[str, Any]) -> str:
    """Such as ``pictures 12/200, 1 failed, 8 running on 3 workers, 2 min left``."""
    failed = f", {told['failed']} failed" if told["failed"] else ""
    seconds = told["seconds_left"]
    left = "" if seconds is None else f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"
    done = told["finished"] + told["failed"]
    return f"{what} {done}/{told['jobs']}{failed}, {told['running']} running on {told['workers']} workers{left}"
