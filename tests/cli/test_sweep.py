"""A sweep makes each cell as predict would, inverts once, and shows what it measured."""

import json
from pathlib import Path

import pytest
from PIL import Image
from runs import row, stylize

from diffstyler.cli.main import main
from diffstyler.cli.sweep import sweep
from diffstyler.diffusion.injection import CrossLoRAInjection
from diffstyler.errors import DiffstylerError
from diffstyler.images import load_image


@pytest.fixture
def given(studio, tiny_dir) -> dict:
    """What a sweep of one picture on the tiny model needs."""
    manifest = studio / "rows.csv"
    manifest.write_text("content,style\nphoto.png,gold.png\n")
    settings = {"model.backbone.model": str(tiny_dir), "model.num_inference_steps": 3, "trainer.accelerator": "cpu"}
    return {
        "manifest": manifest,
        "lora_dir": studio / "loras",
        "output_dir": studio / "sweep",
        "settings": settings,
        "figures": ["ssim", "palette_distance"],
        "resolution": 64,
    }


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "sweep.jsonl").read_text().splitlines()]


def test_cells_are_predicts_own_pictures_and_the_content_is_inverted_once(given, studio, tiny_dir):
    page = sweep(axes={"model.injection.features": [0.0, 1.0], "row.strength": [0.0, 1.0]}, **given)
    expected = stylize(
        studio,
        tiny_dir,
        row(studio, strength=1.0),
        injection=CrossLoRAInjection(features=0.0),
        guidance_scale=1.0,
    )
    made = load_image(given["output_dir"] / "cells" / "0_1" / "photo-gold.png")
    assert made.tobytes() == expected[0].tobytes()
    pictures = [load_image(file).tobytes() for file in sorted(given["output_dir"].glob("cells/*/*.png"))]
    assert len(set(pictures)) == len(pictures) == 4
    assert len(list((given["output_dir"] / "trajectories").rglob("*.safetensors"))) == 2  # content and style
    told = lines(given["output_dir"])
    assert [line["cell"] for line in told][1] == {"model.injection.features": "0", "row.strength": "1"}
    html = page.read_text()
    assert html.count("<img ") == 4
    assert all(f">{line['ssim']:.4g}</td>" in html for line in told)
    with Image.open(given["output_dir"] / "sweep.png") as drawing:
        assert drawing.width > 300


def test_an_axis_of_names_sets_several_things_together(given):
    source = {"none": {"model.injection": "NoInjection"}, "whose <LoRA>": {"model.content_lora": "required"}}
    page = sweep(axes={"source": source}, **given)
    assert {file.parent.name for file in given["output_dir"].glob("cells/*/*.png")} == {"none", "whose-LoRA-"}
    assert "whose &lt;LoRA&gt;" in page.read_text()


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({}, "expected one or two, got none$"),
        ({"row.strength": [0.5, 3]}, "axes.row.strength: Input should be less than or equal to 2, got 3"),
        ({"row.strength": ["a"]}, r"axes.row.strength: .*got 'a'"),
        ({"row.strength": [None]}, r"axes.row.strength: expected a number"),
        ({"row.guidance_scale": [-1]}, r"axes.row.guidance_scale: .*got -1"),
        ({"row.prompt": [5]}, r"axes.row.prompt: expected a text, got 5"),
        ({"row.start": [0.2], "row.stop": [0.8]}, "expected a start above stop, got start 0.2 and stop 0.8"),
        ({"row.strength": [1, 1.0]}, "two values are called 1"),
        ({"output_dir": ["here", "there"]}, "output_dir is the sweep's own"),
        ({"a": [1], "b": [1], "c": [1]}, "expected one or two, got 3"),
        ({"row.strength": []}, r"axes.row.strength: expected a list"),
        ({"row.strenght": [1]}, r"'row.strenght' is no column of a region.*strength"),
    ],
)
def test_what_is_wrong_with_axes_is_told(given, axes, told):
    with pytest.raises(DiffstylerError, match=told):
        sweep(axes=axes, **given)
    assert not list(given["output_dir"].rglob("*.png"))  # before anything is made


def test_a_wrong_setting_of_the_last_cell_is_told_before_anything_is_made(given, capsys):
    words = [f"--{key}={value}" for key, value in given.items() if key not in {"settings", "figures"}]
    axes = {"model.matching.content_weight": [0.4, 1.5]}
    words += ["--settings", json.dumps(given["settings"]), "--axes", json.dumps(axes)]
    assert main(["sweep", *words]) != 0
    assert "expected a share in 0 … 1, got 1.5" in capsys.readouterr().err
    assert not list(given["output_dir"].rglob("*.png"))


def test_each_cell_has_a_folder_of_its_own_below_cells(given):
    names = ["a b", "a-b", "..", "A b"]
    axes = {"m": {name: {"row.strength": place / 4} for place, name in enumerate(names)}}
    sweep(axes=axes, **given)
    folders = {file.parent for file in given["output_dir"].rglob("photo-gold.png") if "thumbnails" not in str(file)}
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {given["output_dir"] / "cells"}
    assert not any(folder.name.startswith(".") for folder in folders)
    assert len({line["palette_distance"] for line in lines(given["output_dir"])}) == 4


def test_pictures_of_former_settings_are_not_among_the_figures(given):
    axes = {"row.strength": [0.0, 1.0]}
    former, other = (
        {**given, "settings": {**given["settings"], "model.num_inference_steps": steps}} for steps in (2, 1)
    )
    sweep(axes=axes, **former)
    sweep(axes=axes, **other)
    again = lines(given["output_dir"])
    sweep(axes=axes, **{**other, "output_dir": given["output_dir"].with_name("clean")})
    assert again == lines(given["output_dir"].with_name("clean"))


def test_a_figure_that_is_not_computed_is_told_with_the_reason(given):
    with pytest.raises(DiffstylerError, match=r"'lpips' is not computed: networks.alexnet is not given"):
        sweep(axes={"row.strength": [1.0]}, **{**given, "figures": ["lpips"]})
    assert not given["output_dir"].exists()  # before anything is made
