"""Oddities of JSON Lines: both kinds of manifest read them alike, and name what they cannot."""

import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from diffstyler.manifests.lora_jobs import read_lora_jobs
from diffstyler.manifests.pictures import read_manifest
from diffstyler.manifests.table import ManifestError

FIELDS = {"manifest": '"content": "a.png", "style": "a.png"', "jobs": '"picture": "a.png"'}
READ = {"manifest": read_manifest, "jobs": read_lora_jobs}


def told(folder: Path, kind: str, *lines: str) -> tuple:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return READ[kind](path)


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb", "a\x0cb", "a\x1cb"])
def test_a_text_may_hold_what_others_take_for_ends_of_lines(tmp_path, kind, text):
    escaped = text if text.isprintable() or ord(text[1]) > 0x7F else text.encode("unicode_escape").decode()
    escaped = escaped.replace("\\x", "\\u00")
    (row,) = told(tmp_path, kind, f'{{{FIELDS[kind]}, "prompt": "{escaped}"}}')
    assert (row.regions[0].prompt if kind == "manifest" else row.given["prompt"]) == text


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("seed", ["3", "3.0", '"3"', '"3.0"'])
def test_a_whole_number_is_one_however_it_is_written(tmp_path, kind, seed):
    (row,) = told(tmp_path, kind, f'{{{FIELDS[kind]}, "seed": {seed}}}')
    assert (row.seed if kind == "manifest" else row.given["seed"]) == 3


WRONG = ("NaN", "Infinity", "-Infinity", "3.5", "[3]", "{}", "true", '"three"', "1e400", "9" * 30, "-1")


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("seed", WRONG)
def test_what_is_no_seed_is_told_by_line_and_column(tmp_path, kind, seed):
    with pytest.raises(ManifestError, match=r"^rows\.jsonl line 2, column 'seed': expected an integer"):
        told(tmp_path, kind, f"{{{FIELDS[kind]}}}", f'{{{FIELDS[kind]}, "seed": {seed}}}')


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize(
    "line", ["{{{0}}},", "{{{0},}}", "[]", "null", "3", '"a"', "{{{0}", "{{{0}}} {{}}", "[" * 5000]
)
def test_what_is_no_object_is_told_by_its_line(tmp_path, kind, line):
    with pytest.raises(ManifestError, match=r"^rows\.jsonl line 2: (invalid JSON|expected a JSON object)"):
        told(tmp_path, kind, f"{{{FIELDS[kind]}}}", line.format(FIELDS[kind]) if "{" in line else line)


def test_a_row_of_a_long_manifest_takes_less_than_a_kilobyte(tmp_path):
    (tmp_path / "a.png").touch()
    rows, path = 3000, tmp_path / "long.csv"
    path.write_text("id,content,style,seed\n" + "".join(f"r{n},a.png,a.png,{n}\n" for n in range(rows)))
    read_manifest(path)
    tracemalloc.start()
    triples = read_manifest(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(triples) == rows
    assert peak / rows < 1000
