"""The comparison runs every method on the same rows, and tells ours from a rival's by the sign of a difference."""

import csv
import sys

import pytest
import yaml
from compare import PRESETS, RIVALS, against, main

from diffstyler.errors import DiffstylerError
from diffstyler.metrics.measure import Figures
from diffstyler.rivals import SDEdit


def printed(capsys) -> str:
    """The first table, whatever bars stand before it."""
    out = capsys.readouterr().out
    return out[out.index("| method") :].split("\n\n")[0]


@pytest.fixture
def compare(studio, tiny_dir, monkeypatch, capsys):
    """Runs the comparison of one pair -> the table's cells by method."""
    (studio / "rows.csv").write_text("content,style\nphoto.png,gold.png\n")
    monkeypatch.chdir(studio)

    def run(*methods: str) -> dict[str, list[str]]:
        words = ["rows.csv", "--lora_dir", "loras", "--output_dir", "out", "--num_inference_steps", "2"]
        words += ["--model", str(tiny_dir), "--resolution", "64", "--methods", *methods]
        monkeypatch.setattr(sys, "argv", ["compare.py", *words])
        if main():
            raise DiffstylerError(capsys.readouterr().err)
        return {line.split(" | ")[0].strip("| "): line.split(" | ") for line in printed(capsys).splitlines()[2:]}

    return run


def test_methods_stand_side_by_side_and_are_not_made_again(compare, studio):
    methods = ("default", "sdedit", "style_id")
    rows = compare(*methods)
    assert {name: int(row[2]) for name, row in rows.items()} == {
        "default": 2 + 2 + 2 * 2,  # inversion of content and style, a target and a source a step
        "sdedit": 2,  # the last half of the steps
        "style_id": 2 + 2 + 2 * 3,
    }
    made = {file: file.stat().st_mtime_ns for file in (studio / "out").glob("*/photo-gold.png")}
    assert len(made) == 3
    assert compare(*methods) == rows
    assert made == {file: file.stat().st_mtime_ns for file in made}
    assert all((studio / "out" / name).is_file() for name in ("comparison.md", "grid.jpg", "pareto.png"))
    with (studio / "out/figures.csv").open() as table:
        ssim = {row["method"]: row["ssim"] for row in csv.DictReader(table)}
    assert ssim.keys() == rows.keys()
    assert all(rows[name][4].startswith(f"{float(value):.3f}") for name, value in ssim.items())  # of one picture


def test_what_another_setting_made_is_made_again_and_its_cost_is_its_own(compare, studio, monkeypatch):
    before = compare("sdedit", "style_id")
    monkeypatch.setitem(RIVALS, "sdedit", SDEdit(strength=1.0))
    stays = (studio / "out/style_id/photo-gold.png").stat().st_mtime_ns
    after = compare("sdedit", "style_id")
    assert (before["sdedit"][2], after["sdedit"][2]) == ("2", "4")
    assert after["style_id"] == before["style_id"]
    assert (studio / "out/style_id/photo-gold.png").stat().st_mtime_ns == stays


def test_steps_that_a_preset_names_are_its_own(compare, monkeypatch, tmp_path):
    assert yaml.safe_load(PRESETS["draft"].read_text())["model"]["num_inference_steps"] == 20
    monkeypatch.setitem(PRESETS, "draft", tmp_path / "draft.yaml")
    (tmp_path / "draft.yaml").write_text("model: {num_inference_steps: 3}\n")
    steps = {name: row[1] for name, row in compare("default", "draft", "sdedit").items()}
    assert steps == {"default": "2", "draft": "3", "sdedit": "2"}


def test_a_missing_lora_is_named(compare, studio):
    (studio / "rows.csv").write_text("content,style\ntall.png,gold.png\n")
    with pytest.raises(DiffstylerError, match=r"rows\.csv row 2: BLoRA needs a content LoRA of .*tall\.png; fit it: "):
        compare("sdedit", "blora")
    assert not list((studio / "out").rglob("*.png"))  # before anything is made


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("id,content,style\na,photo.png,gold.png\na,photo.png,tomato.png\n", "row 3.*paint over|several regions"),
        (
            'content,style,mask\nphoto.png,gold.png,"box: 0.0,0.0,0.5,1.0"\n',
            "row 2: expected a content and a style.*got mask",
        ),
        ("content,style,strength\nphoto.png,gold.png,0.5\n", "row 2: expected a content and a style.*got strength"),
        ("content,style\n", "rows.csv"),
    ],
)
def test_rows_that_rivals_cannot_make_are_refused(compare, studio, rows, told):
    (studio / "rows.csv").write_text(rows)
    with pytest.raises(DiffstylerError, match=told):
        compare("default", "sdedit")
    assert not list((studio / "out").rglob("*.png"))


def test_of_one_picture_and_of_none_no_interval_is_told():
    directions = {"ssim": True, "palette_distance": False}
    ours, theirs = (Figures({"one": {"ssim": value}}, {}, directions) for value in (0.75, 0.5))
    assert against(ours, theirs, list(directions), "rival") == "| rival | +0.250 | – | 0 | 0 |"


@pytest.mark.parametrize(("ours", "better", "worse"), [((0.9, 0.1), 2, 0), ((0.1, 0.9), 0, 2), ((0.5, 0.5), 0, 0)])
def test_a_difference_is_better_where_its_interval_lies_above_zero(ours, better, worse):
    """More of the first figure is better, less of the second."""
    directions = {"ssim": True, "patch_distance_ratio": False}

    def figures(values) -> Figures:
        names = dict(zip(directions, values, strict=True))
        return Figures({f"row{i}": {k: v + i / 100 for k, v in names.items()} for i in range(5)}, {}, directions)

    line = against(figures(ours), figures((0.5, 0.5)), list(directions), "rival")
    assert line.endswith(f"| {better} | {worse} |")
