"""A manifest file (CSV, JSON Lines or Parquet) in; Triples, one per picture to make, out."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from diffstyler.masking.prompt import File, with_files_from
from diffstyler.masking.prompt_parser import MaskPromptError, parse_mask_prompt
from diffstyler.types import StyleRegion, Triple

REGION_COLUMNS = (
    "style", "mask", "prompt", "negative_prompt", "strength", "guidance_scale", "start", "stop",
    "inject_features", "inject_attention", "style_mask",
)  # fmt: skip


COLUMNS = ("content", *REGION_COLUMNS, "id", "content_prompt", "seed")


REQUIRED = ("content", "style")


MAX_ID_BYTES = 200  # file systems allow 255 for the name with its suffixes


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


_INTEGER = re.compile(r"(\d{1,19})(\.0*)?", re.ASCII)  # pandas writes the integers of a column with gaps as 3.0


class ManifestError(ValueError):
    """Everything that is wrong with a manifest, one problem a line, in the order of its rows."""


def read_manifest(path: Path) -> tuple[Triple, ...]:
    """The pictures that ``path`` (.csv, .jsonl or .parquet) asks for, in the order of their first rows.

    Columns: ``content`` and ``style`` (paths, relative to the manifest's folder), and optionally ``id``,
    ``content_prompt``, ``seed`` (0 … 2^63-1), ``mask``, ``prompt``, ``negative_prompt``, ``strength`` (0 … 2),
    ``guidance_scale`` (>= 0), ``start`` and ``stop`` (1 >= start > stop >= 0), ``inject_features`` and
    ``inject_attention`` (0 … 1), and ``style_mask``, a mask prompt on the style picture. Empty, null and absent all
    mean "not given". Rows with the same ``id`` are regions of one picture, in row order; JSON Lines and Parquet may
    nest them as ``regions: [{style, mask, …}]`` instead.

    Raises:
        ManifestError: with one line for each problem of the file.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ManifestError(f"{path}: expected a manifest that ends in {', '.join(_READERS)}, got {path.suffix!r}")
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest (looked for {path.absolute()})")
    report = _Report(path.name)
    rows = [_read_row(cells) for cells in read(path, report)]
    if not rows and not report.problems:
        report.add(0, "expected at least one row with content and style, got none")
    pictures = _group(rows)
    for id, picture in pictures.items():
        _check_agreement(id, picture)
        _check_overlap(picture)
    if report.problems:
        raise ManifestError("\n".join(text for _, text in sorted(report.problems, key=lambda problem: problem[0])))
    return tuple(_triple(id, picture) for id, picture in pictures.items())


@dataclass(frozen=True)
class _Report:
    """Collects the problems of one file as (row number, text); number 0 stands for the whole file."""

    file: str
    problems: list[tuple[int, str]] = field(default_factory=list)

    def place(self, number: int) -> str:
        return f"{'line' if self.file.lower().endswith('.jsonl') else 'row'} {number}"

    def add(self, number: int, message: str, column: str = "") -> None:
        where = f"{self.file} {self.place(number)}" if number else self.file
        self.problems.append((number, f"{where}, column {column!r}: {message}" if column else f"{where}: {message}"))

    def unknown(self, number: int, names: list[str], valid: tuple[str, ...], prefix: str = "") -> None:
        for name in dict.fromkeys(name for name in names if name not in valid):
            near = difflib.get_close_matches(name.lower(), valid, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(valid)}"
            self.add(number, f"unknown column; {hint}", prefix + name)


@dataclass(frozen=True)
class _Cells:
    """The values of one row, or of one nested region of it; each method reads one column.

    They return None for what is not given and for what is wrong; the latter is reported.
    """

    number: int
    values: dict[str, object]
    report: _Report
    folder: Path
    required: tuple[str, ...] = REQUIRED
    prefix: str = ""

    def fail(self, column: str, message: str) -> None:
        self.report.add(self.number, message, self.prefix + column)

    def value(self, column: str) -> object:
        value = self.values.get(column)
        return (value.strip() or None) if isinstance(value, str) else value

    def text(self, column: str) -> str | None:
        value = self.value(column)
        if value is None or (isinstance(value, str) and not re.search("[\0\ud800-\udfff]", value)):
            return value
        return self.fail(column, f"expected text, got {_shown(value)}")

    def mask(self, column: str) -> str | None:
        """The mask prompt in its canonical form, its files found."""
        if (written := self.text(column)) is None:
            return None
        try:
            prompt = with_files_from(parse_mask_prompt(written), self.folder)
        except MaskPromptError as error:
            return self.fail(column, str(error))
        for file in (node.path for node in prompt.walk() if isinstance(node, File)):
            if not file.is_file():
                return self.fail(column, f"no such mask file (looked for {file.absolute()})")
        return str(prompt)

    def number_in(self, column: str, low: float, high: float) -> float | None:
        value = self.value(column)
        number = float(str(value)) if _NUMBER.fullmatch(str(value)) else math.nan
        if value is None or (low <= number <= high and math.isfinite(number)):
            return None if value is None else number
        expected = f"a number in {low:g} … {high:g}" if math.isfinite(high) else f"a number of at least {low:g}"
        return self.fail(column, f"expected {expected}, got {_shown(value)}")

    def seed(self) -> int | None:
        value = self.value("seed")
        match = _INTEGER.fullmatch(str(value))
        if value is None or (match and int(match[1]) < 2**63):
            return int(match[1]) if match else None
        return self.fail("seed", f"expected an integer in 0 … 2^63-1, got {_shown(value)}")

    def id(self) -> str | None:
        value = self.value("id")
        text = str(value) if type(value) is int else self.text("id")
        if text is None or (re.fullmatch(r"[\w-][\w.-]*", text) and len(text.encode()) <= MAX_ID_BYTES):
            return text
        expected = f"letters, digits and ._- (at most {MAX_ID_BYTES} bytes, no dot first), as it names files"
        return self.fail("id", f"expected {expected}; got {_shown(text)}")

    def path(self, column: str, *, folder_allowed: bool) -> Path | None:
        if self.value(column) is None and column in self.required:
            return self.fail(column, "expected a path, got nothing")
        if (written := self.text(column)) is None:
            return None
        path = self.folder / written
        try:
            path.stat()
        except OSError:
            return self.fail(column, f"no such file: {written!r} (looked for {path.absolute()})")
        if path.is_dir() and not folder_allowed:
            return self.fail(column, f"expected a file, got the folder {written!r} ({path.absolute()})")
        return path


@dataclass(frozen=True)
class _Row:
    """What one row says; ``regions`` holds None for a region with problems."""

    cells: _Cells
    id: str | None
    content: Path | None
    content_prompt: str | None
    seed: int | None
    regions: list[StyleRegion | None]


def _read_row(cells: _Cells) -> _Row:
    content = cells.path("content", folder_allowed=False)
    regions = [_read_region(region) for region in _nested(cells)]
    return _Row(cells, cells.id(), content, cells.text("content_prompt"), cells.seed(), regions)


def _read_region(cells: _Cells) -> StyleRegion | None:
    problems_before = len(cells.report.problems)
    style = cells.path("style", folder_allowed=True)
    fractions = dict.fromkeys(("start", "stop", "inject_features", "inject_attention"), (0, 1))
    ranges = {"strength": (0, 2), "guidance_scale": (0, math.inf), **fractions}
    texts = {name: cells.text(name) for name in ("prompt", "negative_prompt")}
    masks = {name: cells.mask(name) for name in ("mask", "style_mask")}
    numbers = {name: cells.number_in(name, *bounds) for name, bounds in ranges.items()}
    given = {**masks, **texts, **numbers}
    if style is None or len(cells.report.problems) > problems_before:
        return None
    region = StyleRegion(style, **{name: value for name, value in given.items() if value is not None})
    if region.start > region.stop:
        return region
    wrong, relation = ("start", f"above stop = {region.stop:g}")
    if given["stop"] is not None:
        wrong, relation = ("stop", f"below start = {region.start:g}")
    return cells.fail(wrong, f"expected a number {relation}, got {_shown(cells.value(wrong))}")


def _nested(cells: _Cells) -> Iterator[_Cells]:
    """The regions of a row: those under its key ``regions``, or the row itself."""
    regions = cells.values.get("regions")
    if regions is None:
        yield cells
        return
    for name in REGION_COLUMNS:
        if cells.value(name) is not None:
            cells.fail(name, "belongs inside each of 'regions' where a row has them")
    if not isinstance(regions, list) or not regions:
        return cells.fail("regions", f"expected a list of one or more regions, got {_shown(regions)}")
    for index, values in enumerate(regions):
        prefix = f"regions[{index}]"
        if isinstance(values, dict):
            cells.report.unknown(cells.number, list(values), REGION_COLUMNS, f"{prefix}.")
            yield _Cells(cells.number, values, cells.report, cells.folder, ("style",), f"{prefix}.")
        else:
            cells.fail(prefix, f"expected an object with a style, got {_shown(values)}")


def _group(rows: list[_Row]) -> dict[str, list[_Row]]:
    """Rows with the same explicit id make one picture; every other row makes one with an id of its own."""
    named: dict[str, _Row] = {}
    for row in (row for row in rows if row.id is not None):
        first = named.setdefault(_folded(str(row.id)), row)
        if first.id != row.id:
            there = f"{first.id!r} of {row.cells.report.place(first.cells.number)}"
            row.cells.fail("id", f"{row.id!r} differs only by case from {there}: many disks would mix up their files")
    taken = Counter(named.keys())
    pictures: dict[str, list[_Row]] = {}
    for row in rows:
        pictures.setdefault(row.id or _default_id(row, taken), []).append(row)
    return pictures


def _default_id(row: _Row, taken: Counter[str]) -> str:
    """``<content stem>-<style stem>`` with other characters as ``_``, and ``-2``, ``-3`` … where that is taken.

    ``taken`` holds the last number given to each id.
    """
    style = next((region.style for region in row.regions if region), None)
    stems = unicodedata.normalize("NFC", "-".join(path.stem for path in (row.content, style) if path))
    usable = re.sub(r"[^\w.-]+", "_", stems).lstrip(".").encode()[: MAX_ID_BYTES - 10].decode(errors="ignore")
    id, key = usable, _folded(usable)
    while _folded(id) in taken:
        taken[key] += 1
        id = f"{usable}-{taken[key]}"
    taken[_folded(id)] = 1
    return id


def _folded(id: str) -> str:
    return unicodedata.normalize("NFC", id).casefold()


def _check_agreement(id: str, picture: list[_Row]) -> None:
    for name in ("content", "content_prompt", "seed"):
        first, *others = [row for row in picture if getattr(row, name) is not None] or picture[:1]
        for row in others:
            if getattr(row, name) != getattr(first, name):
                there = f"{_shown(first.cells.value(name))} as in {row.cells.report.place(first.cells.number)}"
                row.cells.fail(name, f"expected {there} (same id {id!r}), got {_shown(row.cells.value(name))}")


def _check_overlap(picture: list[_Row]) -> None:
    regions = [(row.cells, region) for row in picture for region in row.regions]
    for upper, (cells, a) in enumerate(regions, start=1):
        for lower, (_, b) in enumerate(regions[: upper - 1], start=1):
            if a and b and a.mask == b.mask and max(a.stop, b.stop) < min(a.start, b.start):
                cure = "give them different masks or disjoint start/stop intervals"
                cells.report.add(cells.number, f"region {upper} would paint over region {lower}: {cure}")


def _triple(id: str, picture: list[_Row]) -> Triple:
    cells, content = picture[0].cells, picture[0].content
    assert content is not None, "rows without content are reported"
    regions = tuple(region for row in picture for region in row.regions if region)
    content_prompt = next((row.content_prompt for row in picture if row.content_prompt is not None), "")
    seed = next((row.seed for row in picture if row.seed is not None), 0)
    origin = f"{cells.report.file} {cells.report.place(cells.number)}"
    return Triple(id, content, regions, content_prompt, seed, origin)


def _read_csv(path: Path, report: _Report) -> Iterator[_Cells]:
    """Rows are counted as a spreadsheet counts them: the header is row 1, blank rows count, cells may hold newlines."""
    reader = csv.reader(io.StringIO(_decoded(path, report), newline=""), strict=True)
    header, required, number = [], (), 0
    try:
        for number, cells in enumerate(reader, start=1):
            while cells and not cells[-1].strip():
                cells.pop()
            if cells and not header:
                header = [name.strip() for name in cells]
                required = _check_header(header, number, COLUMNS, report)
            elif len(cells) > len(header):
                cure = "put text that contains a comma in double quotes"
                report.add(number, f"expected at most {len(header)} cells, got {len(cells)}; {cure}")
            elif cells:
                yield _Cells(number, dict(zip(header, cells, strict=False)), report, path.parent, required)
    except csv.Error as error:
        report.add(number + 1, f"invalid CSV: {error}; is a double quote left open?")


def _read_jsonl(path: Path, report: _Report) -> Iterator[_Cells]:
    for number, line in enumerate(_decoded(path, report).split("\n"), start=1):
        try:
            values = json.loads(line, object_pairs_hook=_unique_keys) if line.strip() else None
        except json.JSONDecodeError as error:
            report.add(number, f"invalid JSON at character {error.colno}: {error.msg}")
            continue
        except (ValueError, RecursionError) as error:
            report.add(number, f"invalid JSON: {error}")
            continue
        if isinstance(values, dict):
            report.unknown(number, list(values), (*COLUMNS, "regions"))
            yield _Cells(number, values, report, path.parent)
        elif line.strip():
            report.add(number, f"expected a JSON object, got {_shown(values)}")


def _read_parquet(path: Path, report: _Report) -> Iterator[_Cells]:
    """The first row is row 1."""
    valid = (*COLUMNS, "regions")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            required = _check_header(names, 0, valid, report)
            rows = file.read(columns=[name for name in valid if names.count(name) == 1]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        return report.add(0, f"invalid Parquet: {str(error).splitlines()[0]}")
    for number, values in enumerate(rows, start=1):
        yield _Cells(number, values, report, path.parent, required)


_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _check_header(names: list[str], number: int, valid: tuple[str, ...], report: _Report) -> tuple[str, ...]:
    """Report unknown, double and missing columns; return the required ones that each row still has to fill."""
    report.unknown(number, names, valid)
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            report.add(number, f"expected once, got {names.count(name)} times", name)
    for name in REQUIRED if "regions" not in names else ("content",):
        if name not in names:
            report.add(number, "required, but missing", name)
    return tuple(name for name in REQUIRED if names.count(name) == 1 or (name not in names and "regions" in names))


def _decoded(path: Path, report: _Report) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        report.add(0, f"line {line} is not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8")
        return ""


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if double := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f"key {double!r} appears {keys.count(double)} times")
    return dict(pairs)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
