"""LoRA files: a diffusers / peft safetensors file in, checked tensors out, and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors import SafetensorError, safe_open

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"


class LoRAFileError(ValueError):
    """A file that is not a usable LoRA; the text says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class LoRA:
    """One adapter: ``state`` in peft's key names (``<module>.lora_A.weight``), float32 on the CPU, and its scale."""

    state: dict[str, torch.Tensor]
    scale: float
    rank: int
    path: Path


def lora_scale(config: LoraConfig) -> float:
    """alpha / rank, or alpha / √rank for rank-stabilized LoRA (Kalajdzievski 2023)."""
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)


def save_lora(folder: Path, state: dict[str, torch.Tensor], config: LoraConfig) -> Path:
    """Write peft-named weights as diffusers' LoRA file with its metadata, and read them back.

    Raises:
        LoRAFileError: a weight is not finite (nothing is written), or the file does not hold what was written.
    """
    broken = [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise LoRAFileError(f"{folder.name}: {broken[0]} has NaN or infinite values; nothing was written")
    metadata = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers={**state}, unet_lora_adapter_metadata=metadata)
    path = folder / WEIGHTS_NAME
    _sort_metadata(path)
    reread = read_lora(path)
    same = reread.state.keys() == state.keys() and all(torch.equal(reread.state[k], state[k]) for k in state)
    if not same or reread.scale != lora_scale(config):
        raise LoRAFileError(f"{path}: what was read back differs from what was written; is the disk full?")
    return path


def _sort_metadata(path: Path) -> None:
    """safetensors writes its metadata in another order each time; sorted, equal LoRAs are equal files."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def read_lora(path: Path) -> LoRA:
    """A LoRA from a folder that holds ``pytorch_lora_weights.safetensors``, or from a ``.safetensors`` file.

    Raises:
        LoRAFileError: not there, not safetensors, no UNet LoRA in it, A without B, a rank that is not the metadata's,
            or values that are not finite.
    """
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if not file.is_file():
        raise LoRAFileError(f"{file}: no such file; expected a LoRA folder with {WEIGHTS_NAME}, or a .safetensors file")
    if file.suffix != ".safetensors":
        raise LoRAFileError(f"{file}: expected a .safetensors file; other formats can run code when they are opened")
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key).float() for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise LoRAFileError(f"{file}: not a readable safetensors file ({error}); was it cut off?") from error
    return _checked(file, tensors, metadata)


def _checked(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> LoRA:
    state = {key.removeprefix("unet."): tensor for key, tensor in tensors.items() if key.startswith("unet.")}
    foreign = sorted(set(tensors) - {f"unet.{key}" for key in state})
    if foreign or not state:
        raise LoRAFileError(
            f"{file}: expected keys like unet.<module>.lora_A.weight, got {foreign[0] if foreign else 'none at all'}"
        )
    for key, tensor in state.items():
        partner = key.replace(".lora_A.", ".lora_B.") if ".lora_A." in key else key.replace(".lora_B.", ".lora_A.")
        if partner == key or partner not in state:
            raise LoRAFileError(f"{file}: {key} has no partner among the file's lora_A and lora_B weights")
        if not torch.isfinite(tensor).all():
            raise LoRAFileError(f"{file}: {key} has NaN or infinite values; fit this LoRA again")
    rank = max(len(tensor) for key, tensor in state.items() if ".lora_A." in key)
    return LoRA(state, _scale(file, metadata, rank), rank, file)


def _scale(file: Path, metadata: dict[str, str], rank: int) -> float:
    """From the file's LoraConfig; without one a loader takes alpha = rank."""
    if LORA_ADAPTER_METADATA_KEY not in metadata:
        return 1.0
    try:
        fields = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
    except json.JSONDecodeError as error:
        raise LoRAFileError(f"{file}: its {LORA_ADAPTER_METADATA_KEY} is not JSON ({error})") from error
    if fields.get("unet.rank_pattern") or fields.get("unet.alpha_pattern"):
        raise LoRAFileError(f"{file}: ranks or alphas that differ between modules are not supported")
    alpha, r = fields.get("unet.lora_alpha", rank), fields.get("unet.r", rank)
    if r != rank:
        raise LoRAFileError(f"{file}: its weights have rank {rank}, but its metadata says {r}; fit this LoRA again")
    return lora_scale(LoraConfig(r=r, lora_alpha=alpha, use_rslora=fields.get("unet.use_rslora", False)))
