"""Module names from before the rooms -> the modules of today: users' YAML files and notebooks go on working."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: those with classes that users name
MOVED = {
    "diffstyler.crops": "diffstyler.fit.crops",
    "diffstyler.early_stop": "diffstyler.fit.early_stop",
    "diffstyler.fusion": "diffstyler.diffusion.fusion",
    "diffstyler.injection": "diffstyler.diffusion.injection",
    "diffstyler.losses": "diffstyler.fit.losses",
    "diffstyler.sampling": "diffstyler.diffusion.initial",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds a module under its old name; what is asked of it is the new one's."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        home = MOVED[module.__name__]
        vars(module)["__getattr__"] = lambda name: getattr(importlib.import_module(home), name)
