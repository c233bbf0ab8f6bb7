"""How runs end: interrupted, on full and read-only disks. What was done is kept, and one line says so."""

import errno
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from runs import row, stylize

import diffstyler.files
from diffstyler.backbones import StableDiffusion
from diffstyler.cli.main import main
from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write, check_writable
from diffstyler.predict import stylizer

STEPS = ("--model.num_inference_steps", "2", "--model.initial", "FromContent", "--trainer.enable_progress_bar", "false")


def command(kind: str, studio: Path, tiny_dir: Path, *more: str) -> list[str]:
    (studio / "rows.csv").write_text("content,style\nphoto.png,gold.png\nphoto.png,tomato.png\n")
    model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]
    own = {
        "predict": ["--lora_dir", str(studio / "loras"), "--output_dir", str(studio / "out"), *STEPS],
        "fit": ["--lora_dir", str(studio / "new"), "--trainer.max_steps", "2", "--model.rank", "2",
                "--data.crops.resolution", "64", "--data.crops.crop_size", "64"],
    }[kind]  # fmt: skip
    here = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    return [kind, "--data.manifest", str(studio / "rows.csv"), *model, *here, *own, *more]


def interrupt(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("predict", "diffstyler.backbones.StableDiffusion.load"),
        ("predict", "diffstyler.predict.stylizer.denoise"),
        ("predict", "diffstyler.predict.row_check.resolve_adapters"),
        ("fit", "diffstyler.backbones.StableDiffusion.load"),
        ("fit", "diffstyler.fit.bench.FitBench.update"),
    ],
)
def test_ctrl_c_ends_with_130_and_a_plain_word_wherever_it_comes(studio, tiny_dir, capsys, monkeypatch, kind, place):
    monkeypatch.setattr(place, interrupt)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(command(kind, studio, tiny_dir)) == 130
        assert signal.getsignal(signal.SIGINT) in (before, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, before)
    told = capsys.readouterr().err
    assert f"diffstyler: {kind} was interrupted; what was done is kept, and the same command goes on" in told
    assert "Traceback" not in told


def test_a_library_that_makes_another_error_of_ctrl_c_changes_nothing(studio, tiny_dir, capsys, monkeypatch):
    def load(*_: object) -> None:
        try:
            interrupt()
        except KeyboardInterrupt as error:
            raise OSError("the model cannot be loaded") from error

    monkeypatch.setattr(StableDiffusion, "load", load)
    assert main(command("predict", studio, tiny_dir)) == 130
    assert "cannot be loaded" not in capsys.readouterr().err


def test_main_runs_beside_the_main_thread(capsys):
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["inspect", "nowhere.safetensors"])))
    thread.start()
    thread.join()
    assert codes == [1]


# ---- disks


class FullDisk:
    """Takes so many files, and no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, files: int) -> None:
        self.left = files
        monkeypatch.setattr(diffstyler.files.os, "fsync", self.sync)

    def sync(self, file: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_the_file_and_what_was_there_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic_write(path, b"old")
    FullDisk(monkeypatch, 0)
    with pytest.raises(OSError, match="No space left") as told:
        atomic_write(path, b"new")
    assert told.value.errno == errno.ENOSPC
    assert told.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_predict_on_a_full_disk_keeps_what_is_done_and_goes_on_later(studio, tiny_dir, capsys, monkeypatch):
    words = command("predict", studio, tiny_dir)
    with monkeypatch.context() as patch:
        FullDisk(patch, 2)  # one picture and its sidecar
        assert main(words) == 1
    told = capsys.readouterr().err
    assert "photo-tomato.png: No space left on device; what was done is kept: make room, and run again" in told
    files = {path.name: path.read_bytes() for path in (studio / "out").glob("photo-gold.*")}
    assert set(files) == {"photo-gold.png", "photo-gold.json"}
    assert not list((studio / "out").glob(".*"))
    assert main(words) == 0
    assert files == {path.name: path.read_bytes() for path in (studio / "out").glob("photo-gold.*")}
    assert (studio / "out" / "photo-tomato.json").is_file()


@pytest.mark.parametrize("kind", ["predict", "fit"])
@pytest.mark.parametrize("fault", ["a file", "read-only", "full"])
def test_where_nothing_can_be_written_check_and_run_say_so_first(studio, tiny_dir, capsys, monkeypatch, kind, fault):
    words = command(kind, studio, tiny_dir)
    folder = Path(words[words.index("--output_dir" if kind == "predict" else "--lora_dir") + 1])
    monkeypatch.setattr(StableDiffusion, "load", lambda *_: pytest.fail("weights were loaded"))
    if fault == "a file":
        folder.write_text("")
    elif fault == "read-only":
        monkeypatch.setattr(diffstyler.files.os, "access", lambda *_: False)
    else:
        monkeypatch.setattr(diffstyler.files, "LEAST_FREE", 1 << 70)
    assert main(words) == 1
    with pytest.raises(SystemExit, match="1"):
        main(["check", *words])
    said = capsys.readouterr()
    for text in (said.err, said.out):
        assert f"{folder}: expected " in text


def test_a_folder_that_can_be_made_is_writable(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DiffstylerError, match="is a file"):
        check_writable(tmp_path / "file" / "below")


def test_what_fails_in_one_picture_is_listed_with_it(studio, tiny_dir, monkeypatch):
    """Whatever the method raises."""
    real, calls = stylizer.denoise, []

    def denoise(*args: object, **told: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return real(*args, **told)

    monkeypatch.setattr(stylizer, "denoise", denoise)
    with pytest.raises(RuntimeError, match="out of memory"):
        stylize(studio, tiny_dir, row(studio), row(studio, style="tomato"))
    (failure,) = [json.loads(line) for line in (studio / "out" / "failures.jsonl").read_text().splitlines()]
    assert failure["id"] == "photo-gold"
    assert (studio / "out" / "photo-tomato.png").is_file()
