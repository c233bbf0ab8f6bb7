"""A folder of fitted LoRAs: each found by the picture it was fitted to, the model and the settings."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from diffstyler import storage
from diffstyler.adapters.files import lora_files
from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write, read_json, sweep

log = logging.getLogger(__name__)

RECORD_NAME = "diffstyler.json"


@dataclass(frozen=True)
class LoRAIdentity:
    """What determines a fitted LoRA: two with equal identity have equal weights.

    ``role`` is "style" or "content"; ``picture`` and ``model`` are sha256 (hex); ``settings`` are plain JSON values.
    """

    role: str
    name: str
    picture: str
    model: str
    settings: dict

    @property
    def key(self) -> str:
        """sha256 over everything but the picture's file name."""
        fields = {key: value for key, value in asdict(self).items() if key != "name"}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    @property
    def folder_name(self) -> str:
        return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', self.name)[:48]}-{self.key[:12]}"


@dataclass(frozen=True, repr=False)
class FittedLoRA:
    """A finished LoRA folder and what its record says.

    ``history`` tells what happened on the way, if anything; ``steps_taken`` are fewer than asked for where the LoRA
    stopped early, and None where the record does not say.
    """

    folder: Path
    identity: LoRAIdentity
    history: tuple[str, ...] = ()
    steps_taken: int | None = None

    def __repr__(self) -> str:
        return f"FittedLoRA({str(self.folder)!r}, {self.identity.role} of {self.identity.name!r})"

    @property
    def prompt(self) -> str:
        """The prompt that it was fitted with."""
        return self.identity.settings.get("prompt", "")


class LoRALibrary:
    """The LoRAs in ``lora_dir``, a folder or a URL, one folder each; a folder is there only when it is complete."""

    def __init__(self, lora_dir: Path) -> None:
        self.lora_dir = storage.local(lora_dir)

    def entries(self) -> list[FittedLoRA]:
        """All finished LoRAs, by folder name."""
        return [entry for file in storage.files(self.lora_dir, f"*/{RECORD_NAME}") if (entry := _whole(file.parent))]

    def get(self, identity: LoRAIdentity) -> FittedLoRA | None:
        """The LoRA with exactly this identity (under whatever picture name), or None."""
        return self.find([identity]).get(identity.key)

    def find(self, identities: Sequence[LoRAIdentity]) -> dict[str, FittedLoRA]:
        """Those of these LoRAs that are there, by key; the folder is listed once."""
        folders: dict[str, list[Path]] = {}
        beginnings = {identity.key[:12] for identity in identities}
        pattern = f"*-{identities[0].key[:12]}" if len(identities) == 1 else "*"
        for file in storage.files(self.lora_dir, f"{pattern}/{RECORD_NAME}"):
            if (beginning := file.parent.name.rpartition("-")[2]) in beginnings:
                folders.setdefault(beginning, []).append(file.parent)
        found = {}
        for identity in identities:
            for folder in folders.get(identity.key[:12], ()):
                entry = _whole(folder)
                if entry is not None and entry.identity.key == identity.key:
                    found[identity.key] = entry
        return found

    @property
    def unfinished(self) -> Path:
        """Where processes keep what is under way."""
        return self.lora_dir / ".unfinished"

    def state_file(self, identity: LoRAIdentity) -> Path:
        """Where the unfinished LoRA keeps its state."""
        return self.unfinished / f"{identity.key}.pt"

    def publish(
        self,
        identity: LoRAIdentity,
        write: Callable[[Path], None],
        history: Sequence[str] = (),
        steps_taken: int | None = None,
    ) -> FittedLoRA:
        """Let ``write`` fill a folder beside the library's, add the record, and move it in as a whole."""
        folder = self.lora_dir / identity.folder_name
        partial = self.unfinished / f"{identity.key}.folder"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        record = {**asdict(identity), **({"history": list(history)} if history else {})}
        record |= {"steps_taken": steps_taken} if steps_taken is not None else {}
        (partial / RECORD_NAME).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        for file in partial.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        there = self.get(identity)
        if there:  # another process was faster; equal identity means equal weights
            shutil.rmtree(partial)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # what is not whole
            partial.replace(folder)
            for file in sorted(folder.iterdir(), key=lambda file: file.name == RECORD_NAME):
                storage.put(file)  # the record last: it says that the folder is complete
        self.forget_state(identity)
        return there or FittedLoRA(folder, identity, tuple(history), steps_taken)

    def rename(self, entry: FittedLoRA, name: str) -> FittedLoRA:
        """Call a LoRA otherwise, in its record and in its folder's name; what it is found by stays.

        Raises:
            DiffstylerError: no name, or a LoRA that is not here, or not on a disk.
        """
        self._check_own(entry)
        if not name.strip():
            raise DiffstylerError("expected a name for the LoRA, got nothing")
        path = entry.folder / RECORD_NAME
        record = {**read_json(path), "name": name.strip()}
        atomic_write(path, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())
        identity = replace(entry.identity, name=name.strip())
        return replace(entry, folder=entry.folder.rename(self.lora_dir / identity.folder_name), identity=identity)

    def delete(self, entry: FittedLoRA) -> None:
        """Take a LoRA and its folder away; whoever looks sees the whole of it or nothing.

        Raises:
            DiffstylerError: it is not here, or not on a disk.
        """
        self._check_own(entry)
        gone = self.unfinished / f"{entry.identity.key}.deleted"
        gone.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(gone, ignore_errors=True)
        entry.folder.rename(gone)
        shutil.rmtree(gone)

    def _check_own(self, entry: FittedLoRA) -> None:
        if storage.is_remote(self.lora_dir):  # a store moves objects, and no folder as a whole
            raise DiffstylerError(f"{storage.told(self.lora_dir)}: expected a library on a disk; do that in the store")
        if entry.folder.parent != self.lora_dir or not (entry.folder / RECORD_NAME).is_file():
            raise DiffstylerError(f"{entry.folder}: no such LoRA in {self.lora_dir}; was it renamed or deleted?")

    def sweep(self) -> None:
        """Remove what killed processes left of files that they wrote."""
        sweep(self.lora_dir)
        sweep(self.unfinished)

    def forget_state(self, identity: LoRAIdentity) -> None:
        """Remove the unfinished LoRA's state, and what a process left that was killed while it wrote one."""
        state = self.state_file(identity)
        for file in (state, *state.parent.glob(f".{state.name}.*.tmp")):
            storage.remove(file)


def read_record(folder: Path) -> FittedLoRA:
    """The record of one LoRA folder.

    Raises:
        DiffstylerError: the record is damaged.
    """
    path = folder / RECORD_NAME
    try:
        record = _Record.model_validate(read_json(path))
    except (ValueError, OSError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DiffstylerError(f"{path} is damaged ({reason}); delete the folder and fit again") from error
    identity = LoRAIdentity(**{field.name: getattr(record, field.name) for field in fields(LoRAIdentity)})
    return FittedLoRA(folder, identity, record.history, record.steps_taken)


class _Record(BaseModel):
    """What ``diffstyler.json`` holds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    name: str
    picture: str
    model: str
    settings: dict
    history: Annotated[tuple[str, ...], Field(strict=False)] = ()
    steps_taken: int | None = None


def _whole(folder: Path) -> FittedLoRA | None:
    """What a folder of the library holds; None, with a warning, where its record or its weights are damaged."""
    try:
        entry = read_record(folder)
        for file in () if storage.is_remote(folder) else lora_files(folder).values():  # fetched when it is used
            with safe_open(file, "pt"):
                pass
    except (DiffstylerError, SafetensorError) as error:
        log.warning("%s is no whole LoRA, and not used: %s", folder, error)
        return None
    return entry
