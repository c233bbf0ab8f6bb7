"""Jobs shared through a folder: none done twice, none lost, whoever is killed."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import crashes
import pytest
import torch
from PIL import Image
from runs import DDP, children, matrices, start, two_ranks, wait_for
from safetensors.torch import save_file

from diffstyler.adapters import WEIGHTS_NAME, LoRAIdentity, LoRALibrary
from diffstyler.cli.main import main
from diffstyler.fit.job_queue import Failure, FailureLog, JobQueue
from diffstyler.fit.jobs import FitJob, FitPicture, FitSettings


def jobs(*steps: int) -> list[FitJob]:
    return [
        FitJob(
            FitPicture((Path(f"{index}.png"),), str(index), str(index)),
            FitSettings(steps=number),
            LoRAIdentity("style", str(index), str(index), "model", {}),
        )
        for index, number in enumerate(steps)
    ]


def write(folder: Path) -> None:
    save_file({"weights": torch.zeros(1)}, folder / WEIGHTS_NAME)


def names(queue: JobQueue) -> list[str]:
    return [entry.identity.name for entry in queue.finished]


@pytest.fixture
def library(tmp_path: Path) -> LoRALibrary:
    return LoRALibrary(tmp_path)


def test_the_largest_wanted_job_comes_first(library):
    queue = JobQueue(library, jobs(5, 20, 10))
    queue.order(lambda job: -job.settings.steps, kind=lambda job: "long" if job.settings.steps > 5 else "short")
    assert [queue.claim({"long"}).settings.steps for _ in range(2)] == [10, 20]
    assert queue.claim({"long"}) is None
    assert queue.claim().settings.steps == 5


def test_the_longest_job_comes_first(library):
    queue = JobQueue(library, jobs(5, 20, 10))
    claimed = [queue.claim() for _ in range(4)]
    assert [job and job.settings.steps for job in claimed] == [20, 10, 5, None]


def test_jobs_of_equal_identity_count_once(library):
    assert len(JobQueue(library, [*jobs(5, 5), *jobs(5)]).waiting) == 2


def test_a_job_is_claimed_by_one_farm_alone(library):
    one, other = JobQueue(library, jobs(3, 2)), JobQueue(library, jobs(3, 2))
    first, second = one.claim(), other.claim()
    assert (first.settings.steps, second.settings.steps) == (3, 2)
    assert one.claim() is None
    assert len(one.waiting) == 1
    one.publish(first, write, ["it was hard"])
    assert one.claim() is None
    other.close()
    assert one.claim().identity == second.identity
    assert other.claim() is None
    one.publish(second, write)
    assert names(one) == ["0", "1"]
    assert names(JobQueue(library, jobs(3, 2))) == ["0", "1"]
    assert one.finished[0].history == ("it was hard",)
    assert list((library.lora_dir / ".unfinished").iterdir()) == []


def test_what_another_process_finished_is_found(library):
    one, other = JobQueue(library, jobs(3, 2)), JobQueue(library, jobs(3, 2))
    one.publish(one.claim(), write)
    assert other.claim().settings.steps == 2
    assert names(other) == ["0"]
    other.close()


def test_what_others_finished_is_noticed_without_claiming(library):
    one, other = JobQueue(library, jobs(3, 2)), JobQueue(library, jobs(3, 2))
    one.publish(one.claim(), write, steps_taken=2)
    other.notice()
    assert names(other) == ["0"]
    assert other.finished[0].steps_taken == 2
    assert [job.settings.steps for job in other.waiting] == [2]


def test_a_failed_job_is_not_tried_again_in_this_run(library):
    one, other = JobQueue(library, jobs(3)), JobQueue(library, jobs(3))
    one.fail(one.claim(), "broken")
    assert other.claim() is None
    assert [failure.reason for failure in other.failed()] == ["broken"]
    assert JobQueue(library, []).failed() == []
    other.failures.begin("other", {"content"})
    assert library.lora_dir.joinpath("failures.jsonl").exists()
    other.failures.begin("another", {"style"})
    assert not (library.lora_dir / "failures.jsonl").exists()
    assert JobQueue(library, jobs(3)).claim()


def test_failures_hold_one_line_for_each_lora(tmp_path):
    log = FailureLog(tmp_path)
    for key, reason in [("a", "old"), ("b", "Ü"), ("a", "new")]:
        log.add(Failure(key, "style", "p.png", reason))
    assert [(failure.key, failure.reason) for failure in log.read()] == [("b", "Ü"), ("a", "new")]
    assert len((tmp_path / "failures.jsonl").read_text().splitlines()) == 2


# ---- the real command, with processes that are really killed


@pytest.fixture(scope="module")
def command(tiny_dirs, tmp_path_factory) -> list[str]:
    """Five pictures, the tiny model."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(5):
        image = Image.effect_mandelbrot((72, 64), (-2.5 + index, -2, 2, 2), 20).convert("RGB")
        image.save(folder / f"p{index}.png")
    options = {
        "data.pictures": json.dumps([str(path) for path in sorted(folder.glob("*.png"))]),
        "data.pack_size": "2",
        "data.crops.crop_size": "64",
        "data.crops.count": "2",
        "model.backbone": "StableDiffusion",
        "model.backbone.model": str(tiny_dirs["epsilon"]),
        "model.rank": "2",
        "model.preview_steps": "0",
        "model.checkpoint_every": "2",
        "trainer.max_steps": "6",
        "trainer.logger": "false",
        "trainer.accelerator": "cpu",
        "trainer.deterministic": "true",
    }
    return ["fit", *(part for name, value in options.items() for part in (f"--{name}", value))]


@pytest.fixture(scope="module")
def expected(command, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected")
    assert fit(command, folder) == 0
    return weights(folder)


def fit(command: list[str], folder: Path, *more: str) -> int:
    try:
        return main([*command, "--lora_dir", str(folder), *more])
    finally:
        torch.use_deterministic_algorithms(False)


def weights(folder: Path) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in folder.glob("[!.]*/*.safetensors")}


def done_by_two(told: str) -> int:
    """LoRAs done, as the bar of two ranks says in the end, with all steps, and a loss that is a number if any."""
    bar = re.search(r"LoRAs (\d+)/(\d+) \S+ (\d+)/(\d+) .*?(loss \d\.\d{3})? +left", told)
    assert bar, told
    assert (bar[1], bar[3]) == (bar[2], bar[4]), told
    assert "loss" not in told or bar[5], told
    return int(bar[1])


def test_two_ranks_share_the_jobs(command, expected, tmp_path):
    process = start(command, tmp_path, *DDP, stdout=subprocess.PIPE)
    told, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert done_by_two(told) == len(expected)
    assert weights(tmp_path) == expected
    assert list((tmp_path / ".unfinished").iterdir()) == []


def test_fewer_jobs_than_ranks(command, expected, tmp_path):
    one = json.dumps(json.loads(command[command.index("--data.pictures") + 1])[:1])
    codes, told, error = two_ranks([*command, "--data.pictures", one, "--data.pack_size", "1"], tmp_path / "loras")
    assert codes == [0, 0], error
    assert done_by_two(told) == 1
    assert len(weights(tmp_path / "loras")) == 1


TOGETHER = ("--data.together", "dots", "--model.batch_size", "3", "--trainer.precision", "64-true")


def test_two_ranks_fit_one_lora_together(command, tmp_path):
    codes, told, error = two_ranks([*command, *TOGETHER], tmp_path / "two")
    assert codes == [0, 0], error
    assert done_by_two(told) == 1
    assert fit([*command, *TOGETHER], tmp_path / "one") == 0
    states = [matrices(next((tmp_path / name).glob("dots-*"))) for name in ("one", "two")]
    flat = [torch.cat([state[key].flatten().double() for key in sorted(state)]) for state in states]
    assert (flat[0] - flat[1]).norm() / flat[0].norm() < 1e-6


def test_a_team_needs_a_row_for_each_rank(command, tmp_path):
    codes, _, error = two_ranks([*command, *TOGETHER, "--model.batch_size", "1"], tmp_path / "loras")
    assert 0 not in codes
    assert "expected at least a row for each of the 2 ranks that fit 'dots' together, got 1" in error


def test_a_killed_run_goes_on_with_another_number_of_ranks(command, expected, tmp_path):
    """One of two ranks is killed; tests/faults/test_crashes.py kills runs as a whole."""
    process = start(command, tmp_path, *DDP)
    wait_for(tmp_path, ".unfinished/*.pt")
    os.kill(children(process)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert fit(command, tmp_path) == 0
    assert weights(tmp_path) == expected
    assert list((tmp_path / ".unfinished").iterdir()) == []


def test_a_terminated_run_says_so_and_goes_on(command, expected, tmp_path):
    process = crashes.start(command, tmp_path)
    wait_for(tmp_path, ".unfinished/*.pt")
    os.kill(process, signal.SIGTERM)
    assert crashes.ended(process) == 128 + signal.SIGTERM
    assert fit(command, tmp_path) == 0
    assert weights(tmp_path) == expected
