"""Files of LoRAs to fit: the same in every format; every problem at once, by row and column."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffstyler.manifests.lora_jobs import LoRAJobRow, read_lora_jobs
from diffstyler.manifests.table import ManifestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "mask.png"):
        (tmp_path / name).touch()
    (tmp_path / "lora").mkdir()
    return tmp_path


def problems(file: Path) -> list[str]:
    with pytest.raises(ManifestError) as raised:
        read_lora_jobs(file)
    return str(raised.value).splitlines()


def test_every_format_gives_what_the_rows_give_and_no_more(folder):
    csv, lines, parquet = (folder / f"jobs.{suffix}" for suffix in ("csv", "jsonl", "parquet"))
    csv.write_text(
        "picture,rank,prompt,learning_rate,seed,role,mask\n\n"
        'a.png,,"a, b",1e-3,3.0,content,\n'
        "a.png,8,,,,,file: mask.png [grow 2]\n"
    )
    rows = [
        {"picture": "a.png", "prompt": "a, b", "learning_rate": 0.001, "seed": 3.0, "role": "content"},
        {"picture": "a.png", "rank": 8, "prompt": " ", "mask": "file: mask.png [grow 2]"},
    ]
    lines.write_text("\n".join(json.dumps({**row, "alpha": None}) for row in rows))
    columns = {name: None for row in rows for name in row}
    pq.write_table(pa.Table.from_pylist([{**columns, **row} for row in rows]), parquet)

    first = {"role": "content", "prompt": "a, b", "seed": 3, "learning_rate": 1e-3}
    second = {"rank": 8, "mask": f"file: {folder / 'mask.png'} [grow 2]"}
    for file, places in {csv: ("row 3", "row 4"), lines: ("line 1", "line 2"), parquet: ("row 1", "row 2")}.items():
        read = read_lora_jobs(file)
        assert read == tuple(
            LoRAJobRow(folder / "a.png", given, f"{file.name} {place}")
            for given, place in zip((first, second), places, strict=True)
        )
        assert isinstance(read[0].given["seed"], int)


def test_all_problems_are_told_at_once(folder):
    file = folder / "jobs.csv"
    file.write_text(
        "picture,role,rank,seed,learning_rate,steps,size\na.png,stile,0,-1,nan,1.5,3\nb.png,,,,,,\n"
        '"a.png"x,,,\n,,4,,,,\nlora,,,,0,,\n'
    )
    told = problems(file)
    assert [line.split(":")[0] for line in told] == [
        "jobs.csv row 1, column 'size'",
        *(f"jobs.csv row 2, column '{name}'" for name in ("role", "seed", "steps", "learning_rate", "rank")),
        "jobs.csv row 3, column 'picture'",
        "jobs.csv row 4",
        "jobs.csv row 5, column 'picture'",
        *(f"jobs.csv row 6, column '{name}'" for name in ("picture", "learning_rate")),
    ]
    assert told[1].endswith("expected 'style' or 'content', got 'stile'")
    assert told[5].endswith("expected an integer in 1 … 2^63-1, got '0'")
    assert told[8].endswith("expected a path, got nothing")
    assert told[10].endswith("expected a number above 0, got '0'")


WRONG_NUMBERS = ["true", "NaN", "[3]", "1e400", "9223372036854775808", "-1", '"1_0"', '"three"', "{}"]


@pytest.mark.parametrize("column", ["seed", "steps", "learning_rate", "rank", "alpha", "gradient_clip", "resolution"])
def test_what_is_no_number_of_that_column(folder, column):
    wrong = [text for text in WRONG_NUMBERS if column not in ("learning_rate", "gradient_clip") or len(text) < 19]
    (folder / "jobs.jsonl").write_text("".join(f'{{"picture": "a.png", "{column}": {text}}}\n' for text in wrong))
    told = problems(folder / "jobs.jsonl")
    expected = "a number above 0" if len(wrong) < len(WRONG_NUMBERS) else "an integer in "
    assert len(told) == len(wrong)
    for number, line in enumerate(told, start=1):
        assert line.startswith(f"jobs.jsonl line {number}, column '{column}': expected {expected}")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("jobs.txt", "", "ends in .csv, .jsonl, .parquet"),
        ("jobs.csv", "picture\n", "jobs.csv: expected at least one row with picture, got none"),
        ("jobs.csv", "picture\na.png,b\n", "jobs.csv row 2: expected at most 1 cells, got 2"),
        ("jobs.csv", "picture,seed,seed\na.png,1,2\n", "jobs.csv row 1, column 'seed': expected once, got 2 times"),
        ("jobs.csv", "picture,mask\na.png,file: b.png\n", "row 2, column 'mask': no such mask file (looked for"),
        ("jobs.csv", "picture,mask\na.png,a [grw 3]\n", "row 2, column 'mask': expected grow, shrink, feather"),
        ("jobs.jsonl", "{", "jobs.jsonl line 1: invalid JSON"),
        ("jobs.jsonl", "[1]", "jobs.jsonl line 1: expected a JSON object"),
        ("jobs.jsonl", '{"picture": "a.png", "stpes": 1}', "column 'stpes': unknown column; did you mean 'steps'?"),
        ("jobs.parquet", "picture\n", "jobs.parquet: invalid Parquet"),
    ],
)
def test_what_is_no_file_of_jobs_is_refused(folder, name, text, message):
    (folder / name).write_text(text)
    assert message in problems(folder / name)[0]


def test_a_missing_file_is_named(tmp_path):
    assert "no such manifest" in problems(tmp_path / "jobs.csv")[0]
