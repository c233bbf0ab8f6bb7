"""Style and content pictures -> their LoRA files: found in the library, read and checked once, brought into a pack."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn

from diffstyler.adapters import (
    LoRA,
    LoRALibrary,
    LoRAPack,
    Rows,
    largest_rank,
    match_modules,
    read_lora,
    read_record,
)
from diffstyler.backbones import Backbone
from diffstyler.images import is_picture, load_image, picture_sha256
from diffstyler.predict.adapter_resolver import AdapterFile, MissingLoRAError, _readable, _sha256
from diffstyler.types import Triple

log = logging.getLogger(__name__)


#: LoRAs that stay in the pack for later pictures, where one picture needs no more
KEPT = 16


#: so many of what does not match a model are named
NAMES_SHOWN = 3


@dataclass(frozen=True)
class Matched:
    """What of a LoRA acts on the model: ``modules``, by part, {the LoRA's name: the model's}, and ``ranks`` by part."""

    modules: dict[str, dict[str, str]]
    ranks: dict[str, int]


class ForeignLoRAError(ValueError):
    """A LoRA that does not match the model, as a whole or in part."""


class AdapterShelf:
    """The LoRAs of a run. ``find`` first, ``match`` when the model is there; then ask by style path or by the content
    picture's sha256.

    Args:
        library: where pictures are looked up.
        backbone: the model that the LoRAs must have been fitted on.
        allow_partial: what of a LoRA does not match the model is left out, with a warning, in place of an error.
    """

    def __init__(self, library: LoRALibrary, backbone: Backbone, *, allow_partial: bool = False) -> None:
        self.library = library
        self.backbone = backbone
        self.allow_partial = allow_partial
        self._packs: dict[str, LoRAPack] = {}
        self._packed: list[Path | None] = []  # by slot
        self._recent: list[Path] = []  # the latest last
        self._outlines: dict[Path, LoRA] = {}
        self._matched: dict[Path, Matched] = {}
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

    def match(self) -> None:
        """Compare every LoRA with the loaded model.

        Raises:
            ForeignLoRAError: a LoRA has modules that the model has not, or not in these sizes, and that is not
                allowed; or none of its UNet modules is the model's.
        """
        for path, outline in self._outlines.items():
            if path not in self._matched:
                self._matched[path] = self._match(outline)

    def load(self, wanted: set[Path], device: torch.device) -> None:
        """Bring these LoRA files into the packs, in place of those not asked for the longest.

        The packs' ranks and modules are those of the whole run.
        """
        if len(wanted) > len(self._packed):
            self._open_packs(max(len(wanted), min(KEPT, len(self._outlines))), device)
        self._recent = [*(path for path in self._recent if path not in wanted), *sorted(wanted)]
        for path in sorted(wanted - set(self._packed)):
            slot = min(range(len(self._packed)), key=lambda slot: self._last_use(self._packed[slot]))
            lora = read_lora(path, allow_partial=self.allow_partial)
            for part, names in self._matched[path].modules.items():
                self._packs[part].load_slot(slot, {new: lora.parts[part][old] for old, new in names.items()})
            self._packed[slot] = path

    @property
    def pack(self) -> LoRAPack | None:
        """The adapters on the UNet."""
        return self._packs.get("unet")

    @property
    def count(self) -> int:
        """Of the LoRA files that the run needs."""
        return len(self._outlines)

    @property
    def config(self) -> LoraConfig:
        """Of a UNet pack that can hold any LoRA of the run, known before the model is there."""
        unets = [outline.parts["unet"] for outline in self._outlines.values()]
        return LoraConfig(r=max(map(largest_rank, unets)), target_modules=sorted(set().union(*unets)))

    def slot(self, adapter: AdapterFile | None) -> int | None:
        """The adapter's place in the pack."""
        return None if adapter is None else self._packed.index(adapter.path)

    def changes_text(self, adapter: AdapterFile | None) -> bool:
        """Whether prompts mean something else under this adapter."""
        return adapter is not None and bool(self._text_parts(adapter))

    @contextmanager
    def encoding(self, adapter: AdapterFile | None, strength: float) -> Iterator[None]:
        """One prompt at a time, encoded inside, is encoded under this adapter."""
        with ExitStack() as entered:
            if adapter is not None:
                for part in self._text_parts(adapter):
                    pack = self._packs[part]
                    slots = torch.tensor([self._packed.index(adapter.path)], device=pack.flat.device)
                    entered.enter_context(pack.rows(Rows(slots, torch.tensor([strength], device=pack.flat.device))))
            yield

    def close(self) -> None:
        """Take the packs off the model."""
        for pack in self._packs.values():
            pack.detach()
        self._packs, self._packed = {}, []

    def _text_parts(self, adapter: AdapterFile) -> list[str]:
        return [part for part in self._matched[adapter.path].modules if part != "unet"]

    def _open_packs(self, slots: int, device: torch.device) -> None:
        self.close()
        parts = sorted({part for matched in self._matched.values() for part in matched.modules})
        self._packs = {part: self._empty_pack(part, slots, device) for part in parts}
        self._packed = [None] * slots

    def _empty_pack(self, part: str, slots: int, device: torch.device) -> LoRAPack:
        those = [matched for matched in self._matched.values() if part in matched.modules]
        modules = sorted({name for matched in those for name in matched.modules[part].values()})
        config = LoraConfig(r=max(matched.ranks[part] for matched in those), target_modules=modules)
        return LoRAPack(self._models[part], config, slots, device=device)

    def _last_use(self, path: Path | None) -> int:
        return -1 if path is None else self._recent.index(path)

    @property
    def _models(self) -> dict[str, nn.Module]:
        return self.backbone.parts

    def _match(self, lora: LoRA) -> Matched:
        models = self._models
        modules = {part: match_modules(models[part], own) for part, own in lora.parts.items() if part in models}
        foreign = [
            f"{part} {name}" for part, own in lora.parts.items() for name in own if name not in modules.get(part, {})
        ]
        count = sum(map(len, modules.values()))
        if foreign or lora.unmatched:
            text = (
                f"{lora.path}: {count} of its {count + len(foreign)} modules match this model"
                + (f", and {len(lora.unmatched)} keys are of no known dialect" if lora.unmatched else "")
                + f"; not {_some([*foreign, *lora.unmatched])}"
            )
            if not modules["unet"]:
                raise ForeignLoRAError(f"{text}: it was made for another model")
            if not self.allow_partial:
                raise ForeignLoRAError(
                    f"{text}: it was made for another model; model.on_partial_lora warn uses what matches"
                )
            log.warning("%s; the rest acts", text)
        ranks = {part: largest_rank(own) for part, own in lora.parts.items()}
        return Matched({part: names for part, names in modules.items() if names}, ranks)

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
        lora = read_lora(path, allow_partial=self.allow_partial)
        is_ours = path.is_dir() and (path / "diffstyler.json").is_file()
        prompt = read_record(path).prompt if is_ours else ""
        adapter = AdapterFile(lora.path, _sha256(path), prompt)
        self._outlines[lora.path] = _outline(lora)
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


def _outline(lora: LoRA) -> LoRA:
    """The LoRA's names and sizes without its weights."""
    parts = {part: {name: module.outline for name, module in own.items()} for part, own in lora.parts.items()}
    return replace(lora, parts=parts)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{shown} and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else shown
