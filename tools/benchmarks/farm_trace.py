"""10,000 LoRAs and 1,000,000 pictures over 64 nodes of which some are lost: how near the farm's plan is to the ideal.

    python tools/benchmarks/farm_trace.py [--nodes 64] [--lost 0.01] [--loras 10000] [--pictures 1000000]

Nothing is computed: jobs take as long as docs/performance.md measured on one H200, and time is counted. Who does what
is decided by the ledger that a Ray farm asks (``diffstyler.farm.ledger``), which is told of claims, of what is done and
of workers that are gone, as it is there. The ideal is all the work, spread over all the time that nodes were there,
with no start-up, nothing done twice and no end in which some wait for others.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass

from diffstyler.farm import Job
from diffstyler.farm.ledger import Ledger
from diffstyler.predict.data import PIECE

#: LoRAs at once; adapter-steps a second of so many, in a whole fit with previews and all that is written; of one alone
PACK, PACKED, ALONE = 16, 115.1, 40.8 * 115.1 / 127.2
#: steps of a LoRA, and between its saved states
STEPS, SAVED = 200, 50
#: pictures made at once; seconds of such a batch, whose contents are seen first, and of one picture alone
TOGETHER, BATCH, PICTURE = 24, 24 / 1.628, 1 / 0.518
#: seconds until a worker is there: a process, its imports, the model on the device
STARTING = 60.0
#: seconds until the farm knows that a node is gone, and until another one is in its place
NOTICED, REPLACED = 30.0, 600.0


class Node(ABC):
    """A node with one worker, which is there from a moment on."""

    def __init__(self, name: str, there: float) -> None:
        self.name, self.there = name, there
        self.plan = 0  # what it was to do before it was interrupted is another plan
        self.gone = self.busy = False

    @abstractmethod
    def claim(self, ledger: Ledger, saved: Counter[str]) -> list[str]:
        """What it takes on besides what it has."""

    @abstractmethod
    def seconds(self) -> float | None:
        """Until it is done with something; None where it has nothing."""

    @abstractmethod
    def done(self) -> list[str]:
        """What it is then done with."""

    @abstractmethod
    def left(self, share: float) -> dict[str, float]:
        """What is saved of each job that it has, where it is lost after this share of these seconds."""


class Fitter(Node):
    """Fits LoRAs side by side."""

    #: work of which it can do most in a second
    rate = PACKED

    def __init__(self, name: str, there: float) -> None:
        super().__init__(name, there)
        self.steps: dict[str, float] = {}  # that are left of each

    def claim(self, ledger: Ledger, saved: Counter[str]) -> list[str]:
        new = []
        while len(self.steps) < PACK and (claimed := ledger.claim(self.name)):
            self.steps[claimed[0]] = STEPS - saved[claimed[0]]
            new += claimed
        return new

    def seconds(self) -> float | None:
        many = len(self.steps)
        rate = ALONE + (PACKED - ALONE) * (many - 1) / (PACK - 1)
        return min(self.steps.values()) * many / rate if many else None

    def done(self) -> list[str]:
        least = min(self.steps.values())
        ready = [key for key, steps in self.steps.items() if steps == least]
        self.steps = {key: steps - least for key, steps in self.steps.items() if steps > least}
        return ready

    def left(self, share: float) -> dict[str, float]:
        taken = share * min(self.steps.values(), default=0.0)
        return {key: (STEPS - steps + taken) // SAVED * SAVED for key, steps in self.steps.items()}


class Stylist(Node):
    """Makes pictures, a batch after another."""

    rate = TOGETHER / BATCH

    def __init__(self, name: str, there: float) -> None:
        super().__init__(name, there)
        self.rows: list[str] = []

    def claim(self, ledger: Ledger, saved: Counter[str]) -> list[str]:
        new = [] if self.rows else ledger.claim(self.name, most=PIECE * TOGETHER)
        self.rows += new
        return new

    def seconds(self) -> float | None:
        many = min(len(self.rows), TOGETHER)
        return PICTURE + (BATCH - PICTURE) * (many - 1) / (TOGETHER - 1) if many else None

    def done(self) -> list[str]:
        ready, self.rows = self.rows[:TOGETHER], self.rows[TOGETHER:]
        return ready

    def left(self, share: float) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class Outcome:
    """``hours`` that it took, those of the ideal, nodes that were lost, and jobs that were begun once more."""

    hours: float
    ideal: float
    lost: int
    again: int

    @property
    def share(self) -> float:
        return self.ideal / self.hours


def trace(jobs: list[Job], kind: type[Fitter] | type[Stylist], count: int, lost: float, seed: int) -> Outcome:
    """Let nodes of a kind do the jobs.

    Args:
        jobs: in order.
        kind: of nodes.
        count: how many there are at once; a lost one is replaced.
        lost: the share of them that is lost in an hour.
        seed: of when, and which.
    """
    now, chance = 0.0, random.Random(seed)
    ledger = Ledger(clock=lambda: now)
    ledger.offer(jobs)
    left, begun, saved = {job.key for job in jobs}, Counter[str](), Counter[str]()
    events: list[tuple[float, int, str, Node, int]] = []
    nodes: list[Node] = []
    number, spent = itertools.count(), 0.0

    def at(when: float, what: str, node: Node) -> None:
        heapq.heappush(events, (when, next(number), what, node, node.plan))

    def add(when: float) -> None:
        nodes.append(node := kind(f"node {len(nodes)}", when))
        at(when + STARTING, "work", node)
        if lost:
            at(when + chance.expovariate(lost / 3600), "lost", node)

    def go_on(node: Node) -> None:
        begun.update(node.claim(ledger, saved))
        node.busy = (seconds := node.seconds()) is not None
        if seconds is not None:
            node.plan += 1
            at(now + seconds, "done", node)

    for _ in range(count):
        add(0.0)
    while left:
        now, _, what, node, plan = heapq.heappop(events)
        if what == "noticed":
            ledger.release(node.name)
            for other in nodes:
                if not (other.gone or other.busy) and other.there + STARTING <= now:
                    go_on(other)
        elif node.gone or (what == "done" and plan != node.plan):
            continue
        elif what == "lost":
            node.gone, seconds = True, node.seconds()
            until = next((when for when, _, what, other, plan in events if other is node and what == "done"), now)
            saved.update(node.left(1 - (until - now) / seconds) if seconds else {})
            spent += now - node.there
            at(now + NOTICED, "noticed", node)
            add(now + REPLACED)
        else:
            for key in node.done() if what == "done" else ():
                ledger.finish(node.name, key)
                left.discard(key)
            go_on(node)
    spent += sum(max(0.0, now - node.there) for node in nodes if not node.gone)
    work = sum(job.size for job in jobs)
    ideal = work / (spent / now * kind.rate)
    return Outcome(now / 3600, ideal / 3600, sum(node.gone for node in nodes), begun.total() - len(jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--lost", type=float, default=0.01, help="of the nodes, in an hour")
    parser.add_argument("--loras", type=int, default=10_000)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    runs = {
        f"{chosen.loras} LoRAs": ([Job(f"{i}", STEPS) for i in range(chosen.loras)], Fitter),
        f"{chosen.pictures} pictures": ([Job(f"{i}") for i in range(chosen.pictures)], Stylist),
    }
    outcomes = []
    for what, (jobs, kind) in runs.items():
        began = time.monotonic()
        made = trace(jobs, kind, chosen.nodes, chosen.lost, chosen.seed)
        outcomes.append(made)
        print(
            f"{what}: {made.hours:.2f} h, ideal {made.ideal:.2f} h ({made.share:.1%}); {made.lost} nodes lost, "
            f"{made.again} jobs begun again; the ledger took {time.monotonic() - began:.0f} s"
        )
    hours, ideal = sum(one.hours for one in outcomes), sum(one.ideal for one in outcomes)
    print(f"together: {hours:.2f} h, ideal {ideal:.2f} h ({ideal / hours:.1%})")


if __name__ == "__main__":
    main()
