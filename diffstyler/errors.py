"""Errors that the package raises: one base class; a text says where, what was expected, what came and what to do."""

from __future__ import annotations


class DiffstylerError(ValueError):
    """Anything that a user can cause and mend."""
