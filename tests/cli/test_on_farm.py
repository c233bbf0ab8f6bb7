"""fit and predict with --farm ray as workers do them, one after another in this process: what comes out is the same.

How workers are started, lost and replaced is told in tests/farm/test_ray.py, all of it together by
tools/reliability/ray_farm.py.
"""

import json
import pickle
import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from diffstyler.cli import settings
from diffstyler.cli.main import main
from diffstyler.farm import Farm, Job, Told
from diffstyler.farm.ledger import Counts, Ledger
from diffstyler.farm.ray import RayFarm, Work


class Here(Farm):
    """A worker's farm whose ledger is in this process; its worker is lost after so many jobs."""

    leads = False

    def __init__(self, ledger: Ledger, name: str, lost_after: float) -> None:
        self.ledger, self.name, self.jobs_left = ledger, name, lost_after

    def offer(self, jobs: Sequence[Job]) -> None:
        self.ledger.offer(jobs)

    def claim(self, kinds: Collection[str] = (), most: int = 1) -> list[str]:
        return self.ledger.claim(self.name, kinds, most)

    def finish(self, key: str) -> None:
        if self.jobs_left <= 0:
            raise LostError
        self.jobs_left -= 1
        self.ledger.finish(self.name, key)

    def fail(self, key: str, reason: str) -> None:
        self.ledger.fail(self.name, key, reason)

    def left(self) -> list[str]:
        return self.ledger.left(self.name)

    def close(self) -> None:
        self.ledger.release(self.name)


class LostError(BaseException):
    """The worker's node is gone."""


@pytest.fixture
def workers(monkeypatch) -> list[str]:
    """Who did something, one after another; the first two are lost after a job, while they do the next one."""
    names: list[str] = []

    def run(
        self: RayFarm, work: Work, jobs: Sequence[Job], *, offered: bool, watch: Callable[[Counts, int], None]
    ) -> list[Told]:
        ledger = Ledger()
        ledger.offer(jobs)
        while ledger.counts().open:
            name = f"worker {len(names)}"
            names.append(name)
            sent = pickle.loads(pickle.dumps(work))
            try:
                sent(Here(ledger, name, lost_after=1 if len(names) < 3 else 99), None)
            except LostError:
                ledger.release(name)
            watch(ledger.counts(), 1)
        return ledger.told()

    monkeypatch.setattr(RayFarm, "run", run)
    monkeypatch.setattr("diffstyler.cli.on_farm.logging.basicConfig", lambda **_: None)
    return names


@pytest.fixture
def command(studio, tiny_dir, tmp_path) -> Callable[..., list[str]]:
    """The words of both commands; some of them lie in a config, which is read here alone."""
    rows = "photo.png,gold.png\nphoto.png,tomato.png\ntall.png,gold.png\nbad.png,gold.png\ntall.png,tomato.png\n"
    (studio / "rows.csv").write_text("content,style\n" + rows)
    (studio / "bad.png").write_bytes(b"not a picture")
    (studio / "cpu.yaml").write_text("trainer:\n  accelerator: cpu\n  logger: false\n  deterministic: true\n")
    model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]
    rest = ["--config", str(studio / "cpu.yaml"), "--data.manifest", str(studio / "rows.csv"), "--on_error", "skip"]

    def words(name: str, *more: str) -> list[str]:
        return [name, *model, *rest, *more]

    return words


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.use_deterministic_algorithms(False)


def test_pictures_are_those_of_one_process_whoever_is_lost(command, studio, workers, capsys):
    words = command("predict", "--model.num_inference_steps", "2", "--model.rows_per_call", "6")
    words += ["--lora_dir", str(studio / "loras")]
    for name, more in {"plain": [], "farm": ["--farm", "ray"]}.items():
        assert main([*words, "--output_dir", str(studio / name), *more]) == 1
        assert "1 pictures could not be made" in capsys.readouterr().err
    assert len(workers) == 3
    plain, farm = (
        {file.name: Image.open(file).tobytes() for file in (studio / name).glob("*.png")} for name in ("plain", "farm")
    )
    assert plain == farm
    assert len(farm) == 4
    failures = [(studio / name / "failures.jsonl").read_text() for name in ("plain", "farm")]
    assert failures[0] == failures[1]
    assert (studio / "farm" / "index.html").is_file()
    told = json.loads((studio / "farm" / "farm.json").read_text())
    assert (told["what"], told["finished"], told["failed"], told["waiting"]) == ("pictures", 4, 1, 0)


def test_loras_are_those_of_one_process_whoever_is_lost(command, studio, workers, capsys):
    size = ["--data.crops.resolution", "64", "--data.crops.crop_size", "64", "--model.rank", "2"]
    words = command("fit", *size, "--data.role", "content", "--trainer.max_steps", "4", "--model.checkpoint_every", "2")
    for name, more in {"plain": [], "farm": ["--farm=ray"]}.items():
        assert main([*words, "--data.pack_size", "1", "--lora_dir", str(studio / name), *more]) == 1
        assert "bad.png" in capsys.readouterr().err
    plain, farm = (
        {file.parent.name: file.read_bytes() for file in (studio / name).glob("*/*.safetensors")}
        for name in ("plain", "farm")
    )
    assert plain == farm
    assert len(farm) == 2
    reasons = [json.loads((studio / name / "failures.jsonl").read_text())["reason"] for name in ("plain", "farm")]
    assert reasons[0] == reasons[1]
    assert len(workers) == 2
    assert not list((studio / "farm" / ".unfinished").glob("*.pt"))


def test_a_folder_tells_how_far_its_runs_are(command, studio, capsys):
    predict = ["--model.num_inference_steps", "2", "--lora_dir", str(studio / "loras"), "--farm=folder"]
    assert main([*command("predict", *predict), "--output_dir", str(studio / "out"), "--farm.name", "7"]) == 1
    size = ["--data.crops.resolution", "64", "--data.crops.crop_size", "64", "--model.rank", "2"]
    fit = ["--trainer.max_steps", "2", "--data.role", "content", "--lora_dir", str(studio / "new"), "--farm", "folder"]
    assert main(command("fit", *size, *fit)) == 1
    pages = [json.loads((studio / name).read_text()) for name in ("out/farm-7.json", "new/farm.json")]
    names = ("what", "jobs", "finished", "failed", "waiting", "running", "workers", "seconds_left")
    assert [pages[0][name] for name in names] == ["pictures", 5, 4, 1, 0, 0, 0, 0.0]
    assert [pages[1][name] for name in names] == ["LoRAs", 2, 2, 0, 0, 0, 0, 0.0]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--data.together", "all"], "one LoRA is one job"),
        (["--trainer.devices", "2"], "a worker of a farm has one device"),
    ],
)
def test_what_a_farm_cannot_do_is_told_before_anything_is_started(command, studio, workers, capsys, more, told):
    words = command("fit", "--trainer.max_steps", "1", "--lora_dir", str(studio / "none"), "--farm", "ray")
    (studio / "rows.csv").write_text("content,style\nphoto.png,gold.png\n")
    assert main([*words, *more]) == 1
    assert told in capsys.readouterr().err
    assert workers == []


def test_the_job_of_the_operator_says_what_the_command_knows():
    job = yaml.safe_load((Path(__file__).parents[2] / "configs/kubernetes/ray.yaml").read_text())["spec"]
    name, command, *words = shlex.split(job["entrypoint"])
    assert (name, command) == ("diffstyler", "predict")
    settings.PREDICT.read(words)
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--farm"] == "ray"
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    assert group["maxReplicas"] == int(given["--farm.workers"])
