"""How runs end: interrupted, on full and read-only disks. What was done is kept, and one line says so."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import crashes
import pytest
import torch
from runs import row, stylize
from torch.optim.optimizer import register_optimizer_step_post_hook

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


ENDS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


def sending(signum: signal.Signals) -> Callable[..., None]:
    def send(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signum)
        time.sleep(5)

    return send


@pytest.mark.parametrize(
    ("kind", "signum", "place"),
    [
        ("predict", signal.SIGINT, "diffstyler.backbones.StableDiffusion.load"),
        ("predict", signal.SIGINT, "diffstyler.predict.stylizer.denoise"),
        ("predict", signal.SIGTERM, "diffstyler.predict.row_check.resolve_adapters"),
        ("predict", signal.SIGTERM, "diffstyler.predict.stylizer.find_masks"),
        ("predict", signal.SIGTERM, "diffstyler.predict.inverter.invert"),
        ("predict", signal.SIGINT, "diffstyler.predict.writer.save_image"),
        ("fit", signal.SIGTERM, "diffstyler.backbones.StableDiffusion.load"),
        ("fit", signal.SIGINT, "diffstyler.fit.bench.take_crops"),
        ("fit", signal.SIGINT, "diffstyler.fit.bench.FitBench.update"),
        ("fit", signal.SIGTERM, "diffstyler.fit.bench.save_lora"),
    ],
)
def test_ctrl_c_and_sigterm_end_with_130_and_143_and_a_plain_word_wherever_they_come(
    studio, tiny_dir, capsys, monkeypatch, kind, signum, place
):
    words = command(kind, studio, tiny_dir)
    (studio / "rows.csv").write_text("content,style,mask\nphoto.png,gold.png,left half\n")
    monkeypatch.setattr(place, sending(signum))
    before, (code, word) = {one: signal.getsignal(one) for one in ENDS}, ENDS[signum]
    try:
        assert main(words) == code
        assert all(signal.getsignal(one) in (handler, signal.SIG_IGN) for one, handler in before.items())
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    told = capsys.readouterr().err
    assert f"diffstyler: {kind} was {word}; what was done is kept, and the same command goes on" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("signum", ENDS)
def test_a_signal_while_libraries_are_imported_ends_at_once(tmp_path, signum):
    """An exception in the middle of a C++ library's import may abort the process."""
    text = f"import os, time; os.kill(os.getpid(), {int(signum)}); time.sleep(5)"
    (tmp_path / "library.py").write_text(text)
    change = "m.COMMANDS['fit'] = (lambda words: __import__('library'), '')"
    program = f"import sys; from diffstyler.cli import main as m; {change}; sys.exit(m.main(['fit']))"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    told = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    code, word = ENDS[signum]
    assert told.returncode == code
    assert told.stderr == f"diffstyler: fit was {word}; what was done is kept, and the same command goes on\n"


def test_signals_are_answered_from_the_first_import_on(studio, tiny_dir):
    """By the real process, at moments of its start."""
    for signum, seconds in ((signal.SIGTERM, 0.0), (signal.SIGINT, 0.1), (signal.SIGTERM, 1.0), (signal.SIGINT, 3.0)):
        words = [sys.executable, "-m", "diffstyler", "check", *command("predict", studio, tiny_dir)]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        status = Path(f"/proc/{process.pid}/status")
        while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            assert process.poll() is None
        time.sleep(seconds)
        process.send_signal(signum)
        _, error = process.communicate(timeout=10)
        code, word = ENDS[signum]
        assert process.returncode == code, error
        assert word in error.splitlines()[-1]
        assert "Traceback" not in error


def test_what_swallows_an_interruption_is_ended_all_the_same(studio, tiny_dir, monkeypatch):
    def load(*_: object) -> None:
        try:
            sending(signal.SIGTERM)()
        except BaseException:
            time.sleep(60)

    monkeypatch.setattr(StableDiffusion, "load", load)
    monkeypatch.setattr("diffstyler.cli.signals.PATIENCE", 0.2)
    began = time.monotonic()
    assert crashes.ended(crashes.start(command("predict", studio, tiny_dir)[:-2], studio / "out")) == 143
    assert time.monotonic() - began < 30


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles for the CPU by g++")
def test_a_fit_that_compiles_ends_within_seconds(studio, tiny_dir, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(studio / "compiled"))
    words = command("fit", studio, tiny_dir, "--model.compile", "true", "--data.pictures", f'["{studio}/gold.png"]')
    process = crashes.start([*words, "--data.manifest", "null"], studio / "new")
    while not any((studio / "compiled").rglob("*.cpp")):
        assert os.waitpid(process, os.WNOHANG) == (0, 0), "it ended before it compiled"
        time.sleep(0.05)
    began = time.monotonic()
    os.kill(process, signal.SIGTERM)
    assert crashes.ended(process) == 143
    assert time.monotonic() - began < 10


def test_ctrl_c_between_two_loras_of_a_step_saves_no_half_step(studio, tiny_dir):
    words = command("fit", studio, tiny_dir, "--trainer.deterministic", "true", "--data.pack_size", "2")
    try:
        assert main([*words, "--lora_dir", str(studio / "whole")]) == 0
        steps = []

        def after_step(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
            steps.append(optimizer)
            if len(steps) == 1:
                os.kill(os.getpid(), signal.SIGINT)

        hook = register_optimizer_step_post_hook(after_step)
        try:
            assert main(words) == 130
        finally:
            hook.remove()
        assert len(steps) == 2
        assert len(list((studio / "new" / ".unfinished").glob("*.pt"))) == 2
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert main(words) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert crashes.files("fit", studio / "whole") == crashes.files("fit", studio / "new") != {}


def test_a_library_that_makes_another_error_of_ctrl_c_changes_nothing(studio, tiny_dir, capsys, monkeypatch):
    def load(*_: object) -> None:
        try:
            sending(signal.SIGINT)()
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
