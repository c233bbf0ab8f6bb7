"""diffstyler check: what would run and what would not, and that nothing is loaded or written for it."""

from pathlib import Path

import pytest
import torch
from runs import stylize

from diffstyler.backbones import StableDiffusion
from diffstyler.cli.check import Finding, _attach, network_rows
from diffstyler.cli.main import main
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.initial import FromContent
from diffstyler.diffusion.injection import CrossLoRAInjection, NoInjection
from diffstyler.memory.forecast import network_rate, share_of_matrix_rate
from diffstyler.predict.stylizer import Stylizer
from diffstyler.types import StyleRegion, Triple


@pytest.fixture(autouse=True)
def nothing_is_loaded(studio, monkeypatch, tmp_path):
    monkeypatch.setattr(StableDiffusion, "load", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.setattr(network_rate, "__defaults__", (0.1,))  # seconds
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def manifest(studio):
    path = studio / "rows.csv"
    path.write_text("content,style\nphoto.png,gold.png\ntall.png,tomato.png\n")
    return path


def check(capsys, *arguments) -> tuple[int, dict[str, str], dict[str, str]]:
    """The exit code, and what was found ok and a problem, by topic."""
    try:
        code = main(["check", *map(str, arguments)])
    except SystemExit as error:
        code = error.code
    found: dict[str, dict[str, str]] = {"ok": {}, "problem": {}}
    for line in capsys.readouterr().out.splitlines():
        word, _, rest = line.partition(" ")
        if word in found:
            topic, _, text = rest.strip().partition(" ")
            found[word][topic] = text.strip()
    return code, found["ok"], found["problem"]


def model(tiny_dir) -> tuple[str, ...]:
    return (
        "--model.backbone",
        "StableDiffusion",
        "--model.backbone.model",
        str(tiny_dir),
        "--trainer.accelerator",
        "cpu",
    )


def test_a_predict_that_would_run(capsys, manifest, studio, tiny_dir):
    before = sorted(studio.rglob("*"))
    shared = ["--data.manifest", manifest, "--lora_dir", studio / "loras", *model(tiny_dir)]
    code, ok, problems = check(capsys, "--output_dir", studio / "out", *shared)
    assert (code, problems) == (0, {})
    assert ok["settings"] == "of predict"
    assert ok["manifest"] == "2 pictures with 2 regions"
    assert ok["LoRAs"] == "3 found, and all mask prompts can be read"
    assert "GiB forecast" in ok["memory"]
    assert ok["time"].startswith("200 UNet rows a picture: about ")
    assert sorted(studio.rglob("*")) == before


def test_a_fit_that_would_run(capsys, manifest, tiny_dir, tmp_path):
    arguments = ["--data.manifest", manifest, "--trainer.max_steps", "30", *model(tiny_dir)]
    code, ok, problems = check(capsys, "fit", *arguments)
    assert (code, problems) == (0, {})
    assert ok["pictures"] == "2 LoRAs of 2 pictures, 0 of them are there, 2 to fit"
    assert ok["memory"].startswith("a pack of 2, 0.")
    assert "LoRAs an hour" in ok["time"]
    assert "measured" in ok["time"]
    code, ok, problems = check(capsys, "fit", *arguments, "--data.together", "both")
    assert (code, problems) == (0, {})
    assert ok["pictures"] == "1 LoRAs of 2 pictures, 0 of them are there, 1 to fit"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["fit", "--trainer.max_steps", "30"], "14% of this device's 800.00 TFLOP/s, in calls of 2 rows"),
        (["predict"], "19% of this device's 800.00 TFLOP/s, in calls of 4 rows"),
    ],
)
def test_on_a_gpu_the_guess_goes_by_the_rows_of_a_call(capsys, manifest, studio, tiny_dir, monkeypatch, command, told):
    gpu = torch.device("cuda")
    monkeypatch.setattr("diffstyler.cli.check._attach", lambda *these: _attach(*these) and gpu)
    monkeypatch.setattr("diffstyler.cli.check.matrix_rate", lambda device, dtype: 8e14)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (16 * 2**30, 16 * 2**30))
    _, ok, _ = check(capsys, *command, "--data.manifest", manifest, "--lora_dir", studio / "loras", *model(tiny_dir))
    assert ok["device"] == "a card, 16.0 GiB free"
    assert f"(a guess: {told}" in ok["time"]


@pytest.mark.parametrize(("rows", "measured"), [(1, 0.09), (2, 0.12), (12, 0.26), (16, 0.27), (24, 0.30)])
def test_the_guess_is_near_what_was_measured(rows, measured):
    assert share_of_matrix_rate(torch.device("cuda"), rows) == pytest.approx(measured, rel=0.2)


def test_problems_are_told_together_with_exit_code_1(capsys, manifest, tiny_dir, tmp_path):
    manifest.write_text("content,style\nphoto.png,nowhere.png\n")
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"\x00" * 100)
    shared = ["--data.manifest", manifest, "--model.backbone", "StableDiffusion", "--trainer.accelerator", "cpu"]
    wishes = ["--model.backbone.model", broken, "--output_dir", "out"]
    code, _, problems = check(capsys, *shared, *wishes)
    assert code == 1
    assert "not a whole safetensors file" in problems["model"]
    assert "nowhere.png" in problems["manifest"]


def test_a_ceiling_that_is_too_low(capsys, manifest, studio, tiny_dir):
    shared = ["--data.manifest", manifest, "--lora_dir", studio / "loras", *model(tiny_dir)]
    code, _, problems = check(capsys, "predict", *shared, "--model.max_memory", "0.0001")
    assert code == 1
    assert "two rows, tiles and offloading still take" in problems["memory"]
    code, _, problems = check(capsys, "fit", *shared, "--trainer.max_steps", "5", "--model.max_memory", "0.0001")
    assert code == 1
    assert "one LoRA with gradient checkpointing still take" in problems["memory"]


def test_a_misspelt_key_ends_as_in_the_run(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["check", "fit", "--model.rnak", "3"])
    assert caught.value.code == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_finding_reads_as_a_line():
    assert str(Finding("model", "all is well")) == "ok       model      all is well"
    assert str(Finding("model", "no such file", problem=True)).startswith("problem  model ")


@pytest.mark.parametrize(
    ("settings", "region"),
    [
        ({}, {}),
        ({"guidance_scale": 1.0}, {}),
        ({"injection": NoInjection()}, {}),
        ({"initial": FromContent()}, {}),
        ({"injection": CrossLoRAInjection(0.2, 0.8, source_under_style=True)}, {}),
        ({}, {"stop": 0.5}),
        ({"inversion_refinements": 1}, {"start": 0.5}),
    ],
)
def test_rows_are_counted_as_they_run(studio, tiny, settings, region, monkeypatch):
    rows, run = [], Denoiser._run
    monkeypatch.setattr(Denoiser, "_run", lambda self, own, *call: rows.append(len(own)) or run(self, own, *call))
    settings = {"num_inference_steps": 4, "content_lora": "off", **settings}
    triples = [
        Triple(f"{content}-{style}", studio / f"{content}.png", (StyleRegion(studio / f"{style}.png", **region),))
        for content, style in (("photo", "gold"), ("photo", "tomato"), ("tall", "gold"))
    ]
    for some in (triples[:1], triples):
        rows.clear()
        stylize(studio, Path(), *some, out=str(len(some)), backbone=tiny, **settings)
        stylizer = Stylizer(tiny, **{"guidance_scale": 2.0, **settings})
        assert network_rows(stylizer, some) == sum(rows)
