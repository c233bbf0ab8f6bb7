"""Pictures -> LoRAs. The room has the name of the notebook's function, so it can be called as one."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


class Room(ModuleType):
    """Importing any module of a package sets the package as an attribute of its parent: ``diffstyler.fit`` is both."""

    def __call__(self, *args: object, **options: object) -> object:
        """:func:`diffstyler.api.fit`."""
        return importlib.import_module("diffstyler.api").fit(*args, **options)


sys.modules[__name__].__class__ = Room
