"""Who has which job: order, kinds, pieces, and what becomes of the jobs of workers that end."""

import pytest

from diffstyler.farm import Job, Told
from diffstyler.farm.ledger import WINDOW, Ledger


@pytest.fixture
def ledger() -> Ledger:
    """Six jobs a … f, two of another kind."""
    made = Ledger()
    made.offer([Job(key, kind="wide" if key in "ce" else "") for key in "abcdef"])
    return made


def test_jobs_come_in_order_and_of_the_kinds_that_are_wanted(ledger):
    assert ledger.claim("one", {"wide"}) == ["c"]
    assert ledger.claim("two") == ["a"]
    assert ledger.claim("one", {"wide"}, most=5) == ["e"]
    assert ledger.claim("one", {"wide"}) == []
    assert ledger.claim("two", {"", "wide"}) == ["b"]
    assert ledger.left("two") == ["c", "d", "e", "f"]


def test_a_job_is_one_workers_until_that_ends(ledger):
    had = ledger.claim("one") + ledger.claim("one")
    ledger.finish("one", had[0])
    assert ledger.claim("two") == ["c"]
    ledger.release("one")
    assert ledger.claim("two") == [had[1]]  # before what follows it
    assert ledger.told() == [Told(had[0])]


def test_one_that_is_gone_gets_nothing_more_though_its_process_may_still_ask(ledger):
    had = ledger.claim("lost", most=2)
    ledger.release("lost", gone=True)
    assert ledger.claim("lost", most=2) == []
    ledger.finish("lost", had[0])  # it was at it
    rest = []
    while claimed := ledger.claim("other"):
        rest += claimed
        ledger.finish("other", claimed[0])
    assert sorted(rest + had[:1]) == list("abcdef")
    assert ledger.counts().open == 0


def test_one_that_paused_comes_back(ledger):
    had = ledger.claim("one")
    ledger.release("one")
    assert ledger.claim("one") == had


def test_one_worker_leaves_the_share_of_those_that_are_to_come(ledger):
    ledger.expect(3)
    assert [ledger.claim("first") for _ in range(3)] == [["a"], ["b"], []]
    assert ledger.claim("second") == ["c"]
    for key in "abc":
        ledger.finish("first", key)
    assert [ledger.claim("first") for _ in range(2)] == [["d"], []]


def test_pieces_shrink_towards_the_end():
    ledger = Ledger()
    ledger.offer([Job(str(number)) for number in range(100)])
    ledger.claim("other")
    sizes = []
    while piece := ledger.claim("one", most=16):
        sizes.append(len(piece))
    assert sizes[0] == 16
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert sum(sizes) == 99


def test_a_job_that_kills_its_workers_is_found_out_and_no_other_is_given_up(ledger):
    """ "c" kills whoever has it, and all that this worker has are suspected with it."""
    workers = 0
    while ledger.counts().open:
        workers += 1
        held = []
        while claimed := ledger.claim(f"w{workers}"):
            held += claimed
            if len(held) == 3:
                break
        if "c" in held:
            ledger.release(f"w{workers}", blamed=True)
            continue
        for key in held:
            ledger.finish(f"w{workers}", key)
        ledger.release(f"w{workers}")
    told = {one.id: one.reason for one in ledger.told()}
    assert [key for key, reason in told.items() if reason] == ["c"]
    assert told["c"] == "3 workers died while they were at it, the last one alone"
    assert list(told) == list("abcdef")


def test_nodes_that_are_lost_blame_nobody(ledger):
    for number in range(9):
        assert ledger.claim(f"w{number}") == ["a"]
        ledger.release(f"w{number}")
    assert ledger.counts().failures == {}


def test_what_one_finishes_that_was_thought_gone_is_not_done_again(ledger):
    ledger.claim("slow")
    ledger.release("slow")
    ledger.finish("slow", "a")
    assert ledger.claim("other") == ["b"]
    ledger.finish("slow", "b")
    ledger.finish("other", "b")
    counts = ledger.counts()
    assert (counts.finished, counts.running, counts.waiting) == (2, 0, 4)


def test_offered_again_the_last_order_and_kinds_count(ledger):
    ledger.claim("one")
    ledger.finish("one", "a")
    ledger.claim("one")
    ledger.offer([Job(key, size=2.0, kind="new") for key in "fedcba"])
    assert ledger.claim("two", {"new"}) == ["f"]
    assert ledger.claim("two", {""}) == []
    counts = ledger.counts()
    assert (counts.jobs, counts.finished, counts.running, counts.left) == (6, 1, 2, 10.0)


def test_rate_and_time_left_are_of_the_last_minutes():
    now = [0.0]
    ledger = Ledger(clock=lambda: now[0])
    ledger.offer([Job(str(number), size=3.0) for number in range(10)])
    assert ledger.counts().seconds_left is None
    for number in range(4):
        ledger.claim("one")
        now[0] += 2.0
        ledger.finish("one", str(number))
    counts = ledger.counts()
    assert counts.rate == pytest.approx(1.5)
    assert counts.seconds_left == pytest.approx(6 * 3.0 / 1.5)
    now[0] += 2 * WINDOW
    assert ledger.counts().rate is None
