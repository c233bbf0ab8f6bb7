"""Stable Diffusion 1.x and 2.x, and the embedded model, which has their topology."""

# diffusers annotates few of its return types
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import hashlib
import json
import logging
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from diffstyler.backbones.base import Backbone, InjectionSites, Schedule
from diffstyler.types import PromptEmbeds

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded"

#: what diffstyler knows of a model, in its directory: {"mask_minimum": …}
NOTES_NAME = "diffstyler.json"

#: features of decoder layer 4, queries and keys of decoder layers 4 … 11
SITES = InjectionSites(
    features=("up_blocks.1.resnets.1.conv2",),
    attention=tuple(
        f"up_blocks.{block}.attentions.{layer}.transformer_blocks.0.attn1"
        for block, layer in [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    ),
)


class StableDiffusion(Backbone):
    """Stable Diffusion 1.x or 2.x, ε- or v-prediction.

    Args:
        model: ``embedded`` (ships with the package), a diffusers directory, or a hub id such as
            ``stable-diffusion-v1-5/stable-diffusion-v1-5``.
        revision: branch, tag or commit of a hub id.
        variant: file variant of a hub id or directory, such as ``fp16``.

    Raises:
        ValueError: the model is not there, or is not of this family.
    """

    def __init__(self, model: str = "embedded", *, revision: str | None = None, variant: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.revision = revision
        self.variant = variant
        self.sites = SITES
        looks_local = model != "embedded" and (model.startswith((".", "/", "~")) or model.count("/") != 1)
        if looks_local and not Path(model).expanduser().is_dir():
            raise ValueError(
                f"model '{model}': no such directory; expected 'embedded', a diffusers directory "
                "(with model_index.json), or a hub id like 'owner/name'"
            )

    def load(self, dtype: torch.dtype = torch.float32) -> StableDiffusion:
        if "unet" in self._modules:
            return self
        folder, variant = self._folder(), self.variant
        self._check_family(folder)
        self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", dtype=dtype, variant=variant)
        # the VAE of SD overflows in fp16, so it runs in fp32 there
        vae_dtype = torch.float32 if dtype == torch.float16 else dtype
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=vae_dtype, variant=variant)
        self.text_encoder = CLIPTextModel.from_pretrained(
            folder, subfolder="text_encoder", dtype=dtype, variant=variant
        )
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        self.scheduler = DDIMScheduler.from_pretrained(
            folder,
            subfolder="scheduler",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing="leading",
        )
        self.prediction_type = self.scheduler.config["prediction_type"]
        self.alphas_cumprod = self.scheduler.alphas_cumprod.double()
        self.size_multiple = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self.resolution = self.unet.config["sample_size"] * self.size_multiple
        if (folder / NOTES_NAME).is_file():
            self.mask_minimum = json.loads((folder / NOTES_NAME).read_text())["mask_minimum"]
        self.requires_grad_(False).eval()
        missing = [s for s in (*SITES.features, *SITES.attention) if not _has_module(self.unet, s)]
        if missing:
            raise ValueError(
                f"model '{self.model}': its UNet has no {missing[0]}; expected the topology of SD 1.x / 2.x"
            )
        return self

    def fingerprint(self) -> str:
        return _hash_folder(self._folder())

    def identity(self) -> dict[str, str]:
        return {"name": self.model, "family": type(self).__name__, "sha256": self.fingerprint()}

    def sampling_schedule(self, num_inference_steps: int) -> Schedule:
        self.scheduler.set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps.clone()
        end = self.scheduler.final_alpha_cumprod.double().view(1)
        return Schedule(timesteps, torch.cat([self.alphas_cumprod[timesteps], end]))

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
            return posterior.mean.float() * self.vae.config["scaling_factor"]

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            latents = (latents / self.vae.config["scaling_factor"]).to(self.vae.dtype)
            return self.vae.decode(latents).sample.float().clamp(-1, 1)

    def encode_prompt(self, prompts: list[str]) -> PromptEmbeds:
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_overflowing_tokens=False,
            return_tensors="pt",
        )
        for prompt in prompts:
            self._warn_if_cut(prompt)
        ids = tokens.input_ids.to(self.text_encoder.device)
        return PromptEmbeds(self.text_encoder(ids).last_hidden_state)

    def token_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, prompt: PromptEmbeds) -> torch.Tensor:
        dtype = self.unet.dtype
        return self.unet(latents.to(dtype), timesteps, encoder_hidden_states=prompt.tokens.to(dtype)).sample

    @property
    def text_encoders(self) -> dict[str, torch.nn.Module]:
        return {"text_encoder": self.text_encoder}

    def park_encoders(self, device: torch.device | str) -> None:
        self.vae.to(device)
        self.text_encoder.to(device)

    def _folder(self) -> Path:
        if self.model == "embedded":
            return EMBEDDED
        local = Path(self.model).expanduser()
        return local if local.is_dir() else _download(self.model, self.revision, self.variant)

    def _check_family(self, folder: Path) -> None:
        index = folder / "model_index.json"
        if not index.is_file():
            raise ValueError(f"model '{self.model}': {index} is missing; expected a diffusers directory")
        family = json.loads(index.read_text())["_class_name"]
        if family != "StableDiffusionPipeline":
            raise ValueError(
                f"model '{self.model}' is a {family}; {type(self).__name__} expects StableDiffusionPipeline"
            )

    def _warn_if_cut(self, prompt: str) -> None:
        length, limit = len(self.tokenizer(prompt, verbose=False).input_ids), self.tokenizer.model_max_length
        if length > limit:
            log.warning("prompt '%s' has %d tokens; the model reads the first %d", prompt, length, limit)


def _has_module(model: torch.nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


@lru_cache
def _download(model: str, revision: str | None, variant: str | None) -> Path:
    try:
        return Path(DiffusionPipeline.download(model, revision=revision, variant=variant))
    except OSError as error:
        raise ValueError(
            f"model '{model}': not a directory here, and the hub did not give it "
            f"({str(error).splitlines()[0]}); expected 'embedded', a diffusers directory, or a reachable hub id"
        ) from error


@lru_cache
def _hash_folder(folder: Path) -> str:
    """sha256 over the configurations and weights in a model directory, by name and content."""
    total = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.suffix in {".json", ".safetensors", ".bin", ".txt"}):
        digest = hashlib.sha256()
        with file.open("rb") as opened:
            while chunk := opened.read(1 << 24):
                digest.update(chunk)
        total.update(f"{file.relative_to(folder).as_posix()} {digest.hexdigest()}\n".encode())
    return total.hexdigest()
