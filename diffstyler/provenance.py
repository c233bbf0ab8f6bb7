"""An object of the run in; its record, plain JSON values that determine it, out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from diffstyler.errors import DiffstylerError

Plain = bool | int | float | str | None | list | dict


class InexpressibleError(DiffstylerError):
    """What an object is cannot be told by plain values, so that two different ones could not be told apart."""


def describe(thing: object) -> Plain:
    """Plain values as they are; an object as ``{"class": its name, **what it was made of}``.

    An object is told by the fields of its dataclass, or by the arguments of its class, which it must keep as attributes
    of the same names.

    Raises:
        InexpressibleError: it has parts that are neither, such as functions and tensors.
    """
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, Path):
        return str(thing)
    if isinstance(thing, (list, tuple)):
        return [describe(part) for part in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted((describe(part) for part in thing), key=repr)
    if isinstance(thing, Mapping):
        return {str(key): describe(part) for key, part in thing.items()}
    return {"class": type(thing).__name__, **{name: describe(getattr(thing, name)) for name in _arguments(thing)}}


def _arguments(thing: object) -> list[str]:
    kind = type(thing)
    if "__dataclass_fields__" in vars(kind):
        return [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if inspect.isfunction(kind.__init__):
        names = list(inspect.signature(kind.__init__).parameters)[1:]
        if all(hasattr(thing, name) for name in names):
            return names
    reduces = (kind.__reduce__, kind.__reduce_ex__) == (object.__reduce__, object.__reduce_ex__)
    if kind.__init__ is object.__init__ and reduces and hasattr(thing, "__dict__") and not inspect.isroutine(thing):
        return sorted(vars(thing))  # of a class written in Python that takes no arguments
    raise InexpressibleError(
        f"{thing!r} cannot be recorded: expected plain values, or an object of a class that keeps its arguments as "
        "attributes (a dataclass does)"
    )
