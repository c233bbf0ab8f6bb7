"""Style and content pictures -> the LoRA files that a run needs, found in the library, read and checked once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from diffstyler.adapters import (
    lora_files,
)
from diffstyler.files import file_sha256
from diffstyler.images import load_image


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA that the run needs: its file, that file's sha256, and the prompt it was fitted with."""

    path: Path
    sha256: str
    prompt: str


class MissingLoRAError(ValueError):
    """Pictures without a LoRA; the text lists them all and the command that makes them."""


def _sha256(lora: Path) -> str:
    """Of the LoRA's file; of the files' hashes, where it has several."""
    hashes = [file_sha256(file) for file in lora_files(lora).values()]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _readable(paths: Iterable[Path]) -> Iterator[Path]:
    """Those that open as pictures; the others fail with their rows."""
    for path in paths:
        try:
            load_image(path)
        except (ValueError, OSError):
            continue
        yield path
