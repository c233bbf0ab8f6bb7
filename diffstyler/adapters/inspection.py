"""What a LoRA file is: family, ranks, alphas, targets, prompt, norms, and what in it would not load."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from diffstyler.adapters.files import lora_file, read_tensors, sort_tensors
from diffstyler.adapters.formats import other_method
from diffstyler.adapters.library import RECORD_NAME

#: width of the text embeddings that cross-attention reads -> family
FAMILY_BY_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl", 96: "embedded"}


def inspect_lora(path: Path) -> dict[str, object]:
    """Facts about a LoRA as plain JSON values; also of files that would not load, as long as they are safetensors.

    Raises:
        LoRAFileError: not there, or not a readable safetensors file.
    """
    file = lora_file(path)
    tensors, metadata = read_tensors(file)
    modules, unmatched = sort_tensors(tensors)
    pairs = {place: roles for place, roles in modules.items() if {"down", "up"} <= roles.keys()}
    norms = [float((r["up"].flatten(1).float() @ r["down"].flatten(1).float()).norm()) for r in pairs.values()]
    targets = sorted({".".join(_words(module)[-2:]) for _, module in pairs})
    alphas = sorted({float(roles["alpha"]) for roles in modules.values() if "alpha" in roles})
    return {
        "file": str(file),
        "megabytes": round(file.stat().st_size / 1e6, 2),
        "family": family_of(pairs),
        "parts": {part: sum(p == part for p, _ in pairs) for part in sorted({part for part, _ in pairs})},
        "ranks": sorted({len(roles["down"]) for roles in pairs.values()}),
        "alphas": alphas or _alpha_of_metadata(metadata),
        "targets": targets,
        "prompt": _prompt(file, metadata),
        "update_norm": {"smallest": min(norms), "largest": max(norms)} if norms else None,
        "not_finite": sorted(key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()),
        "other_methods": sorted({name for key in tensors if (name := other_method(key))}),
        "unmatched_keys": unmatched,
        "metadata": sorted(metadata),
    }


def family_of(modules: dict[tuple[str, str], dict[str, torch.Tensor]]) -> str | None:
    """By the width that the cross-attention's keys or values read; None where no such module has LoRA."""
    for (part, module), roles in modules.items():
        if part == "unet" and module.endswith(("attn2.to_k", "attn2.to_v")):
            return FAMILY_BY_WIDTH.get(roles["down"].shape[1])
    return None


def _words(module: str) -> list[str]:
    """A module's path without the numbers of blocks and layers."""
    return [word for word in module.split(".") if not word.isdigit()]


def _alpha_of_metadata(metadata: dict[str, str]) -> list[float]:
    fields = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    return [float(fields["unet.lora_alpha"])] if "unet.lora_alpha" in fields else []


def _prompt(file: Path, metadata: dict[str, str]) -> str | None:
    record = file.with_name(RECORD_NAME)
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))["settings"].get("prompt")
    return metadata.get("modelspec.trigger_phrase") or metadata.get("ss_tag_frequency")
