"""Work shared over the nodes of a Ray cluster, which may come and go: an actor for each place, all asking one ledger.

Plain actors rather than Ray Data: each runs the very program that one process runs, which reads ahead, encodes beside
the device and tells what became of each row. Ray Data would fail the whole job on one exception, cannot start an actor
again with half the batch, and hangs where actors take every CPU.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from diffstyler import storage
from diffstyler.errors import DiffstylerError
from diffstyler.farm.base import Farm, Job, Told
from diffstyler.farm.ledger import Counts, Ledger

if TYPE_CHECKING:
    from ray.actor import ActorHandle

log = logging.getLogger(__name__)

#: seconds between two looks at the workers
TICK = 1.0
#: bytes of Ray's object store where Ray is started here: what is sent are rows, not pictures
OBJECT_STORE = 200 << 20
#: workers in a row that may end with an error, or without having done anything, before anything more is done
MOST_DEATHS = 6


class FarmError(RuntimeError):
    """A farm cannot go on; the text says why. What was done is kept, and the same command goes on."""


class Work(Protocol):
    """What a worker does, sent to it: claim, finish and fail jobs of a farm until none is left to claim.

    ``together``: so many side by side rather than what the settings say; None = as they say.
    """

    def __call__(self, farm: Farm, together: int | None) -> None: ...


class Member(Farm):
    """What a worker of a cluster asks: the ledger of all. The process that started it tells what became of them.

    Args:
        ledger: the actor.
        name: of this worker.
        offered: all jobs are known there already.
    """

    leads = False

    def __init__(self, ledger: ActorHandle, name: str, offered: bool) -> None:
        self.ledger, self.name, self.offered = ledger, name, offered

    def offer(self, jobs: Sequence[Job]) -> None:
        if not self.offered:
            self._ask("offer", list(jobs))

    def claim(self, kinds: Collection[str] = (), most: int = 1) -> list[str]:
        return self._ask("claim", self.name, list(kinds), most)

    def finish(self, key: str) -> None:
        self.ledger.finish.remote(self.name, key)  # in order with what is asked next; nobody waits

    def fail(self, key: str, reason: str) -> None:
        self.ledger.fail.remote(self.name, key, reason)

    def left(self) -> list[str]:
        return self._ask("left", self.name)

    def count_left(self) -> int:
        return self._ask("count_left", self.name)

    def close(self) -> None:
        self._ask("release", self.name)

    def _ask(self, what: str, *words: object) -> Any:
        import ray

        return ray.get(getattr(self.ledger, what).remote(*words))


class _Worker:
    """The actor: one process with the model in it."""

    def __init__(self, work: Work, ledger: ActorHandle, name: str, offered: bool, together: int | None) -> None:
        self.work, self.together = work, together
        self.farm = Member(ledger, name, offered)

    def node(self) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()

    def run(self) -> None:
        """Until there is nothing to claim."""
        self.work(self.farm, self.together)


@dataclass(eq=False)
class _Crew:
    """A worker as it is seen from outside."""

    name: str
    actor: ActorHandle
    node: Any  # a reference to its name
    together: int | None
    call: Any = None  # a reference to what it does now


class RayFarm:
    """A Ray cluster, for which workers are started as its nodes allow, and more as nodes come.

    A worker whose node is lost leaves its jobs to the others; one that dies alone, as of memory, is started again with
    half as much at once.

    Args:
        address: of the cluster: ``auto``, ``host:port`` or ``ray://host:port``; None = $RAY_ADDRESS, or else a Ray of
            its own on this machine.
        workers: how many are asked for, so that a cluster that scales itself grows; None = as many as there is room.
        cpus: of each.
        gpus: of each; None = one, in a cluster that has any.
        port: where Prometheus finds the state of the farm, on this machine alone; None = nowhere.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus: float = 1,
        gpus: float | None = None,
        port: int | None = None,
    ) -> None:
        for name, value in {"workers": workers, "cpus": cpus, "gpus": gpus, "port": port}.items():
            if value is not None and value < (0 if name == "gpus" else 1e-9):
                raise DiffstylerError(f"farm.{name}: expected a number above 0, got {value}")
        self.address, self.workers, self.cpus, self.gpus, self.port = address, workers, cpus, gpus, port

    def run(
        self, work: Work, jobs: Sequence[Job], *, offered: bool, watch: Callable[[Counts, int], None] = lambda *_: None
    ) -> list[Told]:
        """Let workers do all jobs -> what became of each.

        Args:
            work: what each worker does.
            jobs: all there is to do.
            offered: False = workers offer them once more, as they know their kinds.
            watch: is told every second how far it is, and how many workers there are.

        Raises:
            FarmError: workers ended with errors again and again; a DiffstylerError is raised as it was.
        """
        if not jobs:
            return []
        ray = _ray()
        was_there = ray.is_initialized()
        if not was_there:
            self._connect()
        node = ray.get_runtime_context().get_node_id()
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here).remote()
        shift = _Shift(self, ray, ray.put(work), ledger, offered)
        try:
            ray.get(ledger.offer.remote(list(jobs)))
            while (counts := ray.get(ledger.counts.remote())).open:
                watch(counts, len(shift.crews))
                shift.go_on(counts)
            watch(counts, 0)
            return ray.get(ledger.told.remote())
        finally:
            shift.end()
            ray.kill(ledger)
            if not was_there:
                ray.shutdown()

    def _connect(self) -> None:
        import ray

        address = self.address or os.environ.get("RAY_ADDRESS")
        _look_for(address)
        own: dict[str, Any] = {"object_store_memory": OBJECT_STORE, "include_dashboard": False}
        try:
            ray.init(
                address or "local",
                logging_level=logging.WARNING,
                log_to_driver=bool(os.environ.get("DIFFSTYLER_DEBUG")),
                **({} if address else own),
            )
        except Exception as error:  # a bare one, where a node does not start in time
            where = f"farm.address {address}" if address else "farm: on this machine"
            raise DiffstylerError(f"{where}: expected a Ray cluster that runs, got: {error}") from error


@dataclass(eq=False)
class _Shift:
    """The workers of one run."""

    farm: RayFarm
    ray: Any
    work: Any
    ledger: ActorHandle
    offered: bool
    crews: list[_Crew] = field(default_factory=list)
    started: int = 0
    deaths: int = 0  # since anything was settled
    ended: int = 0  # the same
    settled: int = 0

    def go_on(self, counts: Counts) -> None:
        """Start those that there is work and room for, and see to those that have ended."""
        settled = counts.jobs - counts.open
        if settled > self.settled:
            self.settled, self.deaths, self.ended = settled, 0, 0
        idle = [crew for crew in self.crews if crew.call is None]
        free = counts.waiting
        if self.ended > MOST_DEATHS * len(self.crews):
            raise FarmError(f"{free} jobs wait, but workers end without doing any of them")
        for crew in idle[:free]:
            crew.call = crew.actor.run.remote()
        wanted = self._wanted()
        self.ledger.expect.remote(wanted)
        for _ in range(min(wanted - len(self.crews), free - len(idle))):
            self._start(None)
        calls = {crew.call: crew for crew in self.crews if crew.call is not None}
        if not calls:
            time.sleep(TICK)
            return
        done, _ = self.ray.wait(list(calls), timeout=TICK)
        for call in done:
            self._see_to(calls[call])

    def end(self) -> None:
        for crew in self.crews:
            self.ray.kill(crew.actor)
        self.crews = []

    def _start(self, together: int | None) -> None:
        self.started += 1
        name = f"worker {self.started}"
        gpus = self._gpus()
        kind = self.ray.remote(_Worker).options(
            num_cpus=self.farm.cpus,
            num_gpus=gpus,
            runtime_env={"env_vars": _variables()},
            max_restarts=0,
        )
        actor = kind.remote(self.work, self.ledger, name, self.offered, together)
        self.crews.append(_Crew(name, actor, actor.node.remote(), together, actor.run.remote()))

    def _see_to(self, crew: _Crew) -> None:
        """One has nothing to claim any more, or has ended."""
        errors = self.ray.exceptions
        call, crew.call = crew.call, None
        try:
            self.ray.get(call)
            self.ended += 1
            self.ray.get(self.ledger.release.remote(crew.name))
            return
        except errors.RayTaskError as error:
            reason: BaseException = error.cause
            if isinstance(reason, DiffstylerError) and self.settled == 0:
                raise reason from error  # it is the same for all
            self.ray.kill(crew.actor)
        except (errors.RayActorError, errors.OutOfMemoryError) as error:
            reason = error
        self.crews.remove(crew)
        lost = self._is_lost(crew)
        most = self.ray.get(self.ledger.most_held.remote(crew.name))
        self.ray.get(self.ledger.release.remote(crew.name, gone=True, blamed=not lost))
        if lost:
            log.warning("%s is gone with its node; others go on with what it had", crew.name)
            return
        self.deaths += 1
        if self.deaths >= MOST_DEATHS:
            raise FarmError(f"{self.deaths} workers ended one after another, the last one so: {reason}")
        half = max(1, (crew.together or most) // 2)
        told = str(reason).strip().split("\n")[0]
        log.warning("%s died (%s); another one starts, with %d at once", crew.name, told, half)
        self._start(half)

    def _is_lost(self, crew: _Crew) -> bool:
        """Whether its node is gone."""
        alive = {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
        try:
            return self.ray.get(crew.node, timeout=TICK) not in alive
        except Exception:  # it died before it could say where it is
            return False

    def _wanted(self) -> int:
        if self.farm.workers is not None:
            return self.farm.workers
        gpus, room = self._gpus(), 0
        for node in self.ray.nodes():
            if node["Alive"]:
                own: Mapping[str, float] = node["Resources"]
                places = own.get("CPU", 0) // self.farm.cpus
                room += int(min(places, own.get("GPU", 0) // gpus) if gpus else places)
        return room

    def _gpus(self) -> float:
        if self.farm.gpus is not None:
            return self.farm.gpus
        return 1.0 if self.ray.cluster_resources().get("GPU") else 0.0


def _look_for(address: str | None) -> None:
    """Ray itself would wait for minutes where nobody listens."""
    host, colon, port = (address or "").rpartition("//")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise DiffstylerError(f"farm.address {address}: expected a Ray cluster that runs, got: {error}") from error


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise DiffstylerError("farm: Ray is not installed here; install diffstyler[ray]") from error
    return ray


def _variables() -> dict[str, str]:
    """What workers find in their environment of this process's, none of them a secret."""
    own = {name: value for name, value in os.environ.items() if name.startswith("DIFFSTYLER_")}
    return {**own, storage.MOUNTS: storage.mounts()}
