"""A mask prompt, one short string in; the tree of what it asks for out. The grammar of every mask in diffstyler.

::

    expression = part { ("+" | "-") part }          union, and minus; from left to right
    part       = "not" part | base { edits }
    base       = atom | "(" expression ")"
    edits      = "[" (("grow" | "shrink" | "feather") pixels | pick) { [","] … } "]"
    pick       = a number, 1 the surest, or "largest" | "smallest" | "left" | "right" | "top" | "bottom": of the things
                 that the words before it name
    atom       = "everything" | "background"
               | "point:" x,y { x,y } [ "not" x,y { x,y } ]
               | "box:" x0,y0,x1,y1
               | "file:" path [ "value" label ]
               | words, or "words in quotes"          a text prompt; "text:" before it is allowed

A minus has spaces around it, so that ``half-timbered house`` is text. Integers are pixels of the upright picture,
numbers with a decimal point (0.0 … 1.0) are fractions of its width and height.
"""

from __future__ import annotations

import re
from pathlib import Path

from diffstyler.errors import DiffstylerError, did_you_mean
from diffstyler.masking.prompt import (
    UNQUOTED_LABEL,
    Background,
    Box,
    Coordinate,
    Edit,
    Everything,
    File,
    MaskPrompt,
    Minus,
    Not,
    Pick,
    Point,
    Points,
    Text,
    Union,
)

EDITS = ("grow", "shrink", "feather")
PICKS = ("largest", "smallest", "left", "right", "top", "bottom")
KINDS = ("text", "point", "box", "file")
MAX_PIXELS = 10_000  # of an edit: more is a slip of the finger
EXCERPT = 100  # characters of a prompt that are shown to both sides of what is wrong
MAX_PARTS = 100  # all that walk the tree are recursive
_KIND = re.compile(r"([A-Za-z_]+)\s*:")
_NUMBER = re.compile(r"\d+\.\d*|\.\d+|\d+")
_LABEL = re.compile(r"value\s+(\d{1,10})(?![^\s()\[\]])", re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


class MaskPromptError(DiffstylerError):
    """A prompt outside the grammar; the text shows what was expected, and points at the character."""

    def __init__(self, message: str, prompt: str, position: int) -> None:
        first = max(position - EXCERPT, 0)
        near = "".join(char if char.isprintable() else "\ufffd" for char in prompt[first : position + EXCERPT])
        super().__init__(f"{message} (character {position + 1})\n  {near}\n  {' ' * (position - first)}^")
        self.position = position


def parse_mask_prompt(prompt: str) -> MaskPrompt:
    """The tree of a mask prompt.

    Raises:
        MaskPromptError: the prompt is outside the grammar.
    """
    return _Parser(prompt).parse()


class _Parser:
    """Recursive descent over one prompt; ``at`` is the next character."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.at = 0
        self.parts = 0

    def parse(self) -> MaskPrompt:
        self.skip()
        if self.at == len(self.prompt):
            raise self.error("expected a mask prompt such as 'the house', got nothing")
        tree = self.expression()
        if self.at < len(self.prompt):
            raise self.error(f"expected '+', '-' or the end, got {self.prompt[self.at]!r}")
        return tree

    def expression(self) -> MaskPrompt:
        tree = self.part()
        while True:
            if self.take("+"):
                tree = Union(tree, self.part())
            elif self.at_minus():
                self.take("-")
                tree = Minus(tree, self.part())
            else:
                return tree

    def part(self) -> MaskPrompt:
        self.count()
        if self.match(re.compile(r"not(?=[\s(\"]|$)", re.IGNORECASE)):
            return Not(self.part())
        tree = self.group() if self.peek() == "(" else self.atom()
        while self.peek() == "[":
            tree = self.edits(tree)
        return tree

    def group(self) -> MaskPrompt:
        opened = self.at
        self.take("(")
        tree = self.expression()
        if not self.take(")"):
            raise self.error("this '(' has no ')'", opened)
        return tree

    def edits(self, tree: MaskPrompt) -> MaskPrompt:
        opened = self.at
        self.take("[")
        while True:
            self.count()
            start = self.at
            word = self.match(re.compile(r"[A-Za-z]+|[1-9]\d{0,3}(?![\d.])"))
            if word is None or not (word[0] in (*EDITS, *PICKS) or word[0].isdigit()):
                hint = did_you_mean(word[0].lower() if word else "", (*EDITS, *PICKS))
                raise self.error(f"expected {', '.join((*EDITS, *PICKS))} or a number{hint}", start)
            tree = Edit(tree, word[0], self.pixels()) if word[0] in EDITS else self.pick(tree, word[0], start)
            self.take(",")
            if self.take("]"):
                return tree
            if self.at == len(self.prompt):
                raise self.error("this '[' has no ']'", opened)

    def pick(self, tree: MaskPrompt, which: str, start: int) -> Pick:
        if not isinstance(tree, Text):
            raise self.error(f"[{which}] takes one of the things that words name: it stands right after them", start)
        return Pick(tree, which)

    def pixels(self) -> float:
        start = self.at
        number = self.match(_NUMBER)
        if number is None or not 0 < float(number[0]) <= MAX_PIXELS:
            raise self.error(f"expected a number of pixels in 0 … {MAX_PIXELS}", start)
        return float(number[0])

    def atom(self) -> MaskPrompt:
        start = self.at
        if kind := self.match(_KIND):
            name = kind[1].lower()
            if name not in KINDS:
                expected = f"one of {', '.join(f'{k}:' for k in KINDS)}, or the phrase in double quotes"
                raise self.error(f"expected {expected}{did_you_mean(name, KINDS)}", start)
            if name in {"point", "box"}:
                return self.points() if name == "point" else self.box()
            return Text(self.words("a phrase")) if name == "text" else self.file()
        quoted = self.peek() == '"'
        phrase = self.words("a phrase, 'point:', 'box:', 'file:', 'everything' or 'background'")
        if not quoted and phrase.lower() in {"everything", "background"}:
            return Everything() if phrase.lower() == "everything" else Background()
        return Text(phrase)

    def words(self, expected: str) -> str:
        """Up to the next operator or bracket, or in quotes."""
        start = self.at
        if self.peek() == '"':
            quoted = self.match(_QUOTED)
            if quoted is None:
                raise self.error("this quote is not closed", start)
            text = re.sub(r"\\(.)", r"\1", quoted[1])
        else:
            while self.at < len(self.prompt) and self.prompt[self.at] not in '+()[]"' and not self.at_minus():
                self.at += 1
            text = self.prompt[start : self.at]
        if not text.strip():
            raise self.error(f"expected {expected}", start)
        self.skip()
        return text.strip()

    def file(self) -> File:
        quoted, path = self.peek() == '"', self.words("a path")
        if quoted:
            label = self.match(_LABEL)
        elif label := UNQUOTED_LABEL.search(path):
            path = path[: label.start()]
        return File(Path(path), int(label[1]) if label else None)

    def points(self) -> Points:
        positive = self.some_points()
        negative = self.some_points() if self.match(re.compile(r"not(?=\s)", re.IGNORECASE)) else []
        self.check_units([c for point in positive + negative for c in point])
        return Points(tuple(positive), tuple(negative))

    def some_points(self) -> list[Point]:
        found = [self.point()]
        while _NUMBER.match(self.prompt, self.at):
            found.append(self.point())
        return found

    def point(self) -> Point:
        x = self.coordinate()
        if not self.take(","):
            raise self.error("expected ',' between x and y")
        return x, self.coordinate()

    def box(self) -> Box:
        start = self.at
        corners = [self.coordinate()]
        while len(corners) < 4:
            if not self.take(","):
                raise self.error(f"expected four numbers x0,y0,x1,y1, got {len(corners)}")
            corners.append(self.coordinate())
        self.check_units(corners, start)
        x0, y0, x1, y1 = corners
        if x0.value >= x1.value or y0.value >= y1.value:
            raise self.error("expected x0 < x1 and y0 < y1: the upper left corner first", start)
        return Box((x0, y0, x1, y1))

    def coordinate(self) -> Coordinate:
        start = self.at
        number = self.match(_NUMBER)
        if number is None:
            raise self.error(f"expected a number, got {self.prompt[start : start + 12]!r}")
        is_fraction = "." in number[0]
        if is_fraction and float(number[0]) > 1:
            raise self.error("a number with a decimal point is a fraction, 0.0 … 1.0; pixels are whole", start)
        return Coordinate(float(number[0]), is_fraction)

    def check_units(self, coordinates: list[Coordinate], start: int | None = None) -> None:
        if len({c.is_fraction for c in coordinates}) > 1:
            raise self.error("pixels (whole numbers) and fractions (0.0 … 1.0) do not mix here", start)

    def count(self) -> None:
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise self.error(
                f"expected at most {MAX_PARTS} parts, brackets and edits; draw the mask as a file: instead"
            )

    # ---- characters

    def at_minus(self) -> bool:
        """A '-' that stands alone, rather than inside a word."""
        before, after = self.prompt[: self.at][-1:], self.prompt[self.at + 1 : self.at + 2]
        return self.peek() == "-" and before in {" ", ")", "]", '"', "\t", ""} and after in {" ", "(", '"', "\t", ""}

    def peek(self) -> str:
        return self.prompt[self.at : self.at + 1]

    def take(self, character: str) -> bool:
        if self.peek() != character:
            return False
        self.at += 1
        self.skip()
        return True

    def match(self, pattern: re.Pattern) -> re.Match | None:
        found = pattern.match(self.prompt, self.at)
        if found:
            self.at = found.end()
            self.skip()
        return found

    def skip(self) -> None:
        while self.peek().isspace():
            self.at += 1

    def error(self, message: str, position: int | None = None) -> MaskPromptError:
        return MaskPromptError(message, self.prompt, self.at if position is None else position)
