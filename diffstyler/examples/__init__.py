"""The example manifest and pictures that ship with the package, and where its configurations lie."""

from __future__ import annotations

import shutil
from pathlib import Path

HERE = Path(__file__).parent


def copy_examples(folder: Path) -> Path:
    """Copy pictures and manifest into ``folder`` -> the manifest's path. What is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(f for f in HERE.rglob("*") if f.suffix in {".csv", ".jpg"}):
        target = folder / source.relative_to(HERE)
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return folder / "manifest.csv"


def configs_dir() -> Path:
    """The YAML files: inside an installed package, at the top of a source tree."""
    installed = HERE.parent / "configs"
    return installed if installed.is_dir() else HERE.parent.parent / "configs"
