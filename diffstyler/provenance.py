"""An object of the run in; its record, plain JSON values that determine it, out."""

from __future__ import annotations


def describe(setting: object) -> dict:
    """A strategy object as plain values: its class and its attributes."""
    values = {k: v if isinstance(v, (int, float, str, type(None))) else describe(v) for k, v in vars(setting).items()}
    return {"class": type(setting).__name__, **values}
