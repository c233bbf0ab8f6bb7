"""A tiny random backbone of Stable Diffusion's topology."""

import copy
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffstyler.backbones import StableDiffusion
from diffstyler.backbones.source import EMBEDDED

torch.set_num_threads(1)  # the models are tiny, and tests run side by side


@pytest.fixture(scope="session")
def tiny_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Diffusers directories of the same tiny model, by prediction type."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    parts = {"unet": tiny_unet(), "vae": tiny_vae(), "text_encoder": tiny_text_encoder(tokenizer)}
    folders = {}
    for prediction_type in ("epsilon", "v_prediction"):
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
            prediction_type=prediction_type,
        )
        extras = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler, **extras)
        folders[prediction_type] = tmp_path_factory.mktemp(prediction_type)
        pipe.save_pretrained(folders[prediction_type])
    return folders


@pytest.fixture
def tiny_dir(request: pytest.FixtureRequest, tiny_dirs: dict[str, Path]) -> Path:
    """The tiny model's directory; parametrize it (indirect) with a prediction type, the default is ε."""
    return tiny_dirs[getattr(request, "param", "epsilon")]


@pytest.fixture
def tiny(tiny_dir: Path) -> StableDiffusion:
    """The tiny model, loaded; every test has its own copy."""
    return copy.deepcopy(_loaded(tiny_dir))


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each family (sd1, sd2, sdxl): ``model``, a diffusers directory, and ``model.safetensors``."""
    from families import FAMILIES, save_original, tiny_pipeline

    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp(family)
        pipeline = tiny_pipeline(family)
        pipeline.save_pretrained(folders[family] / "model")
        save_original(pipeline, folders[family] / "model.safetensors")
    return folders


@lru_cache
def _loaded(folder: Path) -> StableDiffusion:
    return StableDiffusion(str(folder)).load()


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
