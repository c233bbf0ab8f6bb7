"""LoRAs -> kohya's files, for A1111, ComfyUI and whatever else reads Civitai's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from diffstyler.adapters.dialects import kohya_name
from diffstyler.adapters.files import PREDICTION_KEY, LoRAFileError, State, read_lora, sorted_metadata
from diffstyler.adapters.inspection import inspect_lora
from diffstyler.adapters.lora import LoRA, LowRank, largest_rank
from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write


@dataclass(frozen=True)
class Family:
    """How kohya's trainer and the model specification name a base model, and what it was trained on."""

    version: str
    architecture: str
    resolution: int
    prediction_type: str = "epsilon"
    implementation: str = "diffusers"


#: shapes cannot tell the two kinds of Stable Diffusion 2 apart
FAMILIES = {
    "sd1": Family("sd_v1", "stable-diffusion-v1", 512),
    "sd2-512": Family("sd_v2", "stable-diffusion-v2-512", 512),
    "sd2-768-v": Family("sd_v2_v", "stable-diffusion-v2-768-v", 768, "v"),
    "sdxl": Family(
        "sdxl_base_v1-0",
        "stable-diffusion-xl-v1-base",
        1024,
        implementation="https://github.com/Stability-AI/generative-models",
    ),
}


def kohya_family(facts: dict[str, object]) -> str:
    """The key of ``FAMILIES`` that the facts of an inspection name.

    Raises:
        DiffstylerError: they do not tell, or tell of a model that other tools do not know.
    """
    family, base_model, prediction = str(facts["family"]), str(facts["base_model"] or ""), facts["prediction_type"]
    if family == "sd2" and (base_model or prediction):
        is_v = prediction == "v" or base_model.split("/")[0].endswith(("-v", "_v"))
        family = "sd2-768-v" if is_v else "sd2-512"
    if family in FAMILIES:
        return family
    told = "is Stable Diffusion 2, and nothing says whether 512 or 768-v" if family == "sd2" else f"is {family}"
    raise DiffstylerError(
        f"{facts['file']}: its family {told}; name one that others know by --family: {', '.join(FAMILIES)}"
    )


def export_lora(lora: Path, path: Path, *, family: str | None = None, title: str = "") -> Path:
    """Write a LoRA as kohya's file, by what its own files say of it.

    Args:
        lora: its file or folder.
        path: the ``.safetensors`` file to write.
        family: a key of ``FAMILIES``; None = as its weights and metadata say.
        title: of the LoRA; by default the name of ``path``.

    Raises:
        LoRAFileError: it is no readable LoRA.
        DiffstylerError: its family is not told, or one that other tools do not know.
    """
    weights, facts = read_lora(lora), inspect_lora(lora)
    family = family or kohya_family(facts)
    return save_kohya(path, weights, family=family, title=title or path.stem, trigger=str(facts["prompt"] or ""))


def save_kohya(path: Path, lora: LoRA, *, family: str, title: str, trigger: str = "") -> Path:
    """Write a LoRA as kohya's file, and read it back.

    One alpha serves the whole file: where scale or rank differ between modules the rest goes into the up weights,
    because diffusers loses alphas that differ.

    Args:
        path: the ``.safetensors`` file.
        lora: what to write.
        family: a key of ``FAMILIES``.
        title: of the LoRA.
        trigger: the phrase that calls for it.

    Raises:
        LoRAFileError: the file does not hold what was written.
    """
    rank, scales = largest_rank(lora.parts["unet"]), {module.scale for module in lora.parts["unet"].values()}
    alpha = (scales.pop() if len(scales) == 1 else 1.0) * rank or float(rank)
    tensors: State = {}
    for part, modules in lora.parts.items():
        for name, module in modules.items():
            rest = module.scale * module.rank / alpha
            _add(tensors, kohya_name(part, name, xl=family == "sdxl"), module.down, module.up * rest, alpha)
        if part != "unet":
            _add_output_projection(tensors, part, modules, alpha, xl=family == "sdxl")
    data = save(tensors)
    header = int.from_bytes(data[:8], "little")
    metadata = {
        **_metadata(FAMILIES[family], rank, alpha),
        "modelspec.title": title,
        "modelspec.trigger_phrase": trigger,
        "modelspec.hash_sha256": "0x" + hashlib.sha256(data[8 + header :]).hexdigest(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, sorted_metadata(save(tensors, metadata)))
    if max(_differences(lora, read_lora(path))) > 1e-6:
        raise LoRAFileError(f"{path}: what was read back differs from what was written; is the disk full?")
    return path


def _add(tensors: State, name: str, down: torch.Tensor, up: torch.Tensor, alpha: float) -> None:
    tensors[f"{name}.lora_down.weight"] = down.contiguous()
    tensors[f"{name}.lora_up.weight"] = up.contiguous()
    tensors[f"{name}.alpha"] = torch.tensor(alpha)


def _add_output_projection(
    tensors: State, part: str, modules: Mapping[str, LowRank], alpha: float, *, xl: bool
) -> None:
    """diffusers knows a text encoder's dialect by its output projections, and loses the others without: a zero one."""
    attention = [name for name in modules if ".self_attn." in name and name.endswith("_proj")]
    if not attention or any(name.endswith(".out_proj") for name in attention):
        return
    width = len(modules[attention[0]].up)
    name = f"{attention[0].rpartition('.')[0]}.out_proj"
    _add(tensors, kohya_name(part, name, xl=xl), torch.zeros(1, width), torch.zeros(width, 1), alpha)


def _metadata(family: Family, rank: int, alpha: float) -> dict[str, str]:
    is_v2 = family.version.startswith("sd_v2")
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": family.version,
        "ss_v2": str(is_v2),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.architecture}/lora",
        "modelspec.implementation": family.implementation,
        "modelspec.resolution": f"{family.resolution}x{family.resolution}",
        PREDICTION_KEY: family.prediction_type,
    }


def _differences(lora: LoRA, reread: LoRA) -> Iterator[float]:
    """The relative difference of every module's update s B A."""
    for part, modules in lora.parts.items():
        for name, module in modules.items():
            wanted = module.update
            yield float((reread.parts[part][name].update - wanted).norm() / wanted.norm().clamp(min=1e-12))
