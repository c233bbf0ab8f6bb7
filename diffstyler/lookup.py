"""Style and content pictures -> their LoRA files: found in the library, read and checked once, brought into a pack."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig

from diffstyler.adapters import LoRALibrary, LoRAPack, read_lora, read_record
from diffstyler.backbones import Backbone
from diffstyler.images import file_sha256, is_picture, load_image, picture_sha256
from diffstyler.types import Triple

log = logging.getLogger(__name__)

#: LoRAs that stay in the pack for later pictures, where one picture needs no more
KEPT = 16


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA that the run needs: its file, that file's sha256, and the prompt it was fitted with."""

    path: Path
    sha256: str
    prompt: str
    rank: int
    modules: frozenset[str]
    scale: float


class MissingLoRAError(ValueError):
    """Pictures without a LoRA; the text lists them all and the command that makes them."""


class AdapterShelf:
    """The LoRAs of a run. ``find`` first; then ask by style path or by the content picture's sha256.

    Args:
        library: where pictures are looked up.
        backbone: the model that the LoRAs must have been fitted on.
    """

    def __init__(self, library: LoRALibrary, backbone: Backbone) -> None:
        self.library = library
        self.backbone = backbone
        self.pack: LoRAPack | None = None
        self._packed: list[Path | None] = []  # by slot
        self._recent: list[Path] = []  # the latest last
        self._files: dict[Path, AdapterFile] = {}
        self._styles: dict[tuple[Path, str], AdapterFile] = {}
        self._pictures: dict[tuple[str, str, str], AdapterFile] = {}

    def find(self, triples: Sequence[Triple], content_lora: str, manifest: Path | None) -> None:
        """Resolve every style (and content) picture to its LoRA file; read and check each once.

        Raises:
            MissingLoRAError: some pictures have none.
            ValueError: a LoRA file is damaged, or several LoRAs fit one picture.
        """
        missing: dict[str, list[Path]] = {}
        for path, mask in dict.fromkeys((r.style, r.style_mask) for triple in triples for r in triple.regions):
            adapter = self._read(path) if not is_picture(path) else self._look_up("style", path, mask)
            if adapter is None:
                missing.setdefault("style", []).append(path)
            else:
                self._styles[path, mask] = adapter
        if content_lora != "off":
            for path in _readable(dict.fromkeys(triple.content for triple in triples)):
                if self._look_up("content", path) is None and content_lora == "required":
                    missing.setdefault("content", []).append(path)
        if missing:
            raise MissingLoRAError(self._missing_text(missing, manifest))

    def style(self, path: Path, mask: str = "everything") -> AdapterFile:
        """The LoRA of this part of a style picture, or of the path that names the LoRA."""
        return self._styles[path, mask]

    def content(self, sha256: str) -> AdapterFile | None:
        """The LoRA of a content picture, None where it has none."""
        return self._pictures.get(("content", sha256, "everything"))

    def load(self, wanted: set[Path], device: torch.device) -> None:
        """Bring these LoRA files into the pack, in place of those not asked for the longest.

        The pack's rank and modules are those of the whole run.
        """
        if len(wanted) > len(self._packed):
            self._open_pack(max(len(wanted), min(KEPT, len(self._files))), device)
        self._recent = [*(path for path in self._recent if path not in wanted), *sorted(wanted)]
        for path in sorted(wanted - set(self._packed)):
            slot = min(range(len(self._packed)), key=lambda slot: self._last_use(self._packed[slot]))
            assert self.pack is not None
            self.pack.load_slot(slot, read_lora(path).state, scale=self._files[path].scale)
            self._packed[slot] = path

    def slot(self, adapter: AdapterFile | None) -> int | None:
        """The adapter's place in the pack."""
        return None if adapter is None else self._packed.index(adapter.path)

    def close(self) -> None:
        """Take the pack off the model."""
        if self.pack is not None:
            self.pack.detach()
        self.pack, self._packed = None, []

    def _open_pack(self, slots: int, device: torch.device) -> None:
        self.close()
        rank = max(adapter.rank for adapter in self._files.values())
        modules = sorted({name for adapter in self._files.values() for name in adapter.modules})
        self.pack = LoRAPack(self.backbone.unet, LoraConfig(r=rank, target_modules=modules), slots, device=device)
        self._packed = [None] * slots

    def _last_use(self, path: Path | None) -> int:
        return -1 if path is None else self._recent.index(path)

    def _look_up(self, role: str, picture: Path, mask: str = "everything") -> AdapterFile | None:
        sha256 = picture_sha256(load_image(picture))
        if (role, sha256, mask) in self._pictures:
            return self._pictures[(role, sha256, mask)]
        model = self.backbone.fingerprint()
        found = [
            entry
            for entry in self.library.entries()
            if (entry.identity.role, entry.identity.picture, entry.identity.model) == (role, sha256, model)
            and entry.identity.settings.get("mask", "everything") == mask
        ]
        if len(found) > 1:
            names = ", ".join(str(entry.folder) for entry in found)
            raise ValueError(
                f"{picture} has {len(found)} {role} LoRAs of different settings: {names}; name one of these folders in "
                "the manifest's style column, or use another lora_dir"
            )
        if not found:
            return None
        self._pictures[(role, sha256, mask)] = adapter = self._read(found[0].folder)
        return adapter

    def _read(self, path: Path) -> AdapterFile:
        lora = read_lora(path)
        if lora.text_encoders:
            log.warning("%s: only its UNet part acts; its %s part does not", lora.path, ", ".join(lora.text_encoders))
        is_ours = path.is_dir() and (path / "diffstyler.json").is_file()
        prompt = read_record(path).prompt if is_ours else ""
        modules = frozenset(key.rsplit(".lora_", 1)[0] for key in lora.state)
        adapter = AdapterFile(lora.path, file_sha256(lora.path), prompt, lora.rank, modules, lora.scale)
        self._files[lora.path] = adapter
        return adapter

    def _missing_text(self, missing: dict[str, list[Path]], manifest: Path | None) -> str:
        lines = []
        for role, paths in missing.items():
            lines += [
                f"{len(paths)} {role} pictures have no LoRA in {self.library.lora_dir}:",
                *(f"  {p}" for p in paths),
            ]
            arguments = ["--data.manifest", str(manifest)] if manifest else []
            command = ["diffstyler", "fit", "--config", f"configs/{role}.yaml", *arguments]
            command += ["--lora_dir", str(self.library.lora_dir)]
            lines += ["make them with", "  " + shlex.join(command)]
        return "\n".join(lines)


def _readable(paths: Iterable[Path]) -> Iterator[Path]:
    """Those that open as pictures; the others fail with their rows."""
    for path in paths:
        try:
            load_image(path)
        except (ValueError, OSError):
            continue
        yield path
