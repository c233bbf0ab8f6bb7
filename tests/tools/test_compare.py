"""The comparison runs every method on the same rows, and tells ours from a rival's by the sign of a difference."""

import sys

import pytest
from compare import against, main

from diffstyler.metrics.measure import Figures


def printed(capsys) -> str:
    """The first table, whatever bars stand before it."""
    out = capsys.readouterr().out
    return out[out.index("| method") :].split("\n\n")[0]


def test_methods_stand_side_by_side_and_are_not_made_again(studio, tiny_dir, monkeypatch, capsys):
    (studio / "rows.csv").write_text("content,style\nphoto.png,gold.png\n")
    words = ["rows.csv", "--lora_dir", "loras", "--output_dir", "out", "--num_inference_steps", "2"]
    words += ["--model", str(tiny_dir), "--resolution", "64", "--methods", "default", "sdedit", "style_id"]
    monkeypatch.chdir(studio)
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    main()
    table = printed(capsys)
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table.splitlines()[2:]}
    assert {name: int(row[1]) for name, row in rows.items()} == {
        "default": 2 + 2 + 2 * 2 + 1,  # inversion of content and style, two targets a step, a source in the first
        "sdedit": 2,  # the last half of the steps
        "style_id": 2 + 2 + 2 * 3,
    }
    made = {file: file.stat().st_mtime_ns for file in (studio / "out").glob("*/photo-gold.png")}
    assert len(made) == 3
    main()
    assert made == {file: file.stat().st_mtime_ns for file in made}
    assert printed(capsys) == table
    assert all((studio / "out" / name).is_file() for name in ("comparison.md", "grid.jpg", "pareto.png"))


@pytest.mark.parametrize(("ours", "better", "worse"), [((0.9, 0.1), 2, 0), ((0.1, 0.9), 0, 2), ((0.5, 0.5), 0, 0)])
def test_a_difference_is_better_where_its_interval_lies_above_zero(ours, better, worse):
    """More of the first figure is better, less of the second."""
    directions = {"ssim": True, "patch_distance_ratio": False}

    def figures(values) -> Figures:
        names = dict(zip(directions, values, strict=True))
        return Figures({f"row{i}": {k: v + i / 100 for k, v in names.items()} for i in range(5)}, {}, directions)

    line = against(figures(ours), figures((0.5, 0.5)), list(directions), "rival")
    assert line.endswith(f"| {better} | {worse} |")
