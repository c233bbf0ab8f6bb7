"""Errors that the package raises: one base class; a text says where, what was expected, what came and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence


class DiffstylerError(ValueError):
    """Anything that a user can cause and mend."""


#: problems and failures that a text names; files have all of them
MOST_TOLD = 100


class RowsError(DiffstylerError):
    """What is wrong with the rows of a run, one problem a line; at most the first 100."""


def told_lines(problems: Sequence[object]) -> str:
    """One a line, and how many more there are than are told."""
    lines = [str(problem) for problem in problems[:MOST_TOLD]]
    more = len(problems) - len(lines)
    return "\n".join([*lines, f"… and {more} more"] if more else lines)


def printable(text: str) -> str:
    r"""The text with ``\u001b`` and the like in place of control characters, which files may hold and a terminal would
    obey: ends of lines and tabs stay."""
    return re.sub(
        r"[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda found: f"\\u{ord(found[0]):04x}", text
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, x the known word that is nearest, or nothing where none is near."""
    names = list(known)
    _, dot, name = word.rpartition(".")
    alike = [other for other in names if dot and other.rpartition(".")[2] == name]  # right, but of another group
    near = difflib.get_close_matches(word, alike or names, n=1, cutoff=0.0 if alike else 0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def check_placeholders(text: str, known: Collection[str], where: str = "") -> str:
    """The prompt as it is, if every ``{word}`` in it is among ``known``.

    Raises:
        DiffstylerError: one is not; it would be drawn as text.
    """
    for word in re.findall(r"\{(\w*)\}", text):
        if word not in known:
            names = ", ".join(f"{{{name}}}" for name in known)
            can = f"known here: {names}{did_you_mean(word, known)}" if known else "nothing is put in for words here"
            raise DiffstylerError(f"{where}unknown placeholder '{{{word}}}' in '{text}'; {can}")
    return text
