"""What is wrong with rows is told of all of them, by row and column, before anything is computed; or the others run."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import pixels
from safetensors.torch import load_file, save_file

from diffstyler.backbones import StableDiffusion
from diffstyler.cli.main import main
from diffstyler.errors import DiffstylerError
from diffstyler.images import load_image

GOOD = {"content": "photo.png", "style": "gold.png"}


def write_rows(folder: Path, *rows: dict) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(studio: Path, tiny_dir: Path, *more: str) -> list[str]:
    model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]
    here = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    return ["--data.manifest", str(studio / "rows.jsonl"), "--lora_dir", str(studio / "loras"), *model, *here, *more]


STEPS = ("--model.num_inference_steps", "2", "--trainer.enable_progress_bar", "false")
PREDICT = (*STEPS, "--model.initial", "FromContent")


def spoilt(studio: Path) -> dict[str, tuple[dict, str]]:
    """By kind, a row that no run can use, and its column."""
    (gold,) = (studio / "loras").glob("gold-*")
    weights = gold / "pytorch_lora_weights.safetensors"
    (studio / "text.png").write_text("no picture")
    (studio / "cut.png").write_bytes((studio / "photo.png").read_bytes()[:-40])
    Image.new("RGB", (400, 40)).save(studio / "wide.png")
    (studio / "cut.safetensors").write_bytes(weights.read_bytes()[:-9])
    save_file({"a": torch.ones(2)}, studio / "no_lora.safetensors")
    tensors = load_file(weights)
    save_file({key: torch.cat([value, value], -1) if "lora_A" in key else value for key, value in tensors.items()},
              studio / "of_another_model.safetensors")  # fmt: skip
    (studio / "empty").mkdir()
    Image.new("RGB", (64, 64), "navy").save(studio / "unknown.png")
    return {
        "unreadable content": ({**GOOD, "content": "text.png"}, "content"),
        "truncated content": ({**GOOD, "content": "cut.png"}, "content"),
        "content of 10:1": ({**GOOD, "content": "wide.png"}, "content"),
        "unreadable style": ({**GOOD, "style": "text.png"}, "style"),
        "truncated style": ({**GOOD, "style": "cut.png"}, "style"),
        "cut LoRA": ({**GOOD, "style": "cut.safetensors"}, "style"),
        "no LoRA": ({**GOOD, "style": "no_lora.safetensors"}, "style"),
        "LoRA of another model": ({**GOOD, "style": "of_another_model.safetensors"}, "style"),
        "folder without a LoRA": ({**GOOD, "style": "empty"}, "style"),
        "mask off the picture": ({**GOOD, "mask": "box: 0,0,999,9"}, "mask"),
        "style without a LoRA": ({**GOOD, "style": "unknown.png"}, "style"),
    }


def test_all_are_told_together_by_row_and_column_before_anything_is_made(studio, tiny_dir, capsys, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "load", lambda *_: pytest.fail("weights were loaded"))
    kinds = spoilt(studio)
    write_rows(studio, GOOD, *(row for row, _ in kinds.values()))
    output = ["--output_dir", str(studio / "out")]
    for command in (["predict"], ["check", "predict"]):
        with pytest.raises(SystemExit) if "check" in command else nullcontext():
            assert main([*command, *arguments(studio, tiny_dir, *PREDICT, *output)]) == 1
        said = capsys.readouterr()
        told = said.out + said.err
        for line, (kind, (row, column)) in enumerate(kinds.items(), start=2):
            if kind == "style without a LoRA":
                assert f"unknown.png (rows.jsonl line {line})" in told
                continue
            (found,) = [text for text in told.splitlines() if f"rows.jsonl line {line}," in text]
            assert f"rows.jsonl line {line}, column '{column}': " in found, kind
            assert Path(str(row[column])).name in found
        assert "rows.jsonl line 1," not in told
    assert not (studio / "out").exists()


def test_with_skip_the_others_are_what_they_would_be(studio, tiny_dir, capsys):
    kinds = spoilt(studio)
    wrong = [row for row, _ in kinds.values()]
    more = [{**GOOD, "seed": -1}, {**GOOD, "colour": 1}, {**GOOD, "content": "nowhere.png"}]
    other = {**GOOD, "style": "tomato.png"}
    rows = [*wrong, GOOD, *more, other]
    write_rows(studio, *rows)
    output = ["--output_dir", str(studio / "out"), "--on_error", "skip"]
    assert main(["predict", *arguments(studio, tiny_dir, *PREDICT, *output)]) == 1
    said = capsys.readouterr().err
    assert f"{len(rows) - 2} pictures could not be made" in said
    failures = [json.loads(line) for line in (studio / "out" / "failures.jsonl").read_text().splitlines()]
    assert len(failures) == len(rows) - 2
    assert len({failure["id"] for failure in failures}) == len(failures)
    written = {path.stem: pixels(load_image(path)) for path in (studio / "out").glob("*.png")}
    assert set(written) == {"photo-gold-2", "photo-tomato"}  # the first photo-gold is the row of the wrong mask

    write_rows(studio, {**GOOD, "id": "photo-gold-2"}, other)
    assert main(["predict", *arguments(studio, tiny_dir, *PREDICT, "--output_dir", str(studio / "alone"))]) == 0
    assert written == {path.stem: pixels(load_image(path)) for path in (studio / "alone").glob("*.png")}


FIT = ("--trainer.max_steps", "1", "--model.rank", "2", "--model.batch_size", "1", "--data.crops.resolution", "64",
       "--data.crops.crop_size", "64")  # fmt: skip


def test_a_fit_tells_them_together_too_and_can_leave_them_out(studio, tiny_dir, capsys):
    spoilt(studio)
    wrong = ("text.png", "cut.png", "wide.png")
    write_rows(studio, GOOD, *({**GOOD, "style": name} for name in wrong))
    settings = arguments(studio, tiny_dir, *FIT)
    settings[settings.index("--lora_dir") + 1] = str(studio / "new")
    for command in (["fit"], ["check", "fit"]):
        with pytest.raises(SystemExit) if "check" in command else nullcontext():
            assert main([*command, *settings]) == 1
        said = capsys.readouterr()
        for line, name in enumerate(wrong, start=2):
            assert f"rows.jsonl line {line}, column 'style': {studio / name}: expected " in said.out + said.err
    assert not (studio / "new").exists()
    assert main(["fit", *settings, "--on_error", "skip"]) == 1
    assert "3 LoRAs could not be fitted" in capsys.readouterr().err
    assert [path.name.rpartition("-")[0] for path in (studio / "new").glob("*-*")] == ["gold"]
    assert len((studio / "new" / "failures.jsonl").read_text().splitlines()) == 3


def test_what_fails_as_a_slot_opens_is_that_loras_own(studio, tiny_dir, capsys):
    """Nothing is found under the word in one of three pictures."""
    Image.new("L", (64, 64)).save(studio / "nothing.png")
    Image.new("L", (64, 64), 255).save(studio / "all.png")
    jobs = studio / "jobs.jsonl"
    masks = {"gold.png": "file: nothing.png", "tomato.png": "file: all.png"}
    jobs.write_text("".join(json.dumps({"picture": name, "mask": mask}) + "\n" for name, mask in masks.items()))
    settings = arguments(studio, tiny_dir, *FIT, "--data.jobs", str(jobs))[2:]
    settings[settings.index("--lora_dir") + 1] = str(studio / "new")
    assert main(["fit", *settings, "--data.pack_size", "1"]) == 1
    told = capsys.readouterr().err
    assert "1 LoRAs could not be fitted" in told
    assert "gold.png: mask 'file: " in told
    assert [path.name.rpartition("-")[0] for path in (studio / "new").glob("*-*")] == ["tomato"]


def test_one_picture_of_nan_fails_alone_and_is_told_by_its_lora(studio, tiny_dir, capsys):
    (gold,) = (studio / "loras").glob("gold-*")
    tensors = load_file(gold / "pytorch_lora_weights.safetensors")
    save_file({key: value * 1e30 for key, value in tensors.items()}, studio / "huge.safetensors")
    write_rows(studio, {**GOOD, "style": "huge.safetensors", "id": "huge"}, {**GOOD, "id": "good"})
    output = ["--output_dir", str(studio / "out"), "--data.batch_size", "2", "--model.guidance_scale", "1"]
    assert main(["predict", *arguments(studio, tiny_dir, *PREDICT, *output)]) == 1
    told = capsys.readouterr().err
    assert "the picture came out as NaN or infinity" in told
    assert "huge.safetensors: are the weights" in told
    assert [path.stem for path in (studio / "out").glob("*.png")] == ["good"]


# ---- the picture of a style that a LoRA's file names


def test_a_stray_thumbnail_is_no_style_picture(studio, tiny_dir, capsys):
    (gold,) = (studio / "loras").glob("gold-*")
    shutil.copy(gold / "pytorch_lora_weights.safetensors", studio / "elsewhere.safetensors")
    Image.new("RGB", (64, 64), "lime").save(studio / "thumbnail.png")
    write_rows(studio, {**GOOD, "style": "elsewhere.safetensors"})
    settings = arguments(studio, tiny_dir, *STEPS, "--output_dir", str(studio / "out"))
    assert main(["predict", *settings]) == 1
    told = capsys.readouterr().err
    assert "rows.jsonl line 1, column 'style': " in told
    assert "name it in the column style_picture" in told
    by_file = {**GOOD, "style": "elsewhere.safetensors", "prompt": "p", "id": "a"}
    write_rows(studio, {**by_file, "style_picture": "gold.png"})
    assert main(["predict", *settings]) == 0
    write_rows(studio, {**GOOD, "prompt": "p", "id": "b"})
    assert main(["predict", *settings]) == 0
    assert pixels(load_image(studio / "out" / "a.png")) == pixels(load_image(studio / "out" / "b.png"))
    write_rows(studio, {**by_file, "style_picture": "tomato.png"})
    assert main(["predict", *settings]) == 0
    assert pixels(load_image(studio / "out" / "a.png")) != pixels(load_image(studio / "out" / "b.png"))


def test_a_style_picture_beside_a_picture_is_told(studio, tiny_dir, capsys):
    write_rows(studio, {**GOOD, "style_picture": "tomato.png"})
    assert main(["predict", *arguments(studio, tiny_dir, *PREDICT)]) == 1
    assert "rows.jsonl line 1, column 'style_picture': the style is a picture itself" in capsys.readouterr().err


# ---- grids


def test_grids_that_no_run_can_use_are_told_by_check_too(studio, tiny_dir, capsys, tmp_path):
    write_rows(studio, GOOD)
    settings = arguments(studio, tiny_dir, "--model.num_inference_steps", "50", "--model.inversion_steps", "77")
    for command in (["predict"], ["check", "predict"]):
        with pytest.raises(SystemExit) if "check" in command else nullcontext():
            assert main([*command, *settings]) == 1
        said = capsys.readouterr()
        assert "model.inversion_steps 77: its grid misses" in said.out + said.err


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_grid_that_reaches_pure_noise_is_refused(tiny_dirs, tmp_path, prediction):
    folder = tmp_path / "model"
    shutil.copytree(tiny_dirs[prediction], folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rescale_betas_zero_snr": True}))
    from diffstyler.predict.stylizer import Stylizer

    for steps, is_told in ((500, True), (999, True), (499, False), (50, False)):
        stylizer = Stylizer(StableDiffusion(str(folder)), num_inference_steps=steps)
        stylizer.backbone.check()
        if is_told:
            with pytest.raises(DiffstylerError, match=rf"model\.num_inference_steps {steps}: .*zero terminal SNR"):
                stylizer._check_grids()
        else:
            stylizer._check_grids()
