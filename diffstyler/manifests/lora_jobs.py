"""A file of LoRAs to fit (CSV or JSON Lines, one a row) in; checked rows out."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffstyler.masking.prompt import with_files_from
from diffstyler.masking.prompt_parser import parse_mask_prompt

ROLES = ("style", "content")


COLUMNS = (
    *("picture", "role", "prompt", "seed", "steps", "learning_rate", "rank", "alpha", "gradient_clip", "mask"),
    *("resolution", "crop_size"),
)


class FitManifestError(ValueError):
    """A fit manifest that cannot be used: one line for each problem, with file, row and column."""


@dataclass(frozen=True)
class FitRow:
    """What one row says; None means "as the run"."""

    picture: Path
    role: str | None = None
    prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    rank: int | None = None
    alpha: int | None = None
    gradient_clip: float | None = None
    mask: str | None = None
    resolution: int | None = None
    crop_size: int | None = None


def read_fit_manifest(path: Path) -> list[FitRow]:
    """The rows of a fit manifest; paths in it are relative to its folder, empty cells mean "as the run".

    A spreadsheet's header is row 1. Numbers are positive, ``seed`` is 0 … 2^63-1.

    Raises:
        FitManifestError: with all problems of the file at once.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in readers:
        raise FitManifestError(f"{path}: expected a file that ends in .csv or .jsonl, got '{path.suffix}'")
    if not path.is_file():
        raise FitManifestError(f"{path}: no such file (looked for {path.absolute()})")
    problems: list[str] = []
    rows = []
    try:
        for place, values in readers[path.suffix.lower()](path.read_text(encoding="utf-8-sig")):
            wrong, row = _checked(path.parent, values)
            problems += [f"{path.name} {place}, column '{column}': {message}" for column, message in wrong]
            rows.append(row)
    except (ValueError, csv.Error) as error:
        problems.append(f"{path.name}: {error}")
    if not rows and not problems:
        problems.append(f"{path.name}: expected at least one row, got none")
    if problems:
        raise FitManifestError("\n".join(problems))
    return [row for row in rows if row is not None]


def _read_csv(text: str) -> Iterator[tuple[str, dict[str, object]]]:
    header: list[str] = []
    for number, cells in enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), start=1):
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            continue
        if len(cells) > len(header):
            raise ValueError(f"row {number} has {len(cells)} cells, the header {len(header)}; quote text with commas")
        yield f"row {number}", dict(zip(header, cells, strict=False))


def _read_jsonl(text: str) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: invalid JSON at character {error.colno}: {error.msg}") from error
            if not isinstance(values, dict):
                raise ValueError(f"line {number}: expected a JSON object, got {line.strip()[:80]}")
            yield f"line {number}", values


def _checked(folder: Path, values: dict[str, object]) -> tuple[list[tuple[str, str]], FitRow | None]:
    """The problems of a row as (column, what was expected), and the row if there are none."""
    given = {name: str(value).strip() for name, value in values.items() if value is not None and str(value).strip()}
    wrong = [(name, f"unknown; expected one of {', '.join(COLUMNS)}") for name in values if name not in COLUMNS]
    fields: dict = {}
    for name, text in given.items():
        if name in COLUMNS:
            try:
                fields[name] = _parse(folder, name, text)
            except ValueError as error:
                wrong.append((name, f"expected {error}, got '{text}'"))
    if "picture" not in given:
        wrong.append(("picture", "expected a path, got nothing"))
    return wrong, None if wrong else FitRow(**fields)


def _parse(folder: Path, name: str, text: str) -> object:
    """One cell's value; the ValueError says what was expected."""
    if name == "picture":
        if not (folder / text).is_file():
            raise ValueError("a picture that is there")
        return folder / text
    if name == "role" and text not in ROLES:
        raise ValueError("'style' or 'content'")
    if name in {"role", "prompt"}:
        return text
    if name == "mask":
        return str(with_files_from(parse_mask_prompt(text), folder))
    if name in {"learning_rate", "gradient_clip"}:
        number = _number(text)
        if not 0 < number < math.inf:
            raise ValueError("a number above 0")
        return number
    least = 0 if name == "seed" else 1
    if not text.isascii() or not text.isdigit() or not least <= int(text) < 2**63:
        raise ValueError(f"an integer of at least {least}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
