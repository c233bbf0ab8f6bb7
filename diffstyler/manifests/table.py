"""A file of rows (CSV, JSON Lines or Parquet) in; its rows, each with its place, and every problem of it out."""

from __future__ import annotations

import bisect
import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from diffstyler import storage
from diffstyler.checks import shown
from diffstyler.errors import MOST_TOLD, DiffstylerError, RowsError, did_you_mean


class ManifestError(RowsError):
    """What is wrong with a manifest, one problem a line, in the order of its rows; at most the first 100."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one row gives, by column; ``number`` counts as a spreadsheet (CSV), the lines, or the rows (Parquet)."""

    number: int
    values: dict[str, object]


class Table:
    """One file: iterate it once for its rows, add what is wrong with them, then ask :meth:`check`.

    Empty text, null and absent all mean "not given": such columns are left out of a row. Reading goes on after a row
    that is broken.

    Args:
        path: .csv, .jsonl or .parquet.
        columns: that may be there.
        required: those of them that must be.
        keep: problems that are kept to be told.
        nested: columns, in JSON Lines and Parquet only, that hold a list of objects; with the columns of these objects,
            which a row gives there in place of its own.

    Raises:
        ManifestError: no such file, or another suffix.
    """

    def __init__(
        self,
        path: Path,
        columns: tuple[str, ...],
        *,
        required: tuple[str, ...],
        nested: Mapping[str, tuple[str, ...]] | None = None,
        keep: float = MOST_TOLD,
    ) -> None:
        readers = {".csv": self._csv, ".jsonl": self._json_lines, ".parquet": self._parquet}
        if path.suffix.lower() not in readers:
            raise ManifestError(f"{path}: expected a manifest that ends in {', '.join(readers)}, got {path.suffix!r}")
        if not storage.fetch(path).is_file():
            raise ManifestError(f"{path}: no such manifest (looked for {path.absolute()})")
        self.path = path
        self._read = readers[path.suffix.lower()]
        self.required = required
        self.nested = dict(nested or {})
        self.columns = columns if path.suffix.lower() == ".csv" else (*columns, *self.nested)
        self.told: set[str] = set()  # required columns that the header lacks or has twice: no row needs to say it again
        self._known = frozenset((*self.columns, *(name for inner in self.nested.values() for name in inner)))
        self._keep = keep
        self._problems: list[tuple[int, str, str]] = []  # row, column and text of the first ones, in order
        self._count = 0
        self._whole = {0}  # what is wrong there is wrong with the whole file

    def __iter__(self) -> Iterator[Row]:
        number = 0
        for number, values in self._read():
            yield Row(number, self._given(values))
        if not number and not self._problems:
            self.add(0, f"expected at least one row with {' and '.join(self.required)}, got none")

    def place(self, number: int) -> str:
        """``row 3``, or ``line 3`` of JSON Lines."""
        return f"{'line' if self.path.suffix.lower() == '.jsonl' else 'row'} {number}"

    def add(self, number: int, message: str, column: str = "") -> None:
        """Note a problem of a row, or, by number 0, of the whole file."""
        self._count += 1
        if len(self._problems) < self._keep or number < self._problems[-1][0]:
            bisect.insort(self._problems, (number, column, message), key=lambda problem: problem[0])
            if len(self._problems) > self._keep:
                self._problems.pop()

    def check(self) -> None:
        """Raises: ManifestError: if anything is wrong with the file."""
        self._raise(self._problems)

    def wrong_rows(self) -> dict[int, tuple[str, str]]:
        """By its number, the column and the text of the first problem of each wrong row.

        Raises:
            ManifestError: if anything is wrong with the file as a whole, such as its header.
        """
        self._raise([problem for problem in self._problems if problem[0] in self._whole])
        return {number: (column, message) for number, column, message in reversed(self._problems)}

    def _raise(self, problems: Sequence[tuple[int, str, str]]) -> None:
        if not problems:
            return
        lines = [self._line(*problem) for problem in problems[:MOST_TOLD]]
        more = self._count - len(lines)
        raise ManifestError("\n".join([*lines, f"… and {more} more problems"] if more else lines))

    def _line(self, number: int, column: str, message: str) -> str:
        where = f"{self.path.name} {self.place(number)}" if number else self.path.name
        return f"{where}, column {column!r}: {message}" if column else f"{where}: {message}"

    def _given(self, values: dict[str, object]) -> dict[str, object]:
        given = self._filled(values)
        for name in self.nested:
            if isinstance(inner := given.get(name), list):
                given[name] = [self._filled(one) if isinstance(one, dict) else one for one in inner]
        return given

    def _filled(self, values: dict[str, object]) -> dict[str, object]:
        """Text stripped; without the known columns that are empty. An unknown one is a mistake even so."""
        stripped = ((name, (v.strip() or None) if isinstance(v, str) else v) for name, v in values.items())
        return {name: value for name, value in stripped if value is not None or name not in self._known}

    def _csv(self) -> Iterator[tuple[int, dict[str, object]]]:
        """Rows are counted as a spreadsheet counts them: the header is row 1, blank rows count, cells hold newlines."""
        with self._text() as text:
            yield from self._cells(csv.reader(text, strict=True))

    def _cells(self, reader: Iterator[list[str]]) -> Iterator[tuple[int, dict[str, object]]]:
        header: list[str] = []
        number = 0
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                self.add(number, f"invalid CSV: {error}; is a double quote left open?")
                if not header:
                    return
                continue
            while cells and not cells[-1].strip():
                cells.pop()
            if cells and not header:
                header = [name.strip() for name in cells]
                self._check_header(header, number)
            elif len(cells) > len(header):
                cure = "put text that contains a comma in double quotes"
                self.add(number, f"expected at most {len(header)} cells, got {len(cells)}; {cure}")
            elif cells:
                named = zip(header, cells, strict=False)
                yield number, {name: cell for name, cell in named if name in self._known and name not in self.told}

    def _json_lines(self) -> Iterator[tuple[int, dict[str, object]]]:
        with self._text() as text:
            yield from self._objects(text)

    def _objects(self, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, object]]]:
        for number, line in enumerate(lines, start=1):
            try:
                values = json.loads(line.rstrip("\n"), object_pairs_hook=_unique_keys) if line.strip() else None
            except json.JSONDecodeError as error:
                self.add(number, f"invalid JSON at character {error.colno}: {error.msg}")
                continue
            except (ValueError, RecursionError) as error:
                self.add(number, f"invalid JSON: {error}")
                continue
            if isinstance(values, dict):
                yield number, values
            elif line.strip():
                self.add(number, f"expected a JSON object, got {shown(values)}")

    def _parquet(self) -> Iterator[tuple[int, dict[str, object]]]:
        """The first row is row 1."""
        number = 0
        try:
            with pq.ParquetFile(self.path) as file:
                names = file.schema_arrow.names
                self._check_header(names, 0)
                known = [name for name in self.columns if names.count(name) == 1]
                for batch in file.iter_batches(4096, columns=known):
                    for values in batch.to_pylist():
                        number += 1
                        yield number, values
        except (pa.ArrowException, OSError, ValueError) as error:
            self.add(0, f"invalid Parquet: {(str(error).splitlines() or [repr(error)])[0]}")

    def _check_header(self, names: list[str], number: int) -> None:
        """Note unknown, double and missing columns."""
        self._whole.add(number)
        for name, count in Counter(names).items():
            if name not in self.columns:
                self.add(number, unknown(name, self.columns), name)
            if count > 1:
                self.add(number, f"expected once, got {count} times", name)
                self.told.add(name)
        inside = {name for outer, inner in self.nested.items() if outer in names for name in inner}
        for name in self.required:
            if name not in names and name not in inside:
                self.add(number, "required, but missing", name)
                self.told.add(name)

    def _text(self) -> io.TextIOBase:
        """The file's text, its ends of lines as they are; to be closed."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{line[error.start]:02x}"
                    self.add(0, f"line {number} is not UTF-8 ({byte}); save the file as UTF-8")
                    return io.StringIO()
        return self.path.open(encoding="utf-8-sig", newline="\n")


@lru_cache(1024)  # every row of a file may have it
def unknown(name: str, valid: tuple[str, ...]) -> str:
    """What to say of a column that is none of the ``valid`` ones."""
    return "unknown column" + (did_you_mean(name.lower(), valid) or f"; expected one of {', '.join(valid)}")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(values := dict(pairs)) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise DiffstylerError(f"key {key!r} appears {count} times")
    return values
