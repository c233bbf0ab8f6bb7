"""A manifest file (CSV, JSON Lines or Parquet) in; Triples, one per picture to make, out."""

from __future__ import annotations

import bisect
import math
import re
import unicodedata
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from typing import Annotated

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from diffstyler.checks import shown
from diffstyler.errors import MOST_TOLD, DiffstylerError
from diffstyler.images import is_picture
from diffstyler.manifests.cells import (
    Cells,
    ExistingFile,
    FileOrFolder,
    Folder,
    Fraction,
    Mask,
    Prompt,
    Seed,
    as_number,
    check,
    plain_text,
)
from diffstyler.manifests.table import Row, Table
from diffstyler.types import RowProblem, StyleRegion, Triple

MAX_ID_BYTES = 200  # file systems allow 255 for the name with its suffixes
MOST_KNOWN = 1 << 14  # different regions that are remembered


def read_manifest(path: Path, skipped: list[RowProblem] | None = None) -> tuple[Triple, ...]:
    """The pictures that ``path`` (.csv, .jsonl or .parquet) asks for, in the order of their first rows.

    Columns: ``content`` and ``style`` (paths, relative to the manifest's folder), and optionally ``id``,
    ``content_prompt``, ``seed`` (0 … 2^63-1), ``mask``, ``prompt``, ``negative_prompt``, ``strength`` (0 … 2),
    ``guidance_scale`` (>= 0), ``start`` and ``stop`` (1 >= start > stop >= 0), ``inject_features`` and
    ``inject_attention`` (0 … 1), ``style_mask``, a mask prompt on the style picture, and ``style_picture``, the picture
    of a style that is named by its LoRA. Empty, null and absent all
    mean "not given". Rows with the same ``id`` are regions of one picture, in row order; JSON Lines and Parquet may
    nest them as ``regions: [{style, mask, …}]`` instead.

    Args:
        path: the manifest.
        skipped: where given, pictures of which a row is wrong are left out and told here, in place of an error.

    Raises:
        ManifestError: with one line for each problem of the file; of its header alone, where rows are skipped.
    """
    keep = MOST_TOLD if skipped is None else math.inf
    nested = {"regions": REGION_COLUMNS}
    table, folder = Table(path, COLUMNS, required=("content", "style"), nested=nested, keep=keep), Folder(path.parent)
    pictures = _group((_read_row(row, table, folder) for row in table), table)
    for first in pictures:
        if first.others:
            _check_agreement(first, table)
        if first.others or len(first.regions) > 1:
            _check_overlap(first, table)
    if skipped is None:
        table.check()
    else:
        skipped += _set_aside(pictures, table)
    pictures.reverse()  # so that of a million rows each goes as its triple comes
    return tuple(_triple(pictures.pop(), table) for _ in range(len(pictures)))


def _set_aside(pictures: list[_Row], table: Table) -> list[RowProblem]:
    """Take the pictures with a wrong row out -> what is wrong with each, and with what did not become a row."""
    wrong = table.wrong_rows()
    ids = {row.number: first.id for first in pictures for row in first.all if row.number in wrong}
    gone = set(ids.values())
    pictures[:] = [first for first in pictures if first.id not in gone]
    if wrong and not pictures:
        table.check()
    places = {number: f"{table.path.name} {table.place(number)}" for number in wrong}
    return [
        RowProblem(ids.get(number) or places[number], places[number], column, message)
        for number, (column, message) in sorted(wrong.items())
    ]


def _id(value: object) -> str:
    text = str(value) if type(value) is int else plain_text(value)
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", text, re.IGNORECASE):
        raise DiffstylerError(f"{shown(text)} is a name that Windows keeps for itself; take another one")
    if re.fullmatch(r"[\w-][\w.-]*", text) and len(text.encode()) <= MAX_ID_BYTES:
        return text
    expected = f"letters, digits and ._- (at most {MAX_ID_BYTES} bytes, no dot first), as it names files"
    raise DiffstylerError(f"expected {expected}; got {shown(text)}")


class RegionCells(Cells):
    """The columns of one region, by the fields of :class:`StyleRegion`."""

    style: FileOrFolder
    mask: Mask | None = None
    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    strength: Annotated[float, Field(ge=0, le=2), as_number] | None = None
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False), as_number] | None = None
    start: Fraction | None = None
    stop: Fraction | None = None
    inject_features: Fraction | None = None
    inject_attention: Fraction | None = None
    style_mask: Mask | None = None
    style_picture: ExistingFile | None = None

    @cached_property
    def region(self) -> StyleRegion:
        return StyleRegion(**self.given)


REGION_COLUMNS = tuple(RegionCells.model_fields)


def region_value(name: str, value: object, where: str) -> object:
    """What a region's column ``name`` says by ``value``, where there is no file.

    Raises:
        DiffstylerError: it is no such number or text; ``where`` says what gave it.
    """
    if name in ("prompt", "negative_prompt", "mask", "style_mask", "style", "style_picture"):
        if not isinstance(value, (str, Path)):
            raise DiffstylerError(f"{where}: expected a text, got {shown(value)}")
        return value
    try:
        number = TypeAdapter(RegionCells.model_fields[name].rebuild_annotation()).validate_python(value)
    except ValidationError as error:
        raise DiffstylerError(f"{where}: {error.errors()[0]['msg']}, got {shown(value)}") from None
    if number is None:
        raise DiffstylerError(f"{where}: expected a number, got {shown(value)}")
    return number


def _known(values: object, look: ValidatorFunctionWrapHandler, info: ValidationInfo) -> RegionCells:
    """Most rows of a large file name one of a few regions: those that were right are not looked at again."""
    known = info.context.regions  # type: ignore[union-attr]
    if isinstance(values, dict) and all(isinstance(value, str) for value in values.values()):
        key = tuple(values.items())
        if key in known:
            return known[key]
        if len(known) < MOST_KNOWN:
            return known.setdefault(key, look(values))
    return look(values)


class PictureCells(Cells):
    """The columns of one row: a picture, or one region of it."""

    content: ExistingFile
    regions: Annotated[
        list[Annotated[RegionCells, WrapValidator(_known)]],
        Field(min_length=1, description="a list of one or more regions"),
    ]
    id: Annotated[str, BeforeValidator(_id)] | None = None
    content_prompt: Prompt | None = None
    seed: Seed | None = None

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, values: dict[str, object]) -> dict[str, object]:
        """A row without ``regions`` is itself the one region."""
        if "regions" in values:
            return values
        own = dict(values)
        own["regions"] = [{name: own.pop(name) for name in REGION_COLUMNS if name in own}]
        return own


COLUMNS = ("content", *REGION_COLUMNS, "id", "content_prompt", "seed")


@dataclass(slots=True, eq=False)
class _Row:
    """What row ``number`` says; of a wrong one the id and the ``name`` alone, and None for each of its regions.

    ``name``: of its picture, where it gives no id. ``others``: later rows of the same picture.
    """

    number: int
    name: str = ""
    id: str | None = None
    content: Path | None = None
    content_prompt: str | None = None
    seed: int | None = None
    regions: tuple[StyleRegion | None, ...] = (None,)
    others: list[_Row] | None = None

    @property
    def all(self) -> list[_Row]:
        """The rows of the picture whose first one this is."""
        return [self, *(self.others or ())]


def _read_row(row: Row, table: Table, folder: Folder) -> _Row:
    cells, name = check(PictureCells, row, table, folder), "" if "id" in row.values else _name(row)
    if cells is None:
        id, regions = row.values.get("id"), row.values.get("regions")
        count = len(regions) if isinstance(regions, list) else 1
        return _Row(row.number, name, None if id is None else str(id), regions=(None,) * count)
    regions = tuple(_region(region, index, row, table) for index, region in enumerate(cells.regions))
    regions = folder.shared(regions)
    return _Row(row.number, name, cells.id, cells.content, cells.content_prompt, cells.seed, regions)


def _name(row: Row) -> str:
    """``<content stem>-<style stem>`` with other characters as ``_``: the same, whatever else is wrong with the row."""
    regions = row.values.get("regions")
    first = regions[0] if isinstance(regions, list) and regions and isinstance(regions[0], dict) else row.values
    paths = [path for path in (row.values.get("content"), first.get("style")) if isinstance(path, str)]
    return _joined(*paths)


@lru_cache(1 << 14)
def _joined(*paths: str) -> str:
    stems = unicodedata.normalize("NFC", "-".join(PurePath(path).stem for path in paths))
    return re.sub(r"[^\w.-]+", "_", stems).lstrip(".").encode()[: MAX_ID_BYTES - 10].decode(errors="ignore")


def _region(cells: RegionCells, index: int, row: Row, table: Table) -> StyleRegion | None:
    nested = row.values.get("regions")
    prefix, values = (f"regions[{index}].", nested[index]) if isinstance(nested, list) else ("", row.values)
    region = cells.region
    if region.style_picture is not None and is_picture(region.style):
        told = f"the style is a picture itself ({shown(values['style'])}); leave it out"
        table.add(row.number, told, prefix + "style_picture")
        return None
    if region.start > region.stop:
        return region
    name, relation = "start", f"above stop = {region.stop:g}"
    if cells.stop is not None:
        name, relation = "stop", f"below start = {region.start:g}"
    table.add(row.number, f"expected a number {relation}, got {shown(values[name])}", prefix + name)
    return None


def _group(rows: Iterable[_Row], table: Table) -> list[_Row]:
    """The first row of each picture, with its id and its others.

    Rows with the same explicit id make one picture; every other row makes one with an id of its own.
    """
    named: dict[str, _Row] = {}
    firsts: list[_Row] = []
    for row in rows:
        first = row if row.id is None else named.setdefault(_folded(row.id), row)
        if first is row or first.id != row.id:
            firsts.append(row)
        elif first.others is None:
            first.others = [row]
        else:
            first.others.append(row)
        if first.id != row.id:
            there = f"{first.id!r} of {table.place(first.number)}"
            message = f"{row.id!r} differs only by case from {there}: many disks would mix up their files"
            table.add(row.number, message, "id")
    last: dict[str, int] = {}
    for row in firsts:
        if row.id is None:
            row.id = _default_id(row.name, named, last)
    return firsts


def _default_id(name: str, named: Container[str], last: dict[str, int]) -> str:
    """The name, and ``-2``, ``-3`` … where it is taken. ``last``: the last number that each id got."""
    id, key = name, _folded(name)
    number = last.get(key, 1)
    while (folded := _folded(id)) in named or folded in last:
        number += 1
        id = f"{name}-{number}"
    last[key] = number
    last.setdefault(folded, 1)
    return id


def _folded(id: str) -> str:
    """As many disks compare names; the very same text where it is so already."""
    folded = unicodedata.normalize("NFC", id).casefold()
    return id if folded == id else folded


def _check_agreement(picture: _Row, table: Table) -> None:
    for name in ("content", "content_prompt", "seed"):
        first, *others = [row for row in picture.all if getattr(row, name) is not None] or [picture]
        for row in others:
            if getattr(row, name) != getattr(first, name):
                there = f"{_written(first, name, table)} as in {table.place(first.number)}"
                message = f"expected {there} (same id {picture.id!r}), got {_written(row, name, table)}"
                table.add(row.number, message, name)


def _written(row: _Row, name: str, table: Table) -> str:
    value = getattr(row, name)
    if isinstance(value, Path) and value.is_relative_to(table.path.parent):
        value = str(value.relative_to(table.path.parent))
    return shown(value)


def _check_overlap(picture: _Row, table: Table) -> None:
    """Regions of one mask take turns: for each mask, the (stop, start, number) so far, in order and disjoint."""
    turns: dict[str, list[tuple[float, float, int]]] = {}
    regions = [(row.number, region) for row in picture.all for region in row.regions]
    for upper, (number, region) in enumerate(regions, start=1):
        if region is None:
            continue
        others = turns.setdefault(region.mask, [])
        at = bisect.bisect_left(others, (region.stop,))
        lower = next(
            (n for stop, start, n in others[max(at - 1, 0) : at + 1] if stop < region.start and region.stop < start), 0
        )
        if lower:
            cure = "give them different masks or disjoint start/stop intervals"
            table.add(number, f"region {upper} would paint over region {lower}: {cure}")
        else:
            others.insert(at, (region.stop, region.start, upper))


def _triple(first: _Row, table: Table) -> Triple:
    assert first.id is not None, "each row has got one"
    assert first.content is not None, "rows without content are reported"
    rows = first.all
    regions: tuple[StyleRegion, ...] = first.regions  # type: ignore[assignment]  # wrong ones are told
    for row in rows[1:]:
        origin = f"{table.path.name} {table.place(row.number)}"
        regions += tuple(replace(region, origin=origin) for region in row.regions if region)
    content_prompt = next((row.content_prompt for row in rows if row.content_prompt is not None), "")
    seed = next((row.seed for row in rows if row.seed is not None), 0)
    origin = f"{table.path.name} {table.place(first.number)}"
    return Triple(first.id, first.content, regions, content_prompt, seed, origin)
