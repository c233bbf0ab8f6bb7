"""The trace of a farm whose nodes are lost: all is done, and time is counted as it is."""

import farm_trace
import pytest
from farm_trace import ALONE, BATCH, PACK, STARTING, STEPS, TOGETHER, Fitter, Stylist, trace

from diffstyler.farm import Job


def jobs(count: int, size: float = 1.0) -> list[Job]:
    return [Job(str(number), size) for number in range(count)]


def test_one_node_takes_the_time_of_its_work():
    assert trace(jobs(1, STEPS), Fitter, 1, 0.0, 0).hours * 3600 == pytest.approx(STARTING + STEPS / ALONE)
    whole = trace(jobs(PACK, STEPS), Fitter, 1, 0.0, 0)
    assert whole.hours * 3600 == pytest.approx(STARTING + PACK * STEPS / Fitter.rate)
    assert whole.ideal * 3600 == pytest.approx(PACK * STEPS / Fitter.rate)
    pictures = trace(jobs(2 * TOGETHER), Stylist, 1, 0.0, 0)
    assert pictures.hours * 3600 >= STARTING + 2 * BATCH


@pytest.mark.parametrize("kind", [Fitter, Stylist])
def test_lost_nodes_cost_what_they_had_and_no_more(kind, monkeypatch):
    monkeypatch.setattr(farm_trace, "REPLACED", 60.0)
    size = STEPS if kind is Fitter else 1
    calm, stormy = (trace(jobs(4000, size), kind, 8, lost, 1) for lost in (0.0, 6.0))
    assert (calm.lost, calm.again) == (0, 0)
    assert stormy.lost > 0
    assert 0 < stormy.again <= stormy.lost * (PACK if kind is Fitter else farm_trace.PIECE * TOGETHER)
    assert calm.hours < stormy.hours
    assert stormy.share < calm.share < 1
