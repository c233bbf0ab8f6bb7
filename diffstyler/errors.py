"""Errors that the package raises: one base class; a text says where, what was expected, what came and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable


class DiffstylerError(ValueError):
    """Anything that a user can cause and mend."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, x the known word that is nearest, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
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
