"""Who has which job of a run: plain bookkeeping, which an actor of a cluster holds, or a simulation."""

from __future__ import annotations

import heapq
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from diffstyler.farm.base import Job, Told

#: a job with which so many workers have died is tried alone, and given up when that one dies too
ALONE = 2
#: seconds over which the rate is taken
WINDOW = 600.0


@dataclass(frozen=True)
class Counts:
    """How far a farm is: jobs by what became of them; ``rate``: how much work a second, None before anything is done.

    ``failures``: by key, why; ``left``: work that is not done, in the unit of the jobs' sizes.
    """

    jobs: int
    finished: int
    running: int
    waiting: int
    failures: dict[str, str]
    left: float
    rate: float | None

    @property
    def seconds_left(self) -> float | None:
        return self.left / self.rate if self.rate else None

    @property
    def open(self) -> int:
        return self.running + self.waiting


class Ledger:
    """The jobs of a run. Workers are named; whoever looks after them says when one has ended.

    Pieces of several jobs shrink towards the end, so that nobody is left with a long one.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._places: dict[str, int] = {}
        self._waiting: dict[str, list[tuple[int, str]]] = {}  # by kind, heaps in order
        self._holders: dict[str, str] = {}
        self._held: defaultdict[str, set[str]] = defaultdict(set)
        self._told: dict[str, Told] = {}
        self._deaths: Counter[str] = Counter()
        self._suspects: set[str] = set()
        self._workers: set[str] = set()
        self._gone: set[str] = set()
        self._expected = 0
        self._done: deque[tuple[float, float]] = deque()  # when, how much
        self._left = 0.0
        self._together: Counter[str] = Counter()

    def offer(self, jobs: Sequence[Job]) -> None:
        """All there is to do; where it is offered again, the last order and kinds count."""
        for place, job in enumerate(jobs):
            known = self._jobs.get(job.key)
            if job.key not in self._told:
                self._left += job.size - (known.size if known else 0)
            self._jobs[job.key], self._places[job.key] = job, place
        self._waiting = {}
        for key in self._jobs:
            if key not in self._told and key not in self._holders:
                self._wait(key)

    def claim(self, worker: str, kinds: Collection[str] = (), most: int = 1) -> list[str]:
        """The next jobs, of these kinds or of any, from now on this worker's; none for one that is gone.

        The processes of a lost node may go on asking for a while, and nobody would take back what they got.
        """
        if worker in self._gone:
            return []
        self._workers.add(worker)
        if most == 1 and len(self._held[worker]) >= self._fair():
            return []  # of those that are done side by side, workers that are still to come get their share
        waiting = sum(map(len, self._waiting.values()))
        most = min(most, max(1, waiting // (2 * len(self._workers))))
        claimed: list[str] = []
        while len(claimed) < most and (key := self._next(worker, kinds)):
            self._holders[key] = worker
            self._held[worker].add(key)
            claimed.append(key)
        self._together[worker] = max(self._together[worker], len(self._held[worker]))
        return claimed

    def expect(self, workers: int) -> None:
        """So many there are going to be."""
        self._expected = workers

    def finish(self, worker: str, key: str) -> None:
        self._settle(Told(key))

    def fail(self, worker: str, key: str, reason: str) -> None:
        self._settle(Told(key, reason))

    def left(self, worker: str) -> list[str]:
        """What is not settled, and not this worker's, in order."""
        own = self._held[worker]
        keys = (key for key in self._jobs if key not in self._told and key not in own)
        return sorted(keys, key=lambda key: self._places[key])

    def count_left(self, worker: str) -> int:
        return len(self._jobs) - len(self._told) - len(self._held[worker])

    def release(self, worker: str, *, gone: bool = False, blamed: bool = False) -> None:
        """What a worker had goes to others.

        Args:
            worker: it has nothing more to do for now.
            gone: it never comes back.
            blamed: it may have died of one of these jobs.
        """
        if gone:
            self._gone.add(worker)
        self._workers.discard(worker)
        for key in self._held.pop(worker, set()):
            del self._holders[key]
            self._deaths[key] += blamed
            if self._deaths[key] >= ALONE:
                self._suspects.add(key)
            if self._deaths[key] > ALONE:
                self._settle(Told(key, f"{self._deaths[key]} workers died while they were at it, the last one alone"))
            else:
                self._wait(key)

    def most_held(self, worker: str) -> int:
        """How many jobs this worker had at once at most."""
        return self._together[worker]

    def told(self) -> list[Told]:
        """What became of all that is settled, in the order in which it was offered."""
        return sorted(self._told.values(), key=lambda told: self._places[told.id])

    def counts(self) -> Counts:
        now = self._clock()
        while self._done and self._done[0][0] < now - WINDOW:
            self._done.popleft()
        seconds = now - self._done[0][0] if self._done else 0.0
        done = sum(size for _, size in list(self._done)[1:])  # the first one begins the time
        failures = {told.id: told.reason for told in self._told.values() if told.reason is not None}
        return Counts(
            jobs=len(self._jobs),
            finished=len(self._told) - len(failures),
            running=len(self._holders),
            waiting=sum(map(len, self._waiting.values())),
            failures=failures,
            left=self._left,
            rate=done / seconds if seconds and done else None,
        )

    def _fair(self) -> int:
        """One worker's share of what is not done."""
        still_open = len(self._jobs) - len(self._told)
        return max(1, -(-still_open // max(self._expected, len(self._workers))))

    def _next(self, worker: str, kinds: Collection[str]) -> str | None:
        held = self._held[worker]
        if not held.isdisjoint(self._suspects):
            return None
        heads = [heap[0] for kind, heap in self._waiting.items() if heap and (not kinds or kind in kinds)]
        if not heads:
            return None
        _, key = min(heads)
        if held and key in self._suspects:
            return None
        heapq.heappop(self._waiting[self._jobs[key].kind])
        return key

    def _wait(self, key: str) -> None:
        heapq.heappush(self._waiting.setdefault(self._jobs[key].kind, []), (self._places[key], key))

    def _settle(self, told: Told) -> None:
        if told.id in self._told:
            return
        holder = self._holders.pop(told.id, None)
        if holder is not None:
            self._held[holder].discard(told.id)
        else:  # by one that was thought to be gone
            heap = self._waiting.get(self._jobs[told.id].kind, [])
            if (entry := (self._places[told.id], told.id)) in heap:
                heap.remove(entry)
                heapq.heapify(heap)
        self._told[told.id] = told
        self._left -= self._jobs[told.id].size
        self._done.append((self._clock(), self._jobs[told.id].size))
