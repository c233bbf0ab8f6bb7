"""UNets of public models' shapes with random weights, behind the interface that fit and predict use."""

# diffusers and nn.Module annotate few of their attributes
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from diffstyler.backbones import Backbone, NoisePrediction, StableDiffusion, StableDiffusionXL
from diffstyler.backbones.latent_diffusion import LatentDiffusion, find_sites
from diffstyler.types import PromptEmbeds

SHAPES = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


class RandomBackbone(Backbone):
    """A UNet of ``shape`` alone: pictures become random latents and prompts random embeddings."""

    size_multiple = 8
    repeated_layers = LatentDiffusion.repeated_layers
    prediction = NoisePrediction()
    noise_levels = LatentDiffusion.noise_levels
    sampling_schedule = LatentDiffusion.sampling_schedule
    recompute_activations = LatentDiffusion.recompute_activations

    def __init__(self, shape: str) -> None:
        super().__init__()
        self.shape = SHAPES[shape]
        self.resolution = 8 * self.shape["sample_size"]
        self.scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            set_alpha_to_one=False,
        )
        self.alphas_cumprod = self.scheduler.alphas_cumprod.double()
        self.num_train_timesteps = len(self.alphas_cumprod)

    def load(self, dtype: torch.dtype = torch.float32) -> RandomBackbone:
        if not self.is_loaded:
            with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
                self.unet = UNet2DConditionModel(**self.shape).to(dtype).requires_grad_(False).eval()
            family = StableDiffusionXL if "addition_embed_type" in self.shape else StableDiffusion
            self.sites = find_sites(self.unet, family)
        return self

    def fingerprint(self) -> str:
        return "0" * 64

    def identity(self) -> dict[str, str]:
        return {"name": "random", "family": type(self).__name__, "sha256": self.fingerprint()}

    @property
    def text_encoders(self) -> dict[str, torch.nn.Module]:
        return {}

    @property
    def is_loaded(self) -> bool:
        return "unet" in self._modules

    @property
    def network(self) -> torch.nn.Module:
        return self.unet

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(pixels), 4, pixels.shape[2] // 8, pixels.shape[3] // 8, device=pixels.device)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3].clamp(-1, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)

    def encode_prompt(self, prompts: list[str]) -> PromptEmbeds:
        device = next(self.unet.parameters()).device
        return PromptEmbeds(torch.randn(len(prompts), 77, self.shape["cross_attention_dim"], device=device))

    def token_ids(self, text: str) -> list[int]:
        return list(range(len(text.split())))

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, prompt: PromptEmbeds) -> torch.Tensor:
        dtype, more = self.unet.dtype, {}
        if "addition_embed_type" in self.shape:
            rows = {"device": latents.device, "dtype": dtype}
            texts, times = torch.zeros(len(latents), 1280, **rows), torch.ones(len(latents), 6, **rows)
            more["added_cond_kwargs"] = {"text_embeds": texts, "time_ids": times}
        tokens = prompt.tokens.to(dtype)
        with self.own_precision():
            return self.unet(latents.to(dtype), timesteps, encoder_hidden_states=tokens, **more).sample

    def park_encoders(self, device: torch.device | str) -> None:
        pass


def build(model: str) -> Backbone:
    """A key of ``SHAPES``, or whatever StableDiffusion loads."""
    return RandomBackbone(model) if model in SHAPES else StableDiffusion(model)


def forward_flops(backbone: Backbone, size: int, channels: int) -> int:
    """Floating-point operations of one row's forward at latents of side ``size``."""
    device = next(backbone.network.parameters()).device
    latents = torch.randn(1, channels, size, size, device=device)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        backbone.predict(latents, torch.ones(1, dtype=torch.long, device=device), backbone.encode_prompt(["a"]))
    return counter.get_total_flops()


def peak_memory(device: torch.device) -> str:
    """Since the last reset, where the device counts it."""
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else "-"


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
