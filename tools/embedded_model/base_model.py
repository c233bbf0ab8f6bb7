"""The embedded model's networks, its weights in small shards, and the pipeline directory that is made of both."""

from collections.abc import Mapping
from pathlib import Path

import torch
from captions import MAX_TOKENS, build_tokenizer
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS = 16
SHARD_BYTES = 14 * 2**20


def build_vae(latent_channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    """An autoencoder that halves the side three times; 5.7 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=latent_channels,
        block_out_channels=(64, 96, 128, 160),  # type: ignore[arg-type]
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 4,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 4,  # type: ignore[arg-type]
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=1.0,
    )


class Denoiser(nn.Module):
    """The text encoder and the UNet, trained together; the UNet has the topology of Stable Diffusion 1.x."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=96,
                intermediate_size=384,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                projection_dim=96,
                bos_token_id=tokenizer.bos_token_id,  # type: ignore[arg-type]
                eos_token_id=tokenizer.eos_token_id,  # type: ignore[arg-type]
                pad_token_id=tokenizer.pad_token_id,  # type: ignore[arg-type]
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=32,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            layers_per_block=2,
            block_out_channels=(64, 128, 192, 192),
            down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            cross_attention_dim=96,
            attention_head_dim=4,
            norm_num_groups=16,
        )


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Captions as token ids, (B, MAX_TOKENS) int64."""
    padded = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return padded.input_ids  # type: ignore[return-value]


def save_shards(state: Mapping[str, Tensor], directory: Path, stem: str) -> None:
    """Write `state` in half precision as `stem-00001-of-0000N.safetensors`, each below `SHARD_BYTES`, atomically."""
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in state.items():
        half = tensor.detach().to("cpu", torch.float16 if tensor.is_floating_point() else tensor.dtype).contiguous()
        if filled + half.nbytes > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = half
        filled += half.nbytes
    for i, shard in enumerate(shards, start=1):
        path = directory / f"{stem}-{i:05}-of-{len(shards):05}.safetensors"
        unfinished = path.with_suffix(".tmp")
        save_file(shard, unfinished)
        unfinished.replace(path)


def load_shards(directory: Path, stem: str) -> dict[str, Tensor]:
    """Read back what `save_shards` wrote, in single precision."""
    paths = sorted(directory.glob(f"{stem}-*-of-*.safetensors"))
    if not paths or len(paths) != int(paths[0].stem.rsplit("-", 1)[1]):
        raise ValueError(f"{directory}: expected all shards of '{stem}', found {[path.name for path in paths]}")
    state = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def load_denoiser(directory: Path, tokenizer: CLIPTokenizer) -> Denoiser:
    """The trained UNet and text encoder: from the shards that training wrote, or from a pipeline directory."""
    denoiser = Denoiser(tokenizer)
    if (directory / "unet").is_dir():
        parts = {"unet.": load_file(directory / "unet" / "diffusion_pytorch_model.safetensors")}
        parts["text_encoder."] = load_file(directory / "text_encoder" / "model.safetensors")
        state = {prefix + name: tensor.float() for prefix, part in parts.items() for name, tensor in part.items()}
    else:
        state = load_shards(directory, "unet")
    denoiser.load_state_dict(state)
    return denoiser


def save_vae(vae: AutoencoderKL, mean: Tensor, std: Tensor, directory: Path) -> None:
    """`mean` and `std` (C,): those of the latents' channels over the rendered pictures."""
    save_shards({**vae.state_dict(), "latents.mean": mean, "latents.std": std}, directory, "vae")


def load_vae(directory: Path) -> AutoencoderKL:
    """The trained autoencoder, made so that its latents have mean 0 and standard deviation 1 in every channel.

    `directory`: what `save_vae` wrote, or a pipeline directory, whose autoencoder is made so already.
    """
    if (directory / "vae").is_dir():
        return AutoencoderKL.from_pretrained(directory / "vae").eval()
    state = load_shards(directory, "vae")
    mean, std = state.pop("latents.mean"), state.pop("latents.std")
    vae = build_vae(len(mean))
    vae.load_state_dict(state)
    fold_normalization(vae, mean, std)
    return vae.eval()


@torch.no_grad()
def fold_normalization(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Put `(z - mean) / std` into `quant_conv` and its inverse into `post_quant_conv`, in place.

    `quant_conv` puts out the posterior's means, then its log variances, which shrink by `2 log std`.
    """
    quant, post_quant = vae.quant_conv, vae.post_quant_conv
    assert isinstance(quant, nn.Conv2d)
    assert isinstance(post_quant, nn.Conv2d)
    assert quant.bias is not None
    assert post_quant.bias is not None
    scale = torch.cat([1 / std, torch.ones_like(std)])
    shift = torch.cat([-mean / std, -2 * std.log()])
    quant.weight.mul_(scale[:, None, None, None])
    quant.bias.mul_(scale).add_(shift)
    post_quant.bias.add_(post_quant.weight[:, :, 0, 0] @ mean)
    post_quant.weight.mul_(std[None, :, None, None])


def export_pipeline(vae_directory: Path, unet_directory: Path, out: Path) -> None:
    """Make a `StableDiffusionPipeline` directory in half precision of the two trained parts."""
    tokenizer = build_tokenizer()
    denoiser = load_denoiser(unet_directory, tokenizer)
    pipeline = StableDiffusionPipeline(
        vae=load_vae(vae_directory),
        text_encoder=denoiser.text_encoder.eval(),
        tokenizer=tokenizer,
        unet=denoiser.unet.eval(),
        scheduler=build_scheduler(),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)
