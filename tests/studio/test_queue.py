"""The queue: in order of urgency, in one file that outlives everybody, and each session's own."""

import pytest

from diffstyler.errors import DiffstylerError
from diffstyler.studio.queue import MOST_TRIES, JobQueue


def fit(queue, picture: str, steps: int = 5):
    return queue.submit("fit", "me", {"picture": picture, "name": picture, "steps": steps})


def ids(jobs) -> list[str]:
    return [job.id for job in jobs]


def test_urgent_ones_come_first_and_equal_fits_together(queue):
    one, other, three = fit(queue, "a"), fit(queue, "b", steps=9), fit(queue, "c")
    again = fit(queue, "a")
    picture = queue.submit("restyle", "me", {})
    assert queue.before(queue.get(other.id)) == 2
    assert queue.before(queue.get(picture.id)) == 0
    assert queue.somebody_waits("fit")
    assert not queue.somebody_waits("restyle")
    assert ids(queue.claim(4)) == [picture.id]
    assert ids(queue.claim(4)) == [one.id, three.id]  # not the same picture twice, nor other settings
    assert ids(queue.claim(1)) == [other.id]
    assert ids(queue.claim(4)) == [again.id]
    assert queue.claim(4) == []


def test_what_is_written_is_there_for_the_next_process(queue, folder):
    job = queue.submit("restyle", "me", {"words": "the sky’s “é”"})
    queue.claim()
    queue.begin(job.id, "restyling")
    queue.progress(job.id, 3, 9)
    queue.show(job.id, preview="one")
    queue.show(job.id, looks=2)
    for step in (2, 1, 2):  # a step that a killed worker repeated is told once
        queue.add_loss(job.id, step, step / 10)
    there = JobQueue(folder.queue).get(job.id)
    assert (there.state, there.done, there.total, there.note) == ("running", 3, 9, "restyling")
    assert (there.request, there.result) == (job.request, {"preview": "one", "looks": 2})
    assert there.seconds_left >= 0
    assert JobQueue(folder.queue).losses(job.id) == [(1, 0.1), (2, 0.2)]
    queue.finish(job.id, picture="two")
    assert queue.get(job.id).result == {"preview": "one", "looks": 2, "picture": "two"}
    assert queue.get(job.id).ended


def test_sessions_do_not_mix(queue):
    mine, yours = (queue.submit("restyle", who, {"who": who}) for who in ("me", "you"))
    assert queue.latest("restyle", "me").id == mine.id
    assert queue.latest("restyle", "you").id == yours.id
    assert queue.latest("compare", "me") is None
    assert queue.latest("restyle", "nobody") is None
    newer = queue.submit("restyle", "me", {})
    assert queue.latest("restyle", "me").id == newer.id


def test_cancelling(queue):
    running, waiting = queue.submit("restyle", "me", {}), fit(queue, "a")
    queue.claim()
    for job in (running, waiting):
        queue.cancel(job.id)
    assert queue.get(waiting.id).state == "cancelled"
    assert queue.claim() == []
    assert queue.get(running.id).state == "running"
    assert queue.is_asked_to_end(running.id)
    queue.end(running.id)
    queue.cancel(running.id)
    assert queue.get(running.id).state == "cancelled"
    queue.forget("fit")
    assert queue.all("fit") == []
    with pytest.raises(DiffstylerError, match="there is no job"):
        queue.get(waiting.id)


def test_what_several_workers_die_of_is_given_up_and_nothing_else(queue):
    bad, cancelled, good = fit(queue, "a"), fit(queue, "b"), fit(queue, "c", steps=9)
    for _ in range(MOST_TRIES):
        assert queue.claim(1)[0].id == bad.id
        queue.recover()
    assert queue.get(bad.id).state == "failed"
    assert f"{MOST_TRIES} workers ended on it" in queue.get(bad.id).note
    assert queue.claim(1)[0].id == cancelled.id
    queue.cancel(cancelled.id)
    queue.recover()
    assert queue.get(cancelled.id).state == "cancelled"
    for _ in range(MOST_TRIES + 1):  # it gave way to others
        assert queue.claim(1)[0].id == good.id
        queue.put_back(good.id)
    assert queue.get(good.id).state == "waiting"


def test_a_file_that_is_no_queue_is_said(folder):
    folder.queue.write_bytes(b"something else " * 100)
    with pytest.raises(DiffstylerError, match=r"studio\.sqlite: expected the queue of a studio"):
        JobQueue(folder.queue)


def test_jobs_of_one_press_are_there_at_once(queue, folder, monkeypatch):
    """Another process that claims in the middle gets none of them, or all."""
    other, seen = JobQueue(folder.queue), []
    monkeypatch.setattr("diffstyler.studio.queue.json.dumps", lambda value: seen.append(len(other.all("fit"))) or "{}")
    made = queue.submit_all("fit", "me", [{}, {}, {}])
    assert seen == [0, 0, 0]
    assert ids(other.all("fit")) == ids(made)


def test_who_died_is_seen_until_another_one_takes_over(queue):
    job = fit(queue, "a")
    queue.claim()
    queue.begin(job.id, "learning the style")
    queue.progress(job.id, 2, 5)
    queue.interrupted("the worker ended")
    job = queue.get(job.id)
    assert (job.state, job.note, job.total, job.seconds_left) == ("running", "the worker ended", 0, None)
    queue.recover()
    assert ids(queue.claim()) == [job.id]
    assert queue.get(job.id).note == ""
