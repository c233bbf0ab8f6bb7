"""Fit manifests: every problem of a file at once, by row and column."""

from pathlib import Path

import pytest

from diffstyler.manifests.lora_jobs import FitManifestError, FitRow, read_fit_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").touch()
    return tmp_path


def test_cells_left_empty_are_the_runs(folder):
    file = folder / "jobs.csv"
    file.write_text('picture,rank,prompt,learning_rate\n\na.png,,"a, b",1e-3\na.png,8\n')
    picture = folder / "a.png"
    expected = [FitRow(picture, prompt="a, b", learning_rate=1e-3), FitRow(picture, rank=8)]
    assert read_fit_manifest(file) == expected
    lines = folder / "jobs.jsonl"
    lines.write_text(
        '{"picture": "a.png", "prompt": "a, b", "learning_rate": 0.001}\n'
        '{"picture": "a.png", "rank": 8, "seed": null}\n'
    )
    assert read_fit_manifest(lines) == expected


def test_all_problems_are_reported_at_once(folder):
    file = folder / "jobs.csv"
    file.write_text(
        "picture,role,rank,seed,learning_rate,steps,size\na.png,stile,0,-1,nan,1.5,3\nb.png,,,,,,\n,,4,,,,\n"
    )
    with pytest.raises(FitManifestError) as raised:
        read_fit_manifest(file)
    problems = str(raised.value).splitlines()
    assert [line.split(":")[0] for line in problems] == [
        f"jobs.csv row {row}, column '{column}'"
        for row, column in [
            *((2, name) for name in ("size", "role", "rank", "seed", "learning_rate", "steps")),
            (3, "size"),
            (3, "picture"),
            (4, "size"),
            (4, "picture"),
        ]
    ]
    assert "expected an integer of at least 1, got '0'" in problems[2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("jobs.txt", "", "ends in .csv or .jsonl"),
        ("jobs.csv", "picture\n", "at least one row"),
        ("jobs.csv", "picture\na.png,b\n", "row 2 has 2 cells, the header 1"),
        ("jobs.jsonl", "{", "line 1: invalid JSON"),
        ("jobs.jsonl", "[1]", "line 1: expected a JSON object"),
    ],
)
def test_what_is_no_fit_manifest_is_refused(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(FitManifestError, match=message):
        read_fit_manifest(folder / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FitManifestError, match="no such file"):
        read_fit_manifest(tmp_path / "jobs.csv")
