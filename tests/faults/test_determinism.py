"""Same seed, same bytes, on a CPU in float32: in any order, beside any others, in how many processes, resumed or not.

Of a fit with ``trainer.deterministic`` the LoRAs' files at one ``data.pack_size``; of a predict with
``model.rows_per_call`` the pictures, the masks and the sidecars but for their seconds. Without ``rows_per_call`` a
picture depends, by a gray level, on what else is computed in the same call. That ranks change nothing is tried in
tests/fit/test_job_queue.py and tests/predict/test_predict_farm.py.
"""

import json
import os
import signal
import time
from pathlib import Path

import crashes
import pytest
import torch

from diffstyler.cli.main import main

HERE = ("--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
#: the second content is as large as the styles, so that its inversion and theirs may share calls
ROWS = """\
id,content,style,mask,seed
a,photo.png,gold.png,,1
b,tomato.png,gold.png,left half,2
c,photo.png,tomato.png,the cat,3
d,tomato.png,tomato.png,,4
"""
PICTURES = ("gold", "tomato", "photo")


@pytest.fixture
def predict(studio, tiny_dir) -> list[str]:
    (studio / "rows.csv").write_text(ROWS)
    header, *rows = ROWS.splitlines()
    (studio / "backward.csv").write_text("\n".join([header, *rows[::-1]]))
    (studio / "last.csv").write_text(f"{header}\n{rows[-1]}\n")
    model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]
    steps = ["--model.num_inference_steps", "2", "--model.rows_per_call", "4", "--model.on_empty_mask", "whole"]
    seeded = ["--model.initial", "FromContent", "--model.initial.noise", "0.5"]
    more = ["--data.manifest", str(studio / "rows.csv"), "--lora_dir", str(studio / "loras")]
    return ["predict", *model, *HERE, *steps, *seeded, *more]


@pytest.fixture
def fit(studio, tiny_dir) -> list[str]:
    model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir), "--model.rank", "2"]
    size = ["--data.crops.resolution", "64", "--data.crops.crop_size", "64", "--data.pack_size", "2"]
    steps = ["--trainer.max_steps", "4", "--trainer.deterministic", "true", "--model.checkpoint_every", "1"]
    return ["fit", *model, *HERE, *size, *steps, *named(studio, PICTURES)]


def named(studio: Path, names: tuple[str, ...]) -> list[str]:
    return ["--data.pictures", json.dumps([str(studio / f"{name}.png") for name in names])]


def run(words: list[str], folder: Path, *more: str) -> dict[str, bytes]:
    try:
        code = main([*words, crashes.OUTPUT[words[0]], str(folder), *more])
    finally:
        torch.use_deterministic_algorithms(False)
    assert code == 0
    return made(words[0], folder)


def made(kind: str, folder: Path) -> dict[str, bytes]:
    """By their place in the folder, what is to be the same."""
    patterns = [*crashes.SAME[kind], *(["*.json"] if kind == "predict" else [])]
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    return {str(path.relative_to(folder)): content(path) for path in paths}


def content(path: Path) -> bytes:
    if path.suffix != ".json":
        return path.read_bytes()
    told = json.loads(path.read_bytes())
    told.pop("seconds", None)
    return json.dumps(told, sort_keys=True).encode()


def killed_midway(words: list[str], folder: Path, pattern: str) -> None:
    process = crashes.start(words, folder)
    try:
        while not any(folder.glob(pattern)):
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "it ended before it was killed"
            time.sleep(0.01)
    finally:
        os.kill(process, signal.SIGKILL)
    assert crashes.ended(process) == -signal.SIGKILL


def test_pictures_are_the_same_in_every_run_order_and_batch_and_after_a_kill(predict, studio, tmp_path):
    expected = run(predict, tmp_path / "first")
    assert len(expected) == 4 + 4 + 2  # pictures, sidecars, masks
    backward = ("--data.manifest", str(studio / "backward.csv"))
    assert run(predict, tmp_path / "two", "--data.batch_size", "2", *backward) == expected
    assert run(predict, tmp_path / "four", "--data.batch_size", "4") == expected
    alone = run(predict, tmp_path / "alone", "--data.manifest", str(studio / "last.csv"))
    assert len(alone) == 2
    assert alone.items() <= expected.items()
    killed_midway(predict, tmp_path / "alone", "[abc].png")
    assert run(predict, tmp_path / "alone") == expected


def test_pictures_depend_on_their_seed(predict, studio, tmp_path):
    """Else the others would say nothing of it."""
    (studio / "other.csv").write_text((studio / "last.csv").read_text().replace(",4\n", ",5\n"))
    first = run(predict, tmp_path / "first", "--data.manifest", str(studio / "last.csv"))
    other = run(predict, tmp_path / "other", "--data.manifest", str(studio / "other.csv"))
    assert first["d.png"] != other["d.png"]


def test_loras_are_the_same_in_every_run_order_and_after_a_limit_and_a_kill(fit, studio, tmp_path):
    expected = run(fit, tmp_path / "first")
    assert len(expected) == 3 + 3
    assert run(fit, tmp_path / "backward", *named(studio, PICTURES[::-1])) == expected
    assert run(fit, tmp_path / "fewer", *named(studio, PICTURES[:2])).items() <= expected.items()
    limit = ("--trainer.max_time", '{"microseconds": 1}')
    assert main([*fit, "--lora_dir", str(tmp_path / "limited"), *limit]) == 1
    assert list((tmp_path / "limited" / ".unfinished").glob("*.pt"))
    killed_midway(fit, tmp_path / "limited", "[!.]*/*.safetensors")
    assert run(fit, tmp_path / "limited") == expected
