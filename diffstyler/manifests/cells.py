"""A row as its file gives it in; what its cells mean, checked by a pydantic model, or the problems of each cell out."""

from __future__ import annotations

import re
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from diffstyler import storage
from diffstyler.adapters.hub import fetch_lora, is_hub_id
from diffstyler.checks import MAX_SEED, in_our_words, shown
from diffstyler.errors import DiffstylerError, check_placeholders
from diffstyler.manifests.table import Row, Table, unknown
from diffstyler.masking.prompt import File, with_files_from
from diffstyler.masking.prompt_parser import parse_mask_prompt

MOST_SHOWN = 300  # characters of a path that is not there
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_INTEGER = re.compile(r"(\d{1,19})(\.0*)?", re.ASCII)  # pandas writes the integers of a column with gaps as 3.0
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


Same = TypeVar("Same", bound=Hashable)


class Cells(BaseModel):
    """The columns of a row; None = not given. Validate with a :class:`Folder` as the context."""

    model_config = ConfigDict(extra="forbid")

    @property
    def given(self) -> dict:
        """The columns that the row gives."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class Folder:
    """Where the paths of a manifest start: each is looked up once, and each mask prompt parsed once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.find = cache(self._find)
        self.mask = cache(self._mask)
        self.regions: dict[tuple, Cells] = {}  #: that were looked at, by what their cells say
        self._shared: dict[Hashable, Hashable] = {}

    def shared(self, value: Same) -> Same:
        """One object for all that are equal: the rows of a large file say much the same."""
        return self._shared.setdefault(value, value)  # type: ignore[return-value]

    def _find(self, written: str) -> tuple[Path, bool]:
        """The path, and whether it is a folder."""
        path = self._place(written)
        try:
            is_folder = storage.is_folder(path)
            return storage.fetch(path) if is_folder else path, is_folder
        except OSError as error:
            looked = storage.told(path.absolute())[:MOST_SHOWN]
            raise DiffstylerError(f"no such file: {shown(written)} (looked for {looked})") from error

    def _place(self, written: str) -> Path:
        """Of a path or URL."""
        named = storage.local(written)
        return named if storage.is_remote(named) else self.path / written

    def _mask(self, written: str) -> str:
        """The mask prompt in its canonical form, its files found."""
        prompt = with_files_from(parse_mask_prompt(written), self.path)
        for file in (node.path for node in prompt.walk() if isinstance(node, File)):
            if not storage.fetch(file).is_file():
                raise DiffstylerError(f"no such mask file (looked for {file.absolute()})")
        return str(prompt)


Model = TypeVar("Model", bound=Cells)


def check(model: type[Model], row: Row, table: Table, folder: Folder) -> Model | None:
    """What the row says; None where something is wrong with it, which the table then knows."""
    try:
        return model.model_validate(row.values, context=folder)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            _tell(problem, model, row, table)
        return None


def _tell(problem: ErrorDetails, model: type[Cells], row: Row, table: Table) -> None:
    place = list(problem["loc"])
    if place and place[0] in table.nested and place[0] not in row.values:
        del place[:2]  # the row itself is the one nested object
    column = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)[1:]
    if problem["type"] != "extra_forbidden":
        if not (problem["type"] == "missing" and column in table.told):
            table.add(row.number, in_our_words(problem, model), column)
        return
    if len(place) > 1:
        return table.add(row.number, unknown(str(place[-1]), table.nested[str(place[0])]), column)
    outer = next((name for name, inner in table.nested.items() if column in inner and name in row.values), None)
    belongs = f"belongs inside each of {outer!r} where a row has them"
    table.add(row.number, belongs if outer else unknown(column, table.columns), column)


def plain_text(value: object) -> str:
    if not isinstance(value, str) or _UNUSABLE.search(value):
        raise PydanticCustomError("text", "expected text")
    return value


def _prompt(value: object) -> str:
    return check_placeholders(plain_text(value), ())


def _number(value: object) -> object:
    if not _NUMBER.fullmatch(str(value)):
        raise PydanticCustomError("number", "expected a number")
    return value


def _integer(value: object) -> object:
    if not (match := _INTEGER.fullmatch(str(value))):
        raise PydanticCustomError("integer", "expected an integer")
    return match[1] if isinstance(value, str) else value


def _there(value: object, info: ValidationInfo) -> Path:
    """A LoRA or picture; what is not here may be a LoRA's hub id."""
    written, folder = plain_text(value), info.context
    first = written.partition("/")[0]
    if is_hub_id(written) and not (folder.path / written).exists() and not (folder.path / first).exists():  # type: ignore[union-attr]
        return fetch_lora(written)
    return folder.find(written)[0]  # type: ignore[union-attr]


def _file(value: object, info: ValidationInfo) -> Path:
    path, is_folder = info.context.find(plain_text(value))  # type: ignore[union-attr]
    if is_folder:
        raise DiffstylerError(f"expected a file, got the folder {value!r} ({path.absolute()})")
    return path


def _mask(value: object, info: ValidationInfo) -> str:
    return info.context.mask(plain_text(value))  # type: ignore[union-attr]


as_number, as_integer = BeforeValidator(_number), BeforeValidator(_integer)  # after the bounds in an Annotated
Text = Annotated[str, BeforeValidator(plain_text)]
Prompt = Annotated[str, BeforeValidator(_prompt)]
Fraction = Annotated[float, Field(ge=0, le=1), as_number]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), as_integer]
ExistingFile = Annotated[Path, BeforeValidator(_file)]
FileOrFolder = Annotated[Path, BeforeValidator(_there)]
Mask = Annotated[str, BeforeValidator(_mask)]
