"""What a LoRA file is: family, ranks, alphas, targets, prompt, norms, and what in it would not load."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from diffstyler.adapters.dialects import other_method
from diffstyler.adapters.files import PREDICTION_KEY, Contents, LoRAFileError, are_matrices, read_contents, read_lora
from diffstyler.adapters.library import read_record
from diffstyler.errors import DiffstylerError

#: width of the text embeddings that cross-attention reads -> family
FAMILY_BY_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl", 96: "embedded"}
#: what metadata call the base model, and a beginning of it -> family, where the weights alone do not tell
BASE_MODEL_KEYS = ("modelspec.architecture", "ss_base_model_version")
FAMILY_BY_NAME = {
    "stable-diffusion-v1": "sd1",
    "stable-diffusion-v2": "sd2",
    "stable-diffusion-xl": "sdxl",
    "sd_v1": "sd1",
    "sd_v2": "sd2",
    "sdxl": "sdxl",
}
TAGS_SHOWN = 10


def inspect_lora(path: Path) -> dict[str, object]:
    """Facts about a LoRA as plain JSON values; also of files that would not load, as long as they are safetensors.

    Raises:
        LoRAFileError: not there, or not a readable safetensors file.
    """
    found = read_contents(path)
    pairs = [
        place
        for place, roles in found.modules.items()
        if {"down", "up"} <= roles.keys() and are_matrices(roles["down"], roles["up"])
    ]
    norms = [norm for part, module in pairs if math.isfinite(norm := _norm(found, part, module))]
    base_model = next((found.metadata[key] for key in BASE_MODEL_KEYS if key in found.metadata), None)
    named = next((family for name, family in FAMILY_BY_NAME.items() if str(base_model).startswith(name)), None)
    try:
        record = read_record(found.files[0].parent).identity.settings
    except DiffstylerError:  # none of diffstyler's own, or a damaged one
        record = {}
    return {
        "file": str(found.path),
        "megabytes": round(sum(file.stat().st_size for file in found.files) / 1e6, 2),
        "family": family_of(found) or named,
        "base_model": base_model,
        "prediction_type": found.metadata.get(PREDICTION_KEY),
        "parts": dict(sorted(Counter(part for part, _ in pairs).items())),
        "ranks": sorted({len(found.modules[place]["down"]) for place in pairs}),
        "alphas": sorted({round(_scale(found, *place) * len(found.modules[place]["down"]), 6) for place in pairs}),
        "alphas_stated": bool(found.config) or any("alpha" in roles for roles in found.modules.values()),
        "targets": sorted({_target(module) for _, module in pairs}),
        "prompt": record.get("prompt") or found.metadata.get("modelspec.trigger_phrase") or None,
        "tags": _tags(found.metadata),
        "update_norm": {"smallest": min(norms), "largest": max(norms)} if norms else None,
        "not_finite": sorted(key for key, tensor in found.tensors.items() if not torch.isfinite(tensor).all()),
        "other_methods": sorted({name for key in found.tensors if (name := other_method(key))}),
        "matched_keys": len(found.tensors) - len(found.unmatched),
        "unmatched_keys": list(found.unmatched),
        "problem": _problem(path),
        "metadata": sorted(found.metadata),
    }


def family_of(found: Contents) -> str | None:
    """By the width of the text that the UNet's cross-attention reads, by what only SDXL has, or by the text encoder.

    None where no such module has LoRA.
    """
    for (part, module), roles in found.modules.items():
        if part == "unet" and module.endswith(("attn2.to_k", "attn2.to_v")) and _width(roles):
            return FAMILY_BY_WIDTH.get(_width(roles))
    places = list(found.modules)
    if any(p == "text_encoder_2" or "transformer_blocks.1." in m or m.startswith("add_embedding") for p, m in places):
        return "sdxl"
    for (part, module), roles in found.modules.items():
        if part == "text_encoder" and module.endswith((".q_proj", ".k_proj", ".v_proj", ".fc1")) and _width(roles):
            return FAMILY_BY_WIDTH.get(_width(roles))
    return None


def _width(roles: Mapping[str, torch.Tensor]) -> int:
    """Of what a module reads; 0 where its down weights do not tell."""
    return roles["down"].shape[1] if "down" in roles and are_matrices(roles["down"]) else 0


def _norm(found: Contents, part: str, module: str) -> float:
    """‖s B A‖ of one module, by (BᵀB) and (AAᵀ), which are small."""
    roles = found.modules[part, module]
    down, up = roles["down"].flatten(1).double(), roles["up"].flatten(1).double()
    if len(down) != up.shape[1]:
        return math.nan
    squared = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)
    return _scale(found, part, module) * float(squared.sqrt())


def _scale(found: Contents, part: str, module: str) -> float:
    """As a file that would not load states it; 1 where it contradicts itself, or states no number."""
    try:
        scale = found.scale(part, module)
    except (LoRAFileError, IndexError):
        return 1.0
    return scale if math.isfinite(scale) else 1.0


def _problem(path: Path) -> str | None:
    """Why it would not load."""
    try:
        read_lora(path)
    except LoRAFileError as error:
        return str(error)
    return None


def _target(module: str) -> str:
    """The end of a module's path without the numbers of blocks and layers."""
    return ".".join([word for word in module.split(".") if not word.isdigit()][-2:])


def _tags(metadata: dict[str, str]) -> list[str]:
    """The most frequent tags of the pictures that kohya's trainer saw, most frequent first."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts = sum((Counter(tags) for tags in folders.values()), Counter())
    except (ValueError, AttributeError, TypeError):
        return []
    return [tag for tag, _ in counts.most_common(TAGS_SHOWN)]
