"""A tiny random model of each family, and its single-file checkpoint in the original code's key names."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffstyler.backbones import StableDiffusion, StableDiffusionXL
from diffstyler.backbones.source import EMBEDDED

FAMILIES = {"sd1": StableDiffusion, "sd2": StableDiffusion, "sdxl": StableDiffusionXL}

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def tiny_pipeline(family: str) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    prediction_type = "v_prediction" if family == "sd2" else "epsilon"
    scheduler = DDIMScheduler(
        **SCHEDULE,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=prediction_type,
        timestep_spacing="leading",
    )
    if family == "sdxl":
        parts = {
            "text_encoder": tiny_text_encoder(tokenizer),
            "tokenizer": tokenizer,
            "text_encoder_2": _second_text_encoder(tokenizer),
            "tokenizer_2": tokenizer,
            "unet": _xl_unet(),
        }
        return StableDiffusionXLPipeline(**parts, vae=tiny_vae(), scheduler=scheduler, add_watermarker=False)
    unet = tiny_unet() if family == "sd1" else _v2_unet()
    parts = {"text_encoder": tiny_text_encoder(tokenizer), "tokenizer": tokenizer, "unet": unet, "vae": tiny_vae()}
    extras = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, scheduler=scheduler, **extras)


@lru_cache
def loaded(folder: Path) -> StableDiffusion:
    """A model that is loaded once; whoever changes it takes a copy."""
    return StableDiffusion(str(folder)).load()


def save_original(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline, file: Path) -> Path:
    """One file of the whole model, in the key names of the original code."""
    attentive = {i for i, kind in enumerate(pipeline.unet.config["up_block_types"]) if kind.startswith("CrossAttn")}
    unet = pipeline.unet.state_dict()
    tensors = {f"model.diffusion_model.{_unet_name(key, attentive)}": value for key, value in unet.items()}
    levels = len(pipeline.vae.config["block_out_channels"])
    for key, value in pipeline.vae.state_dict().items():
        is_projection = ".attentions." in key and key.endswith("weight") and value.dim() == 2
        shaped = value[..., None, None] if is_projection else value
        tensors[f"first_stage_model.{_vae_name(key, levels)}"] = shaped
    first = pipeline.text_encoder.state_dict()
    if isinstance(pipeline, StableDiffusionXLPipeline):
        tensors |= _clip(first, "conditioner.embedders.0.transformer")
        tensors |= _open_clip(pipeline.text_encoder_2.state_dict(), "conditioner.embedders.1.model")
    elif pipeline.unet.config["use_linear_projection"]:
        projection = {"text_projection.weight": torch.eye(pipeline.text_encoder.config.hidden_size)}
        tensors |= _open_clip({**first, **projection}, "cond_stage_model.model")
    else:
        tensors |= _clip(first, "cond_stage_model.transformer")
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, file)
    return file


def _v2_unet() -> UNet2DConditionModel:
    """Linear projections around the attention, and heads of equal width: what tells SD 2.x from 1.x."""
    changes = {"use_linear_projection": True, "attention_head_dim": (4, 4, 8, 8)}
    return UNet2DConditionModel.from_config({**tiny_unet().config, **changes})


def _xl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 2, 4),
        use_linear_projection=True,
        cross_attention_dim=32 + 48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
        norm_num_groups=16,
    )


def _second_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=24,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def _renamed(name: str, table: dict[str, str]) -> str:
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    return name


def _unet_name(key: str, with_attention: set[int]) -> str:
    def down(m: re.Match) -> str:
        block, kind, layer = int(m[1]), m[2], int(m[3])
        if kind == "downsamplers":
            return f"input_blocks.{3 * block + 3}.0.op"
        return f"input_blocks.{3 * block + layer + 1}.{0 if kind == 'resnets' else 1}"

    def up(m: re.Match) -> str:
        block, kind, layer = int(m[1]), m[2], int(m[3])
        if kind == "upsamplers":
            return f"output_blocks.{3 * block + 2}.{2 if block in with_attention else 1}.conv"
        return f"output_blocks.{3 * block + layer}.{0 if kind == 'resnets' else 1}"

    key = re.sub(r"^down_blocks\.(\d+)\.(downsamplers)\.(\d+)\.conv", down, key)
    key = re.sub(r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", down, key)
    key = re.sub(r"^up_blocks\.(\d+)\.(upsamplers)\.(\d+)\.conv", up, key)
    key = re.sub(r"^up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", up, key)
    table = {
        r"^mid_block\.attentions\.0": "middle_block.1",
        r"^mid_block\.resnets\.0": "middle_block.0",
        r"^mid_block\.resnets\.1": "middle_block.2",
        r"^time_embedding\.linear_1": "time_embed.0",
        r"^time_embedding\.linear_2": "time_embed.2",
        r"^add_embedding\.linear_1": "label_emb.0.0",
        r"^add_embedding\.linear_2": "label_emb.0.2",
        r"^conv_in": "input_blocks.0.0",
        r"^conv_norm_out": "out.0",
        r"^conv_out": "out.2",
    }
    key = _renamed(key, table)
    if re.match(r"(input_blocks|output_blocks)\.\d+\.0\.|middle_block\.[02]\.", key):
        inner = {
            r"\.norm1\.": ".in_layers.0.",
            r"\.conv1\.": ".in_layers.2.",
            r"\.time_emb_proj\.": ".emb_layers.1.",
            r"\.norm2\.": ".out_layers.0.",
            r"\.conv2\.": ".out_layers.3.",
            r"\.conv_shortcut\.": ".skip_connection.",
        }
        key = _renamed(key, inner)
    return key


def _vae_name(key: str, levels: int) -> str:
    table = {
        r"down_blocks\.(\d+)\.resnets\.(\d+)": r"down.\1.block.\2",
        r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
        r"mid_block\.resnets\.0": "mid.block_1",
        r"mid_block\.resnets\.1": "mid.block_2",
        r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
        r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
        r"mid_block\.attentions\.0\.to_": "mid.attn_1.",
        r"conv_norm_out": "norm_out",
        r"conv_shortcut": "nin_shortcut",
    }
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)
    return _renamed(key, table)


def _clip(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}.text_model.{key.removeprefix('text_model.')}": value for key, value in state.items()}


def _open_clip(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """OpenCLIP's names; its queries, keys and values are one matrix, its projection is transposed."""
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    tensors = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    layers = {key.split(".")[2] for key in state if key.startswith("encoder.layers.")}
    for layer in layers:
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            parts = [state[f"{old}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            tensors[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
            tensors[f"{new}.attn.out_proj.{kind}"] = state[f"{old}.self_attn.out_proj.{kind}"]
            for mine, theirs in inner.items():
                tensors[f"{new}.{theirs}.{kind}"] = state[f"{old}.{mine}.{kind}"]
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def tiny_unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    for name, parameter in unet.named_parameters():
        if ".attn" in name and parameter.dim() == 2:  # as initialized, text and attention would hardly matter
            parameter.data.mul_(3)
    return unet


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
    )


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
