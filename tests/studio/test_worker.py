"""The worker: what is asked for comes out, repeatable by the command; what ends it loses nothing."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from studio_jobs import fit_request, new_picture, restyle_request

import diffstyler
from diffstyler.adapters import LoRALibrary
from diffstyler.cli.main import main
from diffstyler.errors import DiffstylerError
from diffstyler.images import load_image
from diffstyler.studio.server import WorkerProcess
from diffstyler.studio.worker import Worker

pytestmark = pytest.mark.filterwarnings("ignore:GPU available but not used")


def test_a_picture_and_its_manifest_that_makes_it_again(worker, queue, folder, studio, monkeypatch):
    """A painted region in a style that is yet to be fitted, another one of the library in a box."""
    mask = Image.new("L", (72, 64))
    mask.paste(255, (0, 0, 30, 64))
    painted, photograph = folder.keep_drawn(mask), folder.keep_picture(studio / "photo.png")
    (gold,) = [e.folder for e in LoRALibrary(studio / "loras").entries() if e.identity.name == "gold"]
    request = restyle_request(
        photograph,
        {"name": "new", "picture": str(new_picture(folder, "new", 5)), "mask": f"file: {painted}", "strength": 0.7},
        {"name": "gold", "lora": str(gold), "style_picture": None, "mask": "box: 0.6,0.0,1.0,0.5", "strength": 1.5},
    )
    job = queue.submit("restyle", "me", request)
    notes, begin = [], worker.queue.begin
    monkeypatch.setattr(worker.queue, "begin", lambda id, note: (notes.append(note), begin(id, note)))
    shown, show = {}, worker.queue.show

    def see(id, **seen):
        show(id, **seen)
        if "preview" in seen:
            path = Path(seen["preview"])
            assert shown.setdefault(path, path.read_bytes()) == path.read_bytes()

    monkeypatch.setattr(worker.queue, "show", see)
    (gold / "thumbnail.png").write_bytes((studio / "gold.png").read_bytes())
    assert worker.step()
    job = queue.get(job.id)
    assert (job.state, job.note) == ("done", "")
    assert len(shown) > 1  # a browser may be half through a look when the next one comes
    assert all(path.read_bytes() == look for path, look in shown.items())
    assert notes == ["learning the style of new first", "restyling"]
    assert job.result["looks"] >= 1
    made = load_image(Path(job.result["picture"]))
    assert made.size == (72, 64)
    assert made.tobytes() != load_image(photograph).tobytes()
    manifest = Path(job.result["manifest"])
    assert len(manifest.read_text().splitlines()) == 1
    monkeypatch.chdir(manifest.parent)
    assert main([*shlex.split(job.result["command"])[1:], "--trainer.accelerator", "cpu"]) == 0
    assert load_image(Path(f"again/{photograph.stem}.png")).tobytes() == made.tobytes()
    told = [json.loads(Path(path).read_text()) for path in (job.result["sidecar"], f"again/{photograph.stem}.json")]
    assert told[0]["key"] == told[1]["key"]
    again = queue.submit("restyle", "me", {**request, "steps": 2})
    assert worker.step()
    assert queue.get(again.id).state == "done"
    assert notes[2:] == ["restyling"]  # the style is known now


def test_fits_go_together_and_one_is_cancelled_while_the_other_goes_on(worker, queue, folder, monkeypatch):
    jobs = [queue.submit("fit", "me", fit_request(new_picture(folder, name, ord(name)), steps=8)) for name in "ab"]
    add_loss, told = worker.queue.add_loss, []

    def add(id, step, loss):
        add_loss(id, step, loss)
        told.append((id, step))
        if step == 3:
            queue.cancel(jobs[1].id)

    monkeypatch.setattr(worker.queue, "add_loss", add)
    assert worker.step()
    assert [queue.get(job.id).state for job in jobs] == ["waiting", "cancelled"]
    assert worker.step()
    assert not worker.step()
    done = queue.get(jobs[0].id)
    assert done.state == "done"
    assert (Path(done.result["lora"]) / "pytorch_lora_weights.safetensors").is_file()
    assert Path(done.result["preview"]).is_file()
    assert [step for step, _ in queue.losses(done.id)] == list(range(1, 9))
    assert sorted(step for id, step in told if id == done.id) == list(range(1, 9))  # it went on where it was
    assert {step for id, step in told if id == jobs[1].id} <= {1, 2, 3, 4}


def test_a_picture_does_not_wait_for_a_fit_and_closing_keeps_it(worker, queue, folder, studio, monkeypatch):
    fit = queue.submit("fit", "me", fit_request(new_picture(folder, "a", 1), steps=6))
    wanted = restyle_request(
        folder.keep_picture(studio / "photo.png"),
        {"name": "gold", "picture": str(folder.keep_picture(studio / "gold.png"))},
    )
    asked: list = []
    add_loss = worker.queue.add_loss

    def add(id, step, loss):
        add_loss(id, step, loss)
        if step == 2 and not asked:
            asked.append(queue.submit("restyle", "me", wanted))

    monkeypatch.setattr(worker.queue, "add_loss", add)
    assert worker.step()
    assert queue.get(fit.id).state == "waiting"
    assert worker.step()
    assert queue.get(asked[0].id).state == "done"
    worker.closing.set()
    assert worker.step()
    assert queue.get(fit.id).state == "waiting"
    worker.closing.clear()
    assert worker.step()
    assert queue.get(fit.id).state == "done"
    assert queue.get(fit.id).tries == 1


def test_what_goes_wrong_is_said_as_the_commands_say_it(worker, queue, folder, studio, tiny_dir, monkeypatch, capsys):
    photograph, gold = folder.keep_picture(studio / "photo.png"), folder.keep_picture(studio / "gold.png")
    wrong = {
        "mask": {"name": "gold", "picture": str(gold), "mask": "box: 0,0,99,20"},
        "style": {"name": "gone", "lora": str(studio / "loras/gone")},
    }
    for column, region in wrong.items():
        job = queue.submit("restyle", "me", restyle_request(photograph, region))
        assert worker.step()
        job = queue.get(job.id)
        assert job.state == "failed"
        assert f"{column}'" in job.note
        manifest = folder.job(job.id) / f"{photograph.stem}.jsonl"
        command = worker.engine.command("predict", {}, str(manifest))
        monkeypatch.chdir(folder.path)
        capsys.readouterr()
        assert main(shlex.split(command)[1:]) == 1
        assert job.note in capsys.readouterr().err
    nowhere = queue.submit("fit", "me", {**fit_request(gold, steps=2), "picture": str(studio / "none.png")})
    assert worker.step()
    with pytest.raises(DiffstylerError) as by_command:
        diffstyler.fit(studio / "none.png")
    assert queue.get(nowhere.id).note == str(by_command.value)


def test_what_nobody_foresaw_fails_its_job_and_no_other(worker, queue, folder, studio, monkeypatch):
    photograph, gold = folder.keep_picture(studio / "photo.png"), folder.keep_picture(studio / "gold.png")
    region = {"name": "gold", "picture": str(gold)}
    words = queue.submit("restyle", "me", restyle_request(photograph, {**region, "mask": "x " * 200}))
    broken = queue.submit("restyle", "me", {"content": str(photograph)})
    fine = queue.submit("restyle", "me", restyle_request(photograph, region))
    while worker.step():
        pass
    assert [queue.get(job.id).state for job in (words, broken, fine)] == ["failed", "failed", "done"]
    assert "expected words of at most" in queue.get(words.id).note
    assert "something went wrong that should not (KeyError: 'regions')" in queue.get(broken.id).note


def test_a_comparison_has_a_cell_for_each_value_with_figures(worker, queue, folder, studio):
    gold = {"name": "gold", "picture": str(folder.keep_picture(studio / "gold.png"))}
    request = restyle_request(folder.keep_picture(studio / "photo.png"), gold)
    request |= {"axis": "strength", "axis_name": "strength", "values": [0.0, 1.5]}
    job = queue.submit("compare", "me", request)
    assert worker.step()
    job = queue.get(job.id)
    assert (job.state, job.note) == ("done", "")
    assert [(cell["style"], cell["value"]) for cell in job.result["cells"]] == [("gold", 0.0), ("gold", 1.5)]
    pictures = [load_image(Path(cell["picture"])).tobytes() for cell in job.result["cells"]]
    assert pictures[0] != pictures[1]
    assert {"ssim", "patch_distance"} <= job.result["cells"][0]["figures"].keys()


def test_a_killed_worker_loses_nothing(folder, queue, engine, studio, tiny_dir):
    """The real process, killed in the middle of a fit; another one goes on from what was kept, and the rest follows."""
    pictures = {new_picture(folder, "a", 1): 400, new_picture(folder, "b", 2): 3}
    jobs = [queue.submit("fit", "me", fit_request(picture, steps=steps)) for picture, steps in pictures.items()]
    places = [
        "--folder",
        str(folder.path),
        "--lora_dir",
        str(studio / "loras"),
        *engine.fit,
        "--trainer.accelerator",
        "cpu",
    ]
    words = [sys.executable, "-m", "diffstyler", "studio", "--worker", *places, "--model.checkpoint_every", "2"]
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)
    while len(queue.losses(jobs[0].id)) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdin
    process.stdin.close()
    assert [queue.get(job.id).state for job in jobs] == ["running", "waiting"]
    reached = queue.losses(jobs[0].id)[-1][0]
    closing = threading.Event()
    other = Worker(folder, engine, closing)
    first: list[int] = []
    add_loss = other.queue.add_loss

    def add(id, step, loss):
        first.append(step)
        add_loss(id, step, loss)
        queue.cancel(jobs[0].id)  # it goes on: that is seen, and enough

    other.queue.add_loss = add  # type: ignore[method-assign]
    other.queue.recover()
    assert other.step()
    assert other.step()
    assert first[0] > reached - 4
    assert [queue.get(job.id).state for job in jobs] == ["cancelled", "done"]


def test_a_worker_that_dies_is_started_again_and_ends_with_the_studio(folder):
    """Each start leaves a line; the first one dies, the second one stays until its input ends."""
    program = (
        "import sys, pathlib; p = pathlib.Path(sys.argv[1]); n = len(p.read_text()) if p.exists() else 0\n"
        "p.write_text('x' * (n + 1))\nif n == 0: sys.exit(3)\nsys.stdin.read(); p.write_text('end')"
    )
    path = folder.path / "starts"
    process = WorkerProcess([sys.executable, "-c", program, str(path)], folder)
    while not path.exists() or path.read_text() != "xx":
        time.sleep(0.05)
    process.close()
    assert path.read_text() == "end"
