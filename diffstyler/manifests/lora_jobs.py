"""A file of LoRAs to fit (CSV, JSON Lines or Parquet, one a row) in; checked rows out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from diffstyler.checks import MAX_SEED
from diffstyler.errors import MOST_TOLD
from diffstyler.manifests.cells import Cells, ExistingFile, Folder, Mask, Prompt, Seed, as_integer, as_number, check
from diffstyler.manifests.table import Table
from diffstyler.types import RowProblem

Role = Literal["style", "content"]
ROLES: tuple[Role, ...] = get_args(Role)
Count = Annotated[int, Field(ge=1, le=MAX_SEED), as_integer]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), as_number]


class LoRAJobCells(Cells):
    """The columns of a row; its settings have the names of the run's."""

    picture: ExistingFile
    role: Role | None = None
    prompt: Prompt | None = None
    seed: Seed | None = None
    steps: Count | None = None
    learning_rate: Positive | None = None
    rank: Count | None = None
    alpha: Count | None = None
    gradient_clip: Positive | None = None
    mask: Mask | None = None
    resolution: Count | None = None
    crop_size: Count | None = None


@dataclass(frozen=True)
class LoRAJobRow:
    """One LoRA to fit: its picture, and the settings that the row gives, by name; the others are as the run.

    ``origin`` names the row for error messages, such as ``jobs.csv row 3``.
    """

    picture: Path
    given: dict[str, object]
    origin: str


def read_lora_jobs(path: Path, skipped: list[RowProblem] | None = None) -> tuple[LoRAJobRow, ...]:
    """The LoRAs that ``path`` (.csv, .jsonl or .parquet) asks for, in its order.

    Paths are relative to the file's folder; empty, null and absent all mean "as the run". Numbers are positive,
    integers below 2^63; ``seed`` may be 0; ``mask`` is a mask prompt on the picture.

    Args:
        path: the file.
        skipped: where given, wrong rows are left out and told here, in place of an error.

    Raises:
        ManifestError: with one line for each problem of the file; of its header alone, where rows are skipped.
    """
    keep = MOST_TOLD if skipped is None else math.inf
    table = Table(path, tuple(LoRAJobCells.model_fields), required=("picture",), keep=keep)
    folder = Folder(path.parent)
    jobs = []
    for row in table:
        if cells := check(LoRAJobCells, row, table, folder):
            given = {name: value for name, value in cells.given.items() if name != "picture"}
            jobs.append(LoRAJobRow(cells.picture, given, f"{path.name} {table.place(row.number)}"))
    if skipped is None or not jobs:
        table.check()
    else:
        for number, (column, message) in sorted(table.wrong_rows().items()):
            place = f"{path.name} {table.place(number)}"
            skipped.append(RowProblem(place, place, column, message))
    return tuple(jobs)
