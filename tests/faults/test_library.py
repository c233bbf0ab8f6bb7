"""What lies in a library of LoRAs may be damaged: it is named, made again, and stops nothing else."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from slots import open_slots, train

from diffstyler.adapters import WEIGHTS_NAME, LoRAIdentity, LoRALibrary, read_record
from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write
from diffstyler.fit.job_queue import Failure, FailureLog, JobQueue
from diffstyler.fit.jobs import FitJob, FitPicture, FitSettings

IDENTITY, OTHER = (LoRAIdentity("style", name, name, "model", {"prompt": "p"}) for name in ("gold", "red"))


def write(folder: Path) -> None:
    save_file({"weights": torch.zeros(8)}, folder / WEIGHTS_NAME)


def cut(file: Path, share: float = 0.5) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


@pytest.fixture
def library(tmp_path: Path) -> LoRALibrary:
    library = LoRALibrary(tmp_path / "loras")
    for identity in (IDENTITY, OTHER):
        library.publish(identity, write)
    return library


RECORD = json.loads(json.dumps(vars(IDENTITY)))

STRANGE_JSON = {
    "empty": b"",
    "half": b'{"role": "sty',
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "text": b'"text"',
    "not UTF-8": '{"role": "ü"}'.encode("latin-1"),
    "zeros": bytes(64),
    "deep": b"[" * 100_000,
    "another tool's": b'{"name": "gold", "model": "sd15"}',
}
STRANGE_RECORDS = {
    **STRANGE_JSON,
    **{f"{name} = {value!r}": json.dumps({**RECORD, name: value}).encode()
       for name in ("role", "picture", "model", "name", "settings") for value in (None, 3, [], ["a"])},
    "history of numbers": json.dumps({**RECORD, "history": [1, 2]}).encode(),
    "history as text": json.dumps({**RECORD, "history": "it was hard"}).encode(),
    "steps as text": json.dumps({**RECORD, "steps_taken": "many"}).encode(),
    "more": json.dumps({**RECORD, "color": "red"}).encode(),
}  # fmt: skip


def not_whole(library: LoRALibrary, caplog: pytest.LogCaptureFixture, identity: LoRAIdentity = IDENTITY) -> None:
    """It counts as not there, is named, its neighbor is there; publishing it again makes it whole."""
    folder = library.lora_dir / identity.folder_name
    with caplog.at_level(logging.WARNING):
        assert [entry.identity for entry in library.entries()] == [OTHER]
    assert f"{folder} is no whole LoRA, and not used" in caplog.text
    assert library.get(identity) is None
    assert library.find([identity, OTHER]).keys() == {OTHER.key}
    assert library.publish(identity, write).folder == folder
    assert library.get(identity) == read_record(folder)


@pytest.mark.parametrize("kind", STRANGE_RECORDS)
def test_a_record_that_is_none(library, caplog, kind):
    folder = library.lora_dir / IDENTITY.folder_name
    (folder / "diffstyler.json").write_bytes(STRANGE_RECORDS[kind])
    with pytest.raises(DiffstylerError, match=r"diffstyler\.json is damaged \(.+\); delete the folder and fit again"):
        read_record(folder)
    not_whole(library, caplog)


@pytest.mark.parametrize("kind", ["gone", "empty", "cut", "garbage", "folder"])
def test_weights_that_are_none(library, caplog, kind):
    file = library.lora_dir / IDENTITY.folder_name / WEIGHTS_NAME
    if kind == "cut":
        cut(file)
    elif kind in {"empty", "garbage"}:
        file.write_bytes(b"" if kind == "empty" else b"garbage" * 99)
    else:
        file.unlink()
    if kind == "folder":
        file.mkdir()
    not_whole(library, caplog)


# ---- saved states


NOT_ITS_STATE = (
    *("half", "empty", "garbage", "a list", "no dictionary", "another dictionary", "half a dictionary"),
    *("another LoRA's", "another rank", "another optimizer"),
)


@pytest.mark.parametrize("kind", NOT_ITS_STATE)
def test_a_saved_state_that_is_none_starts_again(tmp_path, caplog, kind):
    path = tmp_path / "state.pt"
    (saved,) = open_slots(8 if kind == "another LoRA's" else 7)
    train(saved, steps=3)
    saved.saving()(path)
    state = torch.load(path)
    if kind == "half":
        cut(path)
    elif kind in {"empty", "garbage"}:
        path.write_bytes(b"" if kind == "empty" else b"garbage" * 99)
    elif kind in {"a list", "no dictionary", "another dictionary"}:
        torch.save({"a list": [1, 2], "no dictionary": torch.zeros(3), "another dictionary": {"step": 5}}[kind], path)
    elif kind == "another rank":
        torch.save({**state, "weights": state["weights"][:5]}, path)
    elif kind == "another optimizer":
        torch.save({**state, "optimizer": {"param_groups": []}}, path)
    elif kind == "half a dictionary":
        torch.save({name: state[name] for name in list(state)[:4]}, path)
    (resumed,), (fresh,) = open_slots(7), open_slots(7)
    with caplog.at_level(logging.WARNING):
        resumed.restore(path)
    assert f"{path}: the saved state of 7 cannot be used" in caplog.text
    assert "it starts again" in caplog.text
    for slot in (resumed, fresh):
        train(slot, steps=4)
    assert torch.equal(resumed.weights, fresh.weights)
    assert resumed.losses == fresh.losses


# ---- failures


def queue(library: LoRALibrary, run: str) -> JobQueue:
    jobs = [
        FitJob(FitPicture((Path(f"{name}.png"),), name, name), FitSettings(steps=3),
               LoRAIdentity("style", name, f"new {name}", "model", {}))
        for name in ("a", "b")
    ]  # fmt: skip
    made = JobQueue(library, jobs)
    made.failures.begin(run, {"style"})
    return made


def test_a_run_keeps_its_failures_while_others_begin_and_end(library):
    one = queue(library, "one")
    one.fail(one.claim(), "broken")
    other = queue(library, "other")
    assert [failure.reason for failure in one.failed()] == ["broken"]
    assert other.failed() == []
    other.fail(other.claim(), "broken here too")
    assert [failure.reason for failure in other.failed()] == ["broken here too"]
    other.failures.end()
    third = queue(library, "third")
    assert [failure.reason for failure in one.failed()] == ["broken"]
    assert [failure.run for failure in third.failures.read()] == ["one"]  # the other one's run is over
    one.failures.end()
    third.failures.end()
    assert queue(library, "fourth").failures.read() == []
    assert not (library.lora_dir / "failures.jsonl").exists()


def test_a_killed_runs_failures_are_forgotten_by_the_next(library):
    one = queue(library, "one")
    one.fail(one.claim(), "broken")
    one.failures._alive.release()  # as the kernel does
    next_one = queue(library, "next")
    assert next_one.failures.read() == []
    next_one.failures.end()
    assert [file.name for file in (library.lora_dir / ".unfinished").glob("run-*")] == []


LINE = json.dumps({"key": "k", "role": "content", "picture": "p", "reason": "r"}).encode()

STRANGE_LINES = [*STRANGE_JSON.values(), b'{"key": 3, "role": "style", "picture": "p", "reason": "r"}', LINE[:-9]]


@pytest.mark.parametrize("line", [line for line in STRANGE_LINES if line.strip()])
def test_damaged_lines_of_the_failures_are_left_out(tmp_path, caplog, line):
    (tmp_path / "failures.jsonl").write_bytes(b"\n".join([LINE, line, LINE]))
    log = FailureLog(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert log.read() == [Failure("k", "content", "p", "r")] * 2
    assert "failures.jsonl" in caplog.text
    assert "damaged" in caplog.text
    log.add(Failure("new", "style", "p", "r"))
    assert [failure.key for failure in FailureLog(tmp_path).read()] == ["k", "k", "new"]


# ---- leftovers


def test_what_killed_processes_left_is_swept_and_what_is_written_now_is_not(library, monkeypatch):
    unfinished = library.lora_dir / ".unfinished"
    left = [folder / f".{name}.0123abcd.tmp" for folder in (library.lora_dir, unfinished) for name in ("a", "b.pt")]
    for path in left:
        path.write_text("half")
    replace = Path.replace

    def swept_meanwhile(self: Path, target: Path) -> Path:
        library.sweep()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", swept_meanwhile)
    atomic_write(unfinished / "new.pt", b"whole")
    assert [path for path in left if path.exists()] == []
    assert (unfinished / "new.pt").read_bytes() == b"whole"
    assert library.get(IDENTITY)
