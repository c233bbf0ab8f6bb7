"""Errors that the package raises: one base class; a text says where, what was expected, what came and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DiffstylerError(ValueError):
    """Anything that a user can cause and mend."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, x the known word that is nearest, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
