"""The key names of every LoRA dialect: a tensor's key in, its place in the model out; and kohya's names back.

Read are peft's and diffusers' names, new and old, and kohya's (A1111, ComfyUI, Civitai), with diffusers' or with the
original Stable Diffusion XL block numbers. Names inside text encoders are those of transformers 5, without the level
``text_model`` that older versions, most files and some encoders have.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

#: parts of a model, by the prefixes that the dialects give them
PARTS = {
    "unet": "unet",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "base_model.model": "unet",
}

ROLES = {
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora.down.weight": "down",
    "lora_down.weight": "down",
    "lora_linear_layer.down.weight": "down",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "lora.up.weight": "up",
    "lora_up.weight": "up",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
}

#: what these keys hold cannot be run as a plain low-rank update
OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a Tucker core",
    "oft_": "OFT",
    "diff_b": "full differences",
}

_WORDS = (
    *("down_blocks", "up_blocks", "mid_block", "transformer_blocks", "to_q", "to_k", "to_v", "to_out"),
    *("proj_in", "proj_out", "time_emb_proj", "conv_shortcut", "conv_in", "conv_out", "time_embedding"),
    *("add_embedding", "linear_1", "linear_2", "text_model", "text_projection", "self_attn"),
    *("q_proj", "k_proj", "v_proj", "out_proj"),
)

_KOHYA_WORD = re.compile("|".join(_WORDS) + "|[A-Za-z0-9]+")
#: diffusers' first names of a UNet's attention, and of a text encoder's
_OLD_PROCESSOR = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.(?=down|up)")
_OLD_SELF_ATTENTION = re.compile(r"\.self_attn\.to_(q|k|v|out)_lora\.(?=down|up)")
#: how keys begin that name no part, as diffusers writes them for a UNet alone
_UNET_ROOTS = ("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.", "add_embedding.")

#: of a residual block, in the original code's names
_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}

#: outside the blocks, in the original code's names
_ORIGINAL_ROOTS = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}

_DIFFUSERS_ROOTS = {new: old for old, new in _ORIGINAL_ROOTS.items()}


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs: ``part`` of the model, dotted ``module`` in it, and "down", "up" or "alpha"."""

    part: str
    module: str
    role: str


@functools.lru_cache(1 << 14)  # a library's LoRAs have the same keys
def place_of(key: str) -> Place | None:
    """The place that a key of a LoRA file names; None for a key of no dialect known here."""
    key = _OLD_PROCESSOR.sub(lambda m: f".{'to_out.0' if m[1] == 'to_out' else m[1]}.lora.", key)
    key = _OLD_SELF_ATTENTION.sub(lambda m: f".self_attn.{m[1]}_proj.lora.", key)
    if key.startswith(_UNET_ROOTS):
        key = f"unet.{key}"
    role = next((suffix for suffix in ROLES if key.endswith(f".{suffix}")), None)
    prefix = next((p for p in sorted(PARTS, key=len, reverse=True) if re.match(rf"{re.escape(p)}[._]", key)), None)
    if role is None or prefix is None:
        return None
    inner = key[len(prefix) + 1 : -len(role) - 1]
    module = ".".join(_KOHYA_WORD.findall(_from_original(inner))) if prefix.startswith("lora_") else inner
    part = PARTS[prefix]
    return Place(part, without_text_model(module) if part != "unet" else module, ROLES[role])


def kohya_name(part: str, module: str, *, xl: bool) -> str:
    """The prefix of a module's keys in kohya's dialect; ``xl`` for the original block numbers of SDXL's UNet."""
    if part != "unet":
        number = {"text_encoder": "1" if xl else "", "text_encoder_2": "2"}[part]
        return f"lora_te{number}_{with_text_model(module).replace('.', '_')}"
    flat = module.replace(".", "_")
    return f"lora_unet_{_to_original(flat) if xl else flat}"


def with_text_model(module: str) -> str:
    """A text encoder's module by the name that transformers 4, and so most files, give it."""
    return module if module.startswith("text_projection") else f"text_model.{without_text_model(module)}"


def without_text_model(module: str) -> str:
    """A text encoder's module by the name that transformers 5 gives it; some encoders have the level still."""
    return re.sub(r"^(text_model\.)+", "", module)


def other_method(key: str) -> str | None:
    """The name of the method whose weights this key holds, if it is not plain LoRA."""
    return next((name for mark, name in OTHER_METHODS.items() if mark in key), None)


def _from_original(name: str) -> str:
    """``input_blocks_4_1_…`` -> ``down_blocks_1_attentions_0_…``, flat; other names as they are."""
    if name in _ORIGINAL_ROOTS:
        return _ORIGINAL_ROOTS[name]
    found = re.match(r"(input|output)_blocks_(\d+)_(\d+)_(.+)|middle_block_(\d+)_(.+)", name)
    if not found:
        return name
    if found[5] is not None:
        kind, index = ("attentions", 0) if found[5] == "1" else ("resnets", int(found[5]) // 2)
        return f"mid_block_{kind}_{index}_{_RESNET.get(found[6], found[6])}"
    number, place, rest = int(found[2]), int(found[3]), found[4]
    side, first = ("down", 1) if found[1] == "input" else ("up", 0)
    block, layer = divmod(number - first, 3)
    if rest in {"op", "conv"}:
        return f"{side}_blocks_{block}_{side}samplers_0_conv"
    return f"{side}_blocks_{block}_{'resnets' if place == 0 else 'attentions'}_{layer}_{_RESNET.get(rest, rest)}"


def _to_original(name: str) -> str:
    found = re.match(r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)", name)
    back = {new: old for old, new in _RESNET.items()}
    if found:
        side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if kind == "downsamplers":
            return f"input_blocks_{3 * block + 3}_0_op"
        if kind == "upsamplers":
            return f"output_blocks_{3 * block + 2}_2_conv"
        stem = f"input_blocks_{3 * block + layer + 1}" if side == "down" else f"output_blocks_{3 * block + layer}"
        return f"{stem}_{0 if kind == 'resnets' else 1}_{back.get(rest, rest)}"
    found = re.match(r"mid_block_(resnets|attentions)_(\d+)_(.+)", name)
    if found:
        return f"middle_block_{1 if found[1] == 'attentions' else 2 * int(found[2])}_{back.get(found[3], found[3])}"
    return _DIFFUSERS_ROOTS.get(name, name)
