"""Work beside the device: in order, told in full, and waited for."""

import threading

import pytest

from diffstyler.cuda import Pace
from diffstyler.predict.data import PredictData
from diffstyler.types import Triple
from diffstyler.workers import Workers


@pytest.mark.parametrize("apart", [True, False])
def test_what_is_submitted_is_done(apart):
    workers, where = Workers(apart=apart), []

    def task(number: int) -> int:
        where.append(threading.current_thread() is threading.main_thread())
        if number == 2:
            raise ValueError("two")
        return number * number

    numbers = (0, 1, 3) if not apart else (0, 1, 2, 3)
    futures = {number: workers.submit(task, number) for number in numbers}
    workers.close()
    assert all(future.done() for future in futures.values())
    assert [futures[number].result() for number in (0, 1, 3)] == [0, 1, 9]
    assert where == [not apart] * len(numbers)
    if apart:
        with pytest.raises(ValueError, match="two"):
            futures[2].result()


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_batches_know_the_next_one(tmp_path, rows):
    triples = [Triple(f"{n}", tmp_path / f"{n}.png", ()) for n in range(rows)]
    batches = list(PredictData(triples=triples, batch_size=2).predict_dataloader())
    assert [triple.id for batch in batches for triple in batch] == [triple.id for triple in triples]
    assert [batch.next for batch in batches] == [*batches[1:], None]
    assert [batch.left for batch in batches] == [max(0, rows - 2 * n) for n in range(1, len(batches) + 1)]


@pytest.mark.parametrize(("left", "pays"), [(10, False), (1000, True)])
def test_compiling_pays_where_much_is_left(monkeypatch, left, pays):
    """A second for each unit: 20 s to compile save a tenth of what is left."""
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    pace = Pace(cost=20, gain=0.1, units=8)
    assert pace.pays(100, left) is None  # the first ones are slow
    assert pace.pays(4, left) is None
    assert pace.pays(4, left) is pays
