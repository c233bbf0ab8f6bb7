"""LoRA files: any tool's safetensors file in, checked tensors out; diffusers' and kohya's files back."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from diffstyler.adapters.formats import kohya_name, other_method, place_of
from diffstyler.images import atomic_write

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
PEFT_NAME = "adapter_model.safetensors"

#: for kohya's metadata: its name of the base model, and the architecture in the model specification
FAMILIES = {
    "sd1": ("sd_v1", "stable-diffusion-v1"),
    "sd2": ("sd_v2", "stable-diffusion-v2-768-v"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}


class LoRAFileError(ValueError):
    """A file that is not a usable LoRA; the text says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class LoRA:
    """One adapter: ``state`` in peft's key names (``<module>.lora_A.weight``), float32 on the CPU, and its scale.

    ``text_encoders``: the same for each text encoder that it changes, with their scale worked into B. Where the scale
    differs between modules it is worked into B everywhere, and ``scale`` is 1.
    """

    state: dict[str, torch.Tensor]
    scale: float
    rank: int
    path: Path
    text_encoders: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()


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


def read_lora(path: Path, *, allow_partial: bool = False) -> LoRA:
    """A LoRA from a folder (of diffstyler, diffusers or peft) or a ``.safetensors`` file of any dialect.

    Args:
        path: the folder or file.
        allow_partial: keys that no dialect knows are left out, and listed in ``unmatched``, in place of an error.

    Raises:
        LoRAFileError: not there, not safetensors, no UNet LoRA in it, keys of no known dialect, A without B, another
            method than LoRA, ranks that are not the metadata's, or values that are not finite.
    """
    file = lora_file(path)
    tensors, metadata = read_tensors(file)
    for key in tensors:
        if method := other_method(key):
            raise LoRAFileError(f"{file}: holds {method} weights ({key}), which a plain LoRA cannot express")
    modules, unmatched = sort_tensors(tensors)
    if (unmatched and not allow_partial) or "unet" not in {part for part, _ in modules}:
        raise LoRAFileError(
            f"{file}: expected keys like unet.<module>.lora_A.weight or lora_unet_<module>.lora_down.weight; matched "
            f"{len(tensors) - len(unmatched)} of {len(tensors)}, not {unmatched[0] if unmatched else 'any of a UNet'}"
        )
    _check_modules(file, modules)
    config = _peft_config(file, metadata)
    ranks = {place: len(roles["down"]) for place, roles in modules.items()}
    scales = {place: _module_scale(file, place, ranks[place], modules[place], config) for place in modules}
    common = {value for (part, _), value in scales.items() if part == "unet"}
    scale = common.pop() if len(common) == 1 else None
    states: dict[str, dict[str, torch.Tensor]] = {}
    for (part, module), roles in modules.items():
        own = 1.0 if part == "unet" and scale is not None else scales[part, module]
        state = states.setdefault(part, {})
        state[f"{module}.lora_A.weight"] = roles["down"]
        state[f"{module}.lora_B.weight"] = roles["up"] if own == 1.0 else roles["up"] * own
    unet = states.pop("unet")
    rank = max(rank for (part, _), rank in ranks.items() if part == "unet")
    return LoRA(unet, 1.0 if scale is None else scale, rank, file, states, tuple(unmatched))


def lora_file(path: Path) -> Path:
    """The weights file that a path names.

    Raises:
        LoRAFileError: there is none, or it is of a format that can run code when it is opened.
    """
    names = [path / WEIGHTS_NAME, path / PEFT_NAME] if path.is_dir() else [path]
    file = next((name for name in names if name.is_file()), names[0])
    if not file.is_file():
        raise LoRAFileError(f"{file}: no such file; expected a LoRA folder with {WEIGHTS_NAME}, or a .safetensors file")
    if file.suffix != ".safetensors":
        raise LoRAFileError(f"{file}: expected a .safetensors file; other formats can run code when they are opened")
    return file


def read_tensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file in float32, by its own key names, and its metadata."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            return {key: opened.get_tensor(key).float() for key in opened.keys()}, metadata  # noqa: SIM118
    except SafetensorError as error:
        raise LoRAFileError(f"{file}: not a readable safetensors file ({error}); was it cut off?") from error


Modules = dict[tuple[str, str], dict[str, torch.Tensor]]


def sort_tensors(tensors: dict[str, torch.Tensor]) -> tuple[Modules, list[str]]:
    """{(part of the model, module): {"down", "up", "alpha"}}, and the keys that no dialect knows."""
    modules: Modules = {}
    unmatched = []
    for key, tensor in tensors.items():
        place = place_of(key)
        if place is None:
            unmatched.append(key)
        else:
            modules.setdefault((place.part, place.module), {})[place.role] = tensor
    return modules, sorted(unmatched)


def save_kohya(path: Path, lora: LoRA, *, family: str, title: str, trigger: str = "") -> Path:
    """Write a LoRA as kohya's file, for A1111 and ComfyUI, and read it back.

    Args:
        path: the ``.safetensors`` file.
        lora: what to write.
        family: a key of ``FAMILIES``.
        title: of the LoRA.
        trigger: the phrase that calls for it.

    Raises:
        LoRAFileError: the file does not hold what was written.
    """
    tensors = {}
    xl = family == "sdxl"
    parts = {"unet": lora.state, **lora.text_encoders}
    for part, state in parts.items():
        for key, tensor in state.items():
            module, _, role = key.rpartition(".lora_")
            name = kohya_name(part, module, xl=xl)
            tensors[f"{name}.lora_{'down' if role.startswith('A') else 'up'}.weight"] = tensor.contiguous()
            if role.startswith("A"):
                scale = lora.scale if part == "unet" else 1.0
                tensors[f"{name}.alpha"] = torch.tensor(scale * len(tensor))
    base, architecture = FAMILIES[family]
    data = save(tensors)
    header = int.from_bytes(data[:8], "little")
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": f"{lora.scale * lora.rank:g}",
        "ss_base_model_version": base,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/kohya-ss/sd-scripts",
        "modelspec.title": title,
        "modelspec.trigger_phrase": trigger,
        "modelspec.hash_sha256": "0x" + hashlib.sha256(data[8 + header :]).hexdigest(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, save(tensors, metadata))
    _sort_metadata(path)
    reread = read_lora(path)
    if max(_differences(lora, reread)) > 1e-6:
        raise LoRAFileError(f"{path}: what was read back differs from what was written; is the disk full?")
    return path


def _differences(a: LoRA, b: LoRA) -> Iterator[float]:
    """The relative difference of every module's update s B A."""
    for one, other in zip(
        [a.state, *(a.text_encoders[part] for part in sorted(a.text_encoders))],
        [b.state, *(b.text_encoders[part] for part in sorted(b.text_encoders))],
        strict=True,
    ):
        for key in (key for key in one if ".lora_B." in key):
            down = key.replace(".lora_B.", ".lora_A.")
            unet = one is a.state
            updates = [
                (lora.scale if unet else 1.0) * state[key].flatten(1) @ state[down].flatten(1)
                for lora, state in ((a, one), (b, other))
            ]
            yield float((updates[0] - updates[1]).norm() / updates[0].norm().clamp(min=1e-12))


def _check_modules(file: Path, modules: Modules) -> None:
    for (part, module), roles in modules.items():
        absent = next((role for role in ("down", "up") if role not in roles), None)
        if absent:
            raise LoRAFileError(f"{file}: {part} {module} has no {absent} weights (lora_A is down, lora_B is up)")
        if len(roles["down"]) != roles["up"].shape[1]:
            shapes = " and ".join(str(tuple(roles[role].shape)) for role in ("down", "up"))
            raise LoRAFileError(f"{file}: {part} {module}: down and up weights {shapes} do not share a rank")
        if not all(torch.isfinite(tensor).all() for tensor in roles.values()):
            raise LoRAFileError(f"{file}: {part} {module} has NaN or infinite values; fit this LoRA again")


def _peft_config(file: Path, metadata: dict[str, str]) -> dict[str, dict]:
    """The fields of the LoraConfig of each part, from diffusers' metadata or from peft's file beside; may be empty."""
    beside = file.with_name("adapter_config.json")
    text = metadata.get(LORA_ADAPTER_METADATA_KEY)
    try:
        if text is None:
            return {"unet": json.loads(beside.read_text())} if file.name == PEFT_NAME and beside.is_file() else {}
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise LoRAFileError(f"{file}: its LoRA configuration is not JSON ({error})") from error
    parts = {key.split(".", 1)[0] for key in fields if "." in key}
    return {part: {k.split(".", 1)[1]: v for k, v in fields.items() if k.startswith(f"{part}.")} for part in parts}


def _module_scale(
    file: Path, place: tuple[str, str], rank: int, roles: dict[str, torch.Tensor], config: dict[str, dict]
) -> float:
    """alpha / rank of one module: by its own alpha, by the file's LoraConfig, or 1 where the file says nothing."""
    if "alpha" in roles:
        return float(roles["alpha"]) / rank
    part, module = place
    fields = config.get(part)
    if fields is None:
        return 1.0
    if fields.get("use_dora"):
        raise LoRAFileError(f"{file}: its configuration asks for DoRA, which a plain LoRA cannot express")
    stated = _patterned(fields.get("rank_pattern"), module, fields.get("r", rank))
    if stated != rank:
        raise LoRAFileError(f"{file}: {module} has rank {rank}, but its metadata says {stated}; fit this LoRA again")
    alpha = _patterned(fields.get("alpha_pattern"), module, fields.get("lora_alpha", rank))
    return lora_scale(LoraConfig(r=rank, lora_alpha=alpha, use_rslora=bool(fields.get("use_rslora"))))


def _patterned(patterns: dict | None, module: str, default: int) -> int:
    """peft's rule: the value of the first pattern that the module's name ends with."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)
