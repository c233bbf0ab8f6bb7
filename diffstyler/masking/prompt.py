"""The tree of what a mask prompt asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from diffstyler.storage import local

_NEEDS_QUOTES = re.compile(r'["+()\[\]\\:]|(?:^|\s)-(?:\s|$)|^\s|\s$|^$')

#: what may follow the path of a mask file that is not in quotes
UNQUOTED_LABEL = re.compile(r"\s+value\s+(\d{1,10})$", re.IGNORECASE)


class MaskPrompt:
    """A node of a mask prompt. ``str()`` gives its canonical text, which parses to an equal tree."""

    def __str__(self) -> str:
        return type(self).__name__.lower()

    def walk(self) -> Iterator[MaskPrompt]:
        """This node and all below it."""
        yield self
        for child in vars(self).values():
            if isinstance(child, MaskPrompt):
                yield from child.walk()


@dataclass(frozen=True)
class Everything(MaskPrompt):
    """The whole picture."""


@dataclass(frozen=True)
class Background(MaskPrompt):
    """What no other region of the picture took."""


@dataclass(frozen=True)
class Text(MaskPrompt):
    """What a phrase names."""

    phrase: str

    def __str__(self) -> str:
        first = self.phrase.split(" ", 1)[0].lower()
        reserved = first == "not" or self.phrase.lower() in {"everything", "background"}
        return _quoted(self.phrase) if reserved or _NEEDS_QUOTES.search(self.phrase) else self.phrase


@dataclass(frozen=True)
class Coordinate:
    """``value`` in pixels, or as a fraction 0 … 1 of the side."""

    value: float
    is_fraction: bool

    def __str__(self) -> str:
        return f"{self.value:.9f}".rstrip("0") if self.is_fraction else str(int(self.value))

    def pixels(self, side: int) -> float:
        """In pixels of a picture with this width (or height)."""
        return self.value * side if self.is_fraction else self.value


Point = tuple[Coordinate, Coordinate]


@dataclass(frozen=True)
class Points(MaskPrompt):
    """The thing under the positive points (x, y) and not under the negative ones."""

    positive: tuple[Point, ...]
    negative: tuple[Point, ...] = ()

    def __str__(self) -> str:
        without = f" not {_pairs(self.negative)}" if self.negative else ""
        return f"point: {_pairs(self.positive)}{without}"


@dataclass(frozen=True)
class Box(MaskPrompt):
    """The thing in the box (x0, y0, x1, y1), x0 < x1 and y0 < y1."""

    corners: tuple[Coordinate, Coordinate, Coordinate, Coordinate]

    def __str__(self) -> str:
        return "box: " + ",".join(map(str, self.corners))


@dataclass(frozen=True)
class File(MaskPrompt):
    """A mask picture, see :func:`diffstyler.masking.mask_file.read_mask`; ``value``: of labels, the one that is in."""

    path: Path
    value: int | None = None

    def __str__(self) -> str:
        text, label = str(self.path), "" if self.value is None else f" value {self.value}"
        return f"file: {_quoted(text) if _NEEDS_QUOTES.search(text) or UNQUOTED_LABEL.search(text) else text}{label}"


@dataclass(frozen=True)
class _Pair(MaskPrompt):
    left: MaskPrompt
    right: MaskPrompt
    sign: ClassVar[str]

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {_grouped(self.right, _Pair)}"


class Union(_Pair):
    """In either."""

    sign = "+"


class Minus(_Pair):
    """In the left one and not in the right one."""

    sign = "-"


@dataclass(frozen=True)
class Not(MaskPrompt):
    """Everything else."""

    inner: MaskPrompt

    def __str__(self) -> str:
        return f"not {_grouped(self.inner, _Pair)}"


@dataclass(frozen=True)
class Edit(MaskPrompt):
    """``grow``, ``shrink`` or ``feather`` by some pixels of the upright picture."""

    inner: MaskPrompt
    kind: str
    pixels: float

    def __str__(self) -> str:
        return f"{_grouped(self.inner, _Pair, Not)} [{self.kind} {self.pixels:g}]"


@dataclass(frozen=True)
class Pick(MaskPrompt):
    """One of the things that words name: ``which`` is its number, 1 the surest, or largest, left, right, …"""

    inner: Text
    which: str

    def __str__(self) -> str:
        return f"{self.inner} [{self.which}]"


def with_files_from(prompt: MaskPrompt, folder: Path) -> MaskPrompt:
    """The same prompt with the relative paths in it taken from ``folder``."""
    if isinstance(prompt, File):
        return replace(prompt, path=folder / local(prompt.path))
    changed = {
        name: with_files_from(child, folder) for name, child in vars(prompt).items() if isinstance(child, MaskPrompt)
    }
    return replace(prompt, **changed) if changed else prompt  # type: ignore[type-var]


def _grouped(prompt: MaskPrompt, *kinds: type) -> str:
    return f"({prompt})" if isinstance(prompt, kinds) else str(prompt)


def _pairs(points: tuple[Point, ...]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
