"""What the page of a farm that is a folder says, while processes come and go."""

import json
import time
from urllib.request import urlopen

import pytest
from studio_jobs import free_port

from diffstyler.errors import DiffstylerError
from diffstyler.farm import Job, RankFarm, Told
from diffstyler.farm.folder import FolderFarm, Seen, Tally

JOBS = [Job("a", 10), Job("b", 20), Job("c", 30), Job("d", 40)]


def test_counts_and_rate_are_those_of_the_work_since_the_first_look():
    now, seen = [0.0], [Seen({"a", "of another run"}, {}, 1)]
    tally = Tally(JOBS, lambda: seen[0], lambda: now[0])
    first = tally.counts()
    assert (first.jobs, first.finished, first.running, first.waiting) == (4, 1, 1, 2)
    assert (first.left, first.rate, first.seconds_left) == (90, None, None)
    now[0], seen[0] = 10.0, Seen({"a", "b"}, {"c": "why", "of another run": "not asked"}, 7)
    then = tally.counts()
    assert (then.finished, then.running, then.waiting, then.failures) == (2, 1, 0, {"c": "why"})
    assert (then.left, then.rate, then.seconds_left) == (40, 5.0, 8.0)
    now[0] = 10_000.0
    assert tally.counts().rate is None  # nothing was done in the last ten minutes
    seen[0] = Seen({"a", "b", "c", "d"}, {"c": "a later run could"}, 0)
    assert tally.counts().open == 0
    assert tally.counts().failures == {}


def test_the_page_is_there_at_once_and_told_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("diffstyler.farm.folder.EVERY", 0.05)
    monkeypatch.setattr("diffstyler.farm.status.EVERY", 0.0)
    seen, port = [Seen(set(), {}, 2)], free_port()
    file = tmp_path / "farm-7.json"

    def told(**wanted: int) -> bool:
        return file.is_file() and wanted.items() <= json.loads(file.read_text()).items()

    def soon(**wanted: int) -> None:
        until = time.monotonic() + 20
        while not told(**wanted):
            assert time.monotonic() < until
            time.sleep(0.02)

    with FolderFarm(name="7", port=port).watched(tmp_path, "LoRAs", JOBS, lambda: seen[0], 3):
        soon(jobs=4, finished=0, running=2, waiting=2, workers=3)
        seen[0] = Seen({"a"}, {"b": "why"}, 1)
        soon(finished=1, failed=1, running=1, waiting=1)
        text = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        assert "diffstyler_farm_finished 1.0" in text
        seen[0] = Seen({"a", "c", "d"}, {"b": "why"}, 0)
    assert told(finished=3, failed=1, workers=0)
    assert json.loads(file.read_text())["failures"] == [{"key": "b", "reason": "why"}]


def test_a_folder_that_cannot_be_read_now_stops_nothing(tmp_path):
    def look() -> Seen:
        raise OSError("stale file handle")

    with FolderFarm().watched(tmp_path, "LoRAs", JOBS, look, 1):
        pass
    assert not (tmp_path / "farm.json").exists()


@pytest.mark.parametrize("wrong", [{"name": "a/b"}, {"name": "..\\b"}, {"port": 0}])
def test_wrong_words(wrong):
    with pytest.raises(DiffstylerError, match=rf"farm\.{next(iter(wrong))}: expected"):
        FolderFarm(**wrong)


def test_the_first_rank_hears_all_others_line_by_line(tmp_path):
    first, second = (RankFarm(tmp_path, "run", rank, 2) for rank in (0, 1))
    for rank in (first, second):
        rank.offer([Job(key) for key in "abcd"])
    first.finish("a")
    assert first.so_far() == [Told("a")]
    second.fail("c", "why")
    assert first.so_far() == [Told("a"), Told("c", "why")]
    with (tmp_path / "run-1.jsonl").open("a") as file:
        file.write('{"id": "d", ')
        file.flush()
        assert first.so_far() == [Told("a"), Told("c", "why")]
        file.write('"reason": null}\n')
    assert first.so_far() == [Told("a"), Told("c", "why"), Told("d")]
    second.close()
    assert first.collect() == [Told("a"), Told("c", "why"), Told("d")]
    assert first.so_far()[1:] == [Told("c", "why"), Told("d")]  # the files are gone
