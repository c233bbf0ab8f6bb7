"""A folder of fitted LoRAs: each found by the picture it was fitted to, the model and the settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from diffstyler.errors import DiffstylerError

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


@dataclass(frozen=True)
class FittedLoRA:
    """A finished LoRA folder and what its record says.

    ``history`` tells what happened on the way, if anything; ``steps_taken`` are fewer than asked for where the LoRA
    stopped early, and None where the record does not say.
    """

    folder: Path
    identity: LoRAIdentity
    history: tuple[str, ...] = ()
    steps_taken: int | None = None

    @property
    def prompt(self) -> str:
        """The prompt that it was fitted with."""
        return self.identity.settings.get("prompt", "")


class LoRALibrary:
    """The LoRAs in ``lora_dir``, one folder each; a folder is there only when it is complete."""

    def __init__(self, lora_dir: Path) -> None:
        self.lora_dir = lora_dir

    def entries(self) -> list[FittedLoRA]:
        """All finished LoRAs, by folder name."""
        return [read_record(file.parent) for file in sorted(self.lora_dir.glob(f"*/{RECORD_NAME}"))]

    def get(self, identity: LoRAIdentity) -> FittedLoRA | None:
        """The LoRA with exactly this identity (under whatever picture name), or None."""
        for file in sorted(self.lora_dir.glob(f"*-{identity.key[:12]}/{RECORD_NAME}")):
            entry = read_record(file.parent)
            if entry.identity.key == identity.key:
                return entry
        return None

    def find(self, identities: Sequence[LoRAIdentity]) -> dict[str, FittedLoRA]:
        """Those of these LoRAs that are there, by key; the folder is listed once."""
        folders: dict[str, list[Path]] = {}
        for file in self.lora_dir.glob(f"*/{RECORD_NAME}"):
            folders.setdefault(file.parent.name.rpartition("-")[2], []).append(file.parent)
        found = {}
        for identity in identities:
            for folder in sorted(folders.get(identity.key[:12], ())):
                entry = read_record(folder)
                if entry.identity.key == identity.key:
                    found[identity.key] = entry
        return found

    def state_file(self, identity: LoRAIdentity) -> Path:
        """Where the unfinished LoRA keeps its state."""
        return self.lora_dir / ".unfinished" / f"{identity.key}.pt"

    def lock_file(self, identity: LoRAIdentity) -> Path:
        """What the process that fits this LoRA keeps locked; its folder is made."""
        path = self.state_file(identity).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(
        self,
        identity: LoRAIdentity,
        write: Callable[[Path], None],
        history: Sequence[str] = (),
        steps_taken: int | None = None,
    ) -> FittedLoRA:
        """Let ``write`` fill a folder beside the library's, add the record, and move it in as a whole."""
        folder = self.lora_dir / identity.folder_name
        partial = self.lora_dir / ".unfinished" / f"{identity.key}.folder"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        record = {**asdict(identity), **({"history": list(history)} if history else {})}
        record |= {"steps_taken": steps_taken} if steps_taken is not None else {}
        (partial / RECORD_NAME).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        for file in partial.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if folder.is_dir():  # another process was faster; equal identity means equal weights
            shutil.rmtree(partial)
        else:
            partial.replace(folder)
        self.forget_state(identity)
        return FittedLoRA(folder, identity, tuple(history), steps_taken)

    def forget_state(self, identity: LoRAIdentity) -> None:
        """Remove the unfinished LoRA's state, and what a process left that was killed while it wrote one."""
        state = self.state_file(identity)
        for file in (state, *state.parent.glob(f".{state.name}.*.tmp")):
            file.unlink(missing_ok=True)


def read_record(folder: Path) -> FittedLoRA:
    """The record of one LoRA folder.

    Raises:
        DiffstylerError: the record is damaged.
    """
    try:
        fields = dict(json.loads((folder / RECORD_NAME).read_text()))
        history, steps_taken = tuple(fields.pop("history", ())), fields.pop("steps_taken", None)
        return FittedLoRA(folder, LoRAIdentity(**fields), history, steps_taken)
    except (ValueError, TypeError) as error:
        raise DiffstylerError(
            f"{folder / RECORD_NAME} is damaged ({error}); delete the folder and fit again"
        ) from error
