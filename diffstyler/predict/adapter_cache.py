"""The LoRAs of a run -> packs on the loaded model, the least recently used out; and prompts encoded under them."""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn

from diffstyler.adapters import LoRA, LoRAPack, Rows, largest_rank, match_modules, read_lora
from diffstyler.backbones import NETWORK, Backbone
from diffstyler.errors import DiffstylerError
from diffstyler.predict.adapter_resolver import AdapterFile, ResolvedAdapters
from diffstyler.types import PromptEmbeds

log = logging.getLogger(__name__)


#: LoRAs that stay in the packs for later pictures, where one picture needs no more
KEPT = 16


#: prompts whose conditioning stays on the device
PROMPTS_KEPT = 32


#: so many of what does not match a model are named
NAMES_SHOWN = 3


class ForeignLoRAError(DiffstylerError):
    """A LoRA that does not match the model, as a whole or in part."""


class AdapterCache:
    """Packs of LoRAs, one on each part of the model that any of them changes.

    Args:
        adapters: all that the run needs; packs are as large as their ranks and modules ask for.
        backbone: the loaded model.
        allow_partial: what of a LoRA does not match the model is left out, with a warning, in place of an error.

    Raises:
        ForeignLoRAError: a LoRA has modules that the model has not, or not in these sizes, and that is not allowed; or
            none of its UNet modules is the model's.
    """

    def __init__(self, adapters: ResolvedAdapters, backbone: Backbone, *, allow_partial: bool = False) -> None:
        self.backbone = backbone
        self.allow_partial = allow_partial
        self._outlines = adapters.outlines
        #: by file and part, {the LoRA's module: the model's}
        self._names: dict[Path, dict[str, dict[str, str]]] = {}
        for path, outline in adapters.outlines.items():
            self._names[path], left_out = match_lora(outline, backbone.parts, allow_partial=allow_partial)
            if left_out:
                log.warning("%s; the rest acts", left_out)
        self._packs: dict[str, LoRAPack] = {}
        self._width = 0
        self._slots: OrderedDict[Path, int] = OrderedDict()  # the least recently used first
        self._embeds = functools.lru_cache(PROMPTS_KEPT)(self._encode)

    def load(self, files: Iterable[AdapterFile | None], device: torch.device) -> None:
        """Bring these LoRAs into the packs, in place of those not asked for the longest."""
        wanted = {file.path for file in files if file is not None}
        if len(wanted) > self._width:
            self._open(max(len(wanted), min(KEPT, len(self._outlines))), device)
        for path in sorted(wanted & self._slots.keys()):
            self._slots.move_to_end(path)
        for path in sorted(wanted - self._slots.keys()):
            lora = read_lora(path, allow_partial=self.allow_partial)
            is_full = len(self._slots) == self._width
            slot = self._slots.popitem(last=False)[1] if is_full else len(self._slots)
            for part, names in self._names[path].items():
                self._packs[part].load_slot(slot, {new: lora.parts[part][old] for old, new in names.items()})
            self._slots[path] = slot

    @property
    def pack(self) -> LoRAPack | None:
        """The adapters on the network."""
        return self._packs.get(NETWORK)

    def slot(self, file: AdapterFile | None) -> int | None:
        """The place of a loaded adapter in the packs; None for the base model."""
        return None if file is None else self._slots[file.path]

    def embed(self, prompt: str, file: AdapterFile | None = None, strength: float = 1.0) -> PromptEmbeds:
        """One prompt's conditioning under a loaded adapter; the base's, where the adapter leaves text as it is."""
        acts = file is not None and strength != 0 and self._names[file.path].keys() != {NETWORK}
        return self._embeds(prompt, file, strength) if acts else self._embeds(prompt, None, 1.0)

    def _encode(self, prompt: str, file: AdapterFile | None, strength: float) -> PromptEmbeds:
        with self._encoding(file, strength):
            return self.backbone.encode_prompt([prompt])

    @contextmanager
    def _encoding(self, file: AdapterFile | None, strength: float) -> Iterator[None]:
        """One prompt at a time, encoded inside, is encoded under this adapter."""
        with ExitStack() as entered:
            for part in self._names[file.path].keys() - {NETWORK} if file is not None else ():
                pack = self._packs[part]
                slots = torch.tensor([self.slot(file)], device=pack.flat.device)
                entered.enter_context(pack.rows(Rows(slots, torch.tensor([strength], device=pack.flat.device))))
            yield

    def close(self) -> None:
        """Take the packs off the model."""
        for pack in self._packs.values():
            pack.detach()
        self._packs, self._width = {}, 0
        self._slots.clear()

    def _open(self, width: int, device: torch.device) -> None:
        self.close()
        for part in sorted(set().union(*self._names.values())):
            those = {path: names[part] for path, names in self._names.items() if part in names}
            modules = sorted({name for names in those.values() for name in names.values()})
            rank = max(largest_rank(self._outlines[path].parts[part]) for path in those)
            config = LoraConfig(r=rank, target_modules=modules)
            model = self.backbone.parts[part]
            dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
            self._packs[part] = LoRAPack(model, config, width, device=device, dtype=dtype)
        self._width = width


def match_lora(lora: LoRA, models: Mapping[str, nn.Module], *, allow_partial: bool = False) -> tuple[dict, str]:
    """By part of the model, {the LoRA's module: the model's}; and what does not match, "" where all does.

    Raises:
        ForeignLoRAError: as of :class:`AdapterCache`.
    """
    names = {part: match_modules(models[part], own) if part in models else {} for part, own in lora.parts.items()}
    foreign = [f"{part} {name}" for part, own in lora.parts.items() for name in own if name not in names[part]]
    text = ""
    if foreign or lora.unmatched:
        count = sum(map(len, names.values()))
        text = (
            f"{lora.path}: {count} of its {count + len(foreign)} modules match this model"
            + (f", and {len(lora.unmatched)} keys are of no known dialect" if lora.unmatched else "")
            + f"; not {_some([*foreign, *lora.unmatched])}"
        )
        if not names[NETWORK]:
            raise ForeignLoRAError(f"{text}: it was made for another model")
        if not allow_partial:
            raise ForeignLoRAError(
                f"{text}: it was made for another model; model.on_partial_lora warn uses what matches"
            )
    return {part: own for part, own in names.items() if own}, text


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{shown} and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else shown
