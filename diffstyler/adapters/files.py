"""LoRA files: any tool's safetensors files in, checked tensors out; diffusers' file back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open

from diffstyler import storage
from diffstyler.adapters.dialects import other_method, place_of, with_text_model, without_text_model
from diffstyler.adapters.lora import LoRA, LowRank
from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write, read_json

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
PEFT_NAME = "adapter_model.safetensors"
#: in the model specification's metadata, "epsilon" or "v"
PREDICTION_KEY = "modelspec.prediction_type"
State = dict[str, torch.Tensor]
#: {(part of the model, module): {"down", "up", "alpha"}}
Modules = dict[tuple[str, str], dict[str, torch.Tensor]]


class LoRAFileError(DiffstylerError):
    """A file that is not a usable LoRA; the text says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class Contents:
    """Everything in a LoRA's files, before it is judged: ``tensors`` by the files' keys, sorted into ``modules``.

    ``path``: the file, or the folder of several ``files``. ``config``: the fields of the LoraConfig of each part, where
    the files have one.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: State
    modules: Modules
    unmatched: tuple[str, ...]
    metadata: dict[str, str]
    config: dict[str, dict]

    def scale(self, part: str, module: str) -> float:
        """alpha / rank of one module: by its own alpha, by the LoraConfig, or 1 where the files say nothing.

        Raises:
            LoRAFileError: the configuration contradicts the weights, or asks for what a plain LoRA cannot do.
        """
        roles, fields = self.modules[part, module], self.config.get(part)
        rank = len(roles["down"])
        if "alpha" in roles:
            return float(roles["alpha"].flatten()[0]) / rank
        if fields is None:
            return 1.0
        if fields.get("use_dora"):
            raise LoRAFileError(f"{self.path}: its configuration asks for DoRA, which a plain LoRA cannot express")
        name = module if part == "unet" else with_text_model(module)
        stated = _patterned(self.path, fields, "rank_pattern", name, fields.get("r", rank))
        if stated != rank:
            told = f"{module} has rank {rank}, but its metadata says {stated}"
            raise LoRAFileError(f"{self.path}: {told}; fit this LoRA again")
        alpha = _patterned(self.path, fields, "alpha_pattern", name, fields.get("lora_alpha", rank))
        return _scale(alpha, rank, bool(fields.get("use_rslora")))


def lora_scale(config: LoraConfig) -> float:
    """alpha / rank, or alpha / √rank for rank-stabilized LoRA (Kalajdzievski 2023)."""
    return _scale(config.lora_alpha, config.r, config.use_rslora)


def save_lora(
    folder: Path,
    parts: Mapping[str, Mapping[str, LowRank]],
    configs: Mapping[str, LoraConfig],
    *,
    prediction_type: str | None = None,
) -> Path:
    """Write a LoRA as diffusers' file with its metadata, and read it back.

    Args:
        folder: where ``pytorch_lora_weights.safetensors`` goes.
        parts: the updates of "unet", and of "text_encoder" and "text_encoder_2" where they have some.
        configs: of each part; they state the scales.
        prediction_type: of the base model, "epsilon" or "v_prediction"; shapes do not tell it.

    Raises:
        LoRAFileError: a weight is not finite (nothing is written), or the file does not hold what was written.
    """
    for part, modules in parts.items():
        for name, module in modules.items():
            if not all(torch.isfinite(tensor).all() for tensor in (module.down, module.up)):
                raise LoRAFileError(f"{folder.name}: {part} {name} has NaN or infinite values; nothing was written")
    layers = {f"{part}_lora_layers": _as_diffusers(part, modules) for part, modules in parts.items()}
    metadata = {f"{part}_lora_adapter_metadata": _plain(config) for part, config in configs.items()}
    pipeline = StableDiffusionXLPipeline if "text_encoder_2" in parts else StableDiffusionPipeline
    pipeline.save_lora_weights(folder, **layers, **metadata)  # type: ignore[arg-type]
    path = folder / WEIGHTS_NAME
    told = {PREDICTION_KEY: prediction_type.partition("_")[0]} if prediction_type else {}
    atomic_write(path, sorted_metadata(path.read_bytes(), told))  # safetensors keeps its file from all others
    read = read_lora(path).parts
    if read.keys() != parts.keys() or not all(_same(modules, parts[part]) for part, modules in read.items()):
        raise LoRAFileError(f"{path}: what was read back differs from what was written; is the disk full?")
    return path


def _as_diffusers(part: str, modules: Mapping[str, LowRank]) -> State:
    """By peft's key names, with diffusers' names of the modules."""
    state: State = {}
    for name, module in modules.items():
        key = name if part == "unet" else with_text_model(name)
        state |= {f"{key}.lora_A.weight": module.down, f"{key}.lora_B.weight": module.up}
    return state


def sorted_metadata(content: bytes, more: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file with more metadata, sorted: safetensors writes them in another order each time, and equal
    LoRAs are to be equal files."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted({**header["__metadata__"], **(more or {})}.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def read_lora(path: Path, *, allow_partial: bool = False) -> LoRA:
    """A LoRA from a folder (of diffstyler, diffusers or peft) or a ``.safetensors`` file of any dialect.

    Args:
        path: the folder or file.
        allow_partial: keys that no dialect knows are left out, and listed in ``unmatched``, in place of an error.

    Raises:
        LoRAFileError: not there, not safetensors, no UNet LoRA in it, keys of no known dialect, A without B, another
            method than LoRA, ranks that are not the metadata's, or values that are not finite.
    """
    found = read_contents(path)
    file, unmatched = found.files[0], found.unmatched
    for key in found.tensors:
        if method := other_method(key):
            raise LoRAFileError(f"{file}: holds {method} weights ({key}), which a plain LoRA cannot express")
    if (unmatched and not allow_partial) or "unet" not in {part for part, _ in found.modules}:
        raise LoRAFileError(
            f"{file}: expected keys like unet.<module>.lora_A.weight or lora_unet_<module>.lora_down.weight; matched "
            f"{len(found.tensors) - len(unmatched)} of {len(found.tensors)}, not "
            f"{unmatched[0] if unmatched else 'any of a UNet'}"
        )
    _check_modules(file, found.modules)
    parts: dict[str, dict[str, LowRank]] = {}
    for (part, module), roles in found.modules.items():
        parts.setdefault(part, {})[module] = LowRank(roles["down"], roles["up"], found.scale(part, module))
    return LoRA(parts, found.path, unmatched)


def read_contents(path: Path) -> Contents:
    """The tensors of a LoRA, sorted by the modules that their keys name.

    Raises:
        LoRAFileError: not there, not readable safetensors, or a LoraConfig that is not JSON.
    """
    files = lora_files(path)
    tensors, metadata, config, unmatched = {}, {}, {}, []
    modules: Modules = {}
    for part, file in files.items():
        own, told = _read_tensors(file)
        for key, tensor in own.items():
            place = place_of(key)
            tensors[f"{part}/{key}" if part else key] = tensor
            if place is None:
                unmatched.append(key)
            elif part in {"", "unet"}:
                modules.setdefault((place.part, place.module), {})[place.role] = tensor
            else:  # peft's keys do not say what model they belong to
                modules.setdefault((part, without_text_model(place.module)), {})[place.role] = tensor
        metadata |= told
        config |= _peft_config(file, part, told)
    at = path if len(files) > 1 else next(iter(files.values()))
    return Contents(at, tuple(files.values()), tensors, modules, tuple(sorted(unmatched)), metadata, config)


def lora_files(path: Path) -> dict[str, Path]:
    """The weights files that a path names, by the part of the model that each is for; "" where the keys say it.

    Raises:
        LoRAFileError: there is none, or it is of a format that can run code when it is opened.
    """
    storage.fetch(path)
    names = [path / WEIGHTS_NAME, path / PEFT_NAME] if path.is_dir() else [path]
    file = next((name for name in names if name.is_file()), None)
    if file is None and (path / "unet" / PEFT_NAME).is_file():  # as peft's training scripts save
        parts = ("unet", "text_encoder", "text_encoder_2")
        return {part: path / part / PEFT_NAME for part in parts if (path / part / PEFT_NAME).is_file()}
    if file is None:
        raise LoRAFileError(
            f"{names[0]}: no such file; expected a LoRA folder with {WEIGHTS_NAME}, or a .safetensors file"
        )
    if file.suffix.lower() != ".safetensors":
        raise LoRAFileError(f"{file}: expected a .safetensors file; other formats can run code when they are opened")
    return {"": file}


def _read_tensors(file: Path) -> tuple[State, dict[str, str]]:
    """All tensors of a safetensors file in float32, by its own key names, and its metadata."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            return {key: opened.get_tensor(key).float() for key in opened.keys()}, metadata  # noqa: SIM118
    except SafetensorError as error:
        raise LoRAFileError(f"{file}: not a readable safetensors file ({error}); was it cut off?") from error


def _same(one: Mapping[str, LowRank], other: Mapping[str, LowRank]) -> bool:
    """A pack holds its scales in float32."""
    return one.keys() == other.keys() and all(
        torch.equal(own.down, other[name].down.cpu())
        and torch.equal(own.up, other[name].up.cpu())
        and math.isclose(own.scale, other[name].scale, rel_tol=1e-6)
        for name, own in one.items()
    )


def _check_modules(file: Path, modules: Modules) -> None:
    for (part, module), roles in modules.items():
        absent = next((role for role in ("down", "up") if role not in roles), None)
        if absent:
            raise LoRAFileError(f"{file}: {part} {module} has no {absent} weights (lora_A is down, lora_B is up)")
        down, up = roles["down"], roles["up"]
        if not are_matrices(down, up) or len(down) != up.shape[1]:
            shapes = " and ".join(str(tuple(tensor.shape)) for tensor in (down, up))
            raise LoRAFileError(f"{file}: {part} {module}: down and up weights {shapes} do not share a rank")
        if "alpha" in roles and roles["alpha"].numel() != 1:
            raise LoRAFileError(f"{file}: {part} {module}: expected one alpha, got {roles['alpha'].numel()}")
        if not all(torch.isfinite(tensor).all() for tensor in roles.values()):
            raise LoRAFileError(f"{file}: {part} {module} has NaN or infinite values; fit this LoRA again")


def are_matrices(*tensors: torch.Tensor) -> bool:
    """Whether they can be a LoRA's: matrices, or convolutions, with something in them."""
    return all(tensor.ndim in (2, 4) and tensor.numel() > 0 for tensor in tensors)


def _plain(config: LoraConfig) -> dict:
    """The fields of a LoraConfig as JSON values."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def _peft_config(file: Path, part: str, metadata: dict[str, str]) -> dict[str, dict]:
    """The fields of the LoraConfig of each part, from diffusers' metadata or from peft's file beside; may be empty."""
    beside = file.with_name("adapter_config.json")
    text = metadata.get(LORA_ADAPTER_METADATA_KEY)
    try:
        if text is None:
            is_peft = file.name == PEFT_NAME and beside.is_file()
            if not is_peft:
                return {}
            return {part or "unet": read_json(beside)}
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoRAFileError(f"{file}: its LoRA configuration is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise LoRAFileError(f"{file}: its LoRA configuration is no JSON object, but {type(fields).__name__}")
    parts = {key.split(".", 1)[0] for key in fields if "." in key}
    if not parts:  # as diffusers writes a UNet alone
        return {"unet": fields}
    return {part: {k.split(".", 1)[1]: v for k, v in fields.items() if k.startswith(f"{part}.")} for part in parts}


def _scale(alpha: float, rank: int, rank_stabilized: bool) -> float:
    return alpha / (math.sqrt(rank) if rank_stabilized else rank)


def _patterned(path: Path, fields: dict, field: str, module: str, default: object) -> float:
    """The value of the first pattern that the module's name ends with, as peft takes it; else the default.

    Raises:
        LoRAFileError: it is no finite number, or a pattern is none, or may take for ever.
    """
    patterns = fields.get(field) or {}
    if not isinstance(patterns, dict) or not all(map(_is_quick, patterns)):
        told = str(patterns)[:80]
        raise LoRAFileError(f"{path}: expected patterns of module names in its {field}, got {told}")
    value = patterns.get(get_pattern_key(list(patterns), module), default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise LoRAFileError(f"{path}: expected numbers in its configuration, got {str(value)[:80]} for {module}")
    return value


def _is_quick(pattern: str) -> bool:
    """Whether it is a regular expression that ends in good time: with two repetitions at most, and none of a group."""
    repeated = re.findall(r"(.?)([*+{?])", re.sub(r"\\.", "x", pattern))
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return len(pattern) <= 500 and len(repeated) <= 2 and all(before not in ")(" for before, _ in repeated)
