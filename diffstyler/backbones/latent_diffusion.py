"""What the families of latent diffusion models share: loading, pictures to latents and back, the sampling grid."""

# diffusers annotates few of its return types
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportReturnType=false

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTokenizer

from diffstyler.backbones.attention import AttentionBackend, AutoAttention
from diffstyler.backbones.base import Backbone, InjectionSites
from diffstyler.backbones.parking import Parking
from diffstyler.backbones.prediction import PREDICTIONS
from diffstyler.backbones.quantization import Quantization, quantize
from diffstyler.backbones.source import ModelSource
from diffstyler.errors import DiffstylerError
from diffstyler.types import NoiseLevel, PromptEmbeds, Schedule

log = logging.getLogger(__name__)
#: what diffstyler knows of a model, in its directory: {"mask_minimum": …, "mask_unlike": […, …]}
NOTES_NAME = "diffstyler.json"
#: what CLIP reads of a prompt
PROMPT_TOKENS = 77


class LatentDiffusion(Backbone):
    """A UNet over the latents of an autoencoder, in the layout of one of diffusers' pipelines.

    A family names its pipeline and its sites, and says how prompts are encoded and the UNet is called.

    Args:
        model: ``embedded`` (ships with the package), a diffusers directory, a ``.safetensors`` or ``.ckpt`` file, or
            a hub id such as ``stable-diffusion-v1-5/stable-diffusion-v1-5``.
        revision: branch, tag or commit of a hub id.
        variant: file variant of a hub id or directory, such as ``fp16``.
        config: for a single file, the diffusers model (directory or hub id) whose configurations it has.
        allow_pickle: also open ``.ckpt`` and ``.bin`` files, which can run code when they are opened.
        vae: another autoencoder: a directory, file or hub id.
        attention: what computes attention; by default xformers where it runs and is faster, else torch's own.
        quantization: hold the UNet's linear layers in 4 ("nf4") or 8 bits ("int8"), for small cards.
        channels_last: memory layout of the UNet's convolutions; faster on many GPUs.
        vae_tiling: encode and decode in tiles: less memory for large pictures.
        vae_slicing: encode and decode one picture at a time.
        offload: keep autoencoder and text encoders off the accelerator while they are idle.

    Raises:
        DiffstylerError: the model is not there, or is not of this family.
    """

    repeated_layers = ("ResnetBlock2D", "BasicTransformerBlock")
    #: diffusers' pipeline that such models are saved by
    pipeline: type[DiffusionPipeline]
    text_encoder_names: tuple[str, ...] = ("text_encoder",)
    #: convolutions of the UNet whose output is injected
    feature_sites: tuple[str, ...]
    #: modules of the UNet in which every self-attention's queries and keys are injected
    attention_sites: tuple[str, ...]

    def __init__(
        self,
        model: str = "embedded",
        *,
        revision: str | None = None,
        variant: str | None = None,
        config: str | None = None,
        allow_pickle: bool = False,
        vae: str | None = None,
        attention: AttentionBackend | None = None,
        quantization: Quantization | None = None,
        channels_last: bool = False,
        vae_tiling: bool = False,
        vae_slicing: bool = False,
        offload: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.source = ModelSource(model, revision, variant, config, allow_pickle)
        self.vae_source = ModelSource(vae, allow_pickle=allow_pickle) if vae is not None else self.source
        self.attention = attention if attention is not None else AutoAttention()
        self.quantization: Quantization | None = quantization
        self.channels_last = channels_last
        self.vae_tiling = vae_tiling
        self.vae_slicing = vae_slicing
        self.offload = offload
        self._parking = Parking()

    # ---- loading

    def load(self, dtype: torch.dtype = torch.float32) -> LatentDiffusion:
        if self.is_loaded:
            return self
        self.check()
        # the VAEs of SD and SDXL overflow in fp16, so they run in fp32 there
        vae_dtype = torch.float32 if dtype == torch.float16 else dtype
        vae = self.vae_source.vae(vae_dtype, self.source.configurations)
        loaded = self.source.load(self.pipeline, dtype, vae)
        parts, self.pipeline_config = loaded.components, dict(loaded.config)
        self.unet, self.vae = parts["unet"], vae
        for name in self.text_encoder_names:
            setattr(self, name, parts[name])
        tokenizer_names = [name.replace("text_encoder", "tokenizer") for name in self.text_encoder_names]
        self.tokenizers: list[CLIPTokenizer] = [parts[name] for name in tokenizer_names]
        self._set_up_schedule(parts["scheduler"])
        self._set_up_sizes()
        self._set_up_memory(dtype)
        self.requires_grad_(False).eval()
        return self

    def check(self) -> None:
        self.source.check(self.pipeline.__name__)
        if (scheduler := self.source.scheduler()) is not None:
            self._set_up_schedule(scheduler)

    def save_memory(self, *, vae_tiling: bool, offload: bool) -> None:
        self.vae_tiling |= vae_tiling
        self.offload |= offload

    def outline(self, dtype: torch.dtype, *, text_encoders: bool = False) -> LatentDiffusion:
        folder = self.source.configurations
        if folder is None or not Path(folder).is_dir():
            raise DiffstylerError(
                f"model '{self.model}': no configurations to forecast from; set model.backbone.config"
            )
        outlined, default = copy.copy(self), torch.get_default_dtype()
        outlined._modules = {}
        try:
            torch.set_default_dtype(dtype)
            outlined.unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
            torch.set_default_dtype(torch.float32 if dtype == torch.float16 else dtype)
            outlined.vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
            for name in self.text_encoder_names if text_encoders else ():
                config = CLIPTextConfig.from_pretrained(folder, subfolder=name)
                setattr(outlined, name, getattr(transformers, (config.architectures or ["CLIPTextModel"])[0])(config))
        finally:
            torch.set_default_dtype(default)
        outlined._set_up_sizes()
        return outlined.requires_grad_(False).eval()

    def blank_prompt(self, rows: int) -> PromptEmbeds:
        """Conditioning of the right shape without a meaning, where the UNet is."""
        config, device = self.unet.config, self._device
        tokens = torch.zeros(rows, PROMPT_TOKENS, config["cross_attention_dim"], device=device)
        if config["addition_embed_type"] is None:
            return PromptEmbeds(tokens)
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        return PromptEmbeds(tokens, torch.zeros(rows, width, device=device))

    def prepare(self, device: torch.device) -> None:
        runs = self.attention.apply(self.unet, device)
        log.info("%s on %s, attention by %s", self.model, device, runs)
        if self.offload:
            self.park_encoders("cpu")

    def fingerprint(self) -> str:
        own = self.source.sha256()
        if self.vae_source is self.source:
            return own
        return hashlib.sha256(f"{own}/{self.vae_source.sha256()}".encode()).hexdigest()

    def identity(self) -> dict[str, str]:
        source, vae = self.source, None if self.vae_source is self.source else self.vae_source.model
        facts = {"name": self.model, "family": type(self).__name__, "sha256": self.fingerprint()}
        more = {"revision": source.commit, "variant": source.variant, "config": source.config, "vae": vae}
        return {**facts, **{key: value for key, value in more.items() if value is not None}, **self.settings}

    @property
    def settings(self) -> dict[str, str]:
        return {"quantization": self.quantization} if self.quantization else {}

    # ---- pictures, prompts, noise

    @property
    def is_loaded(self) -> bool:
        return "unet" in self._modules

    @property
    def network(self) -> nn.Module:
        return self.unet

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config["in_channels"])

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in self.text_encoder_names}

    def sampling_schedule(self, num_inference_steps: int) -> Schedule:
        self.scheduler.set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps.clone()
        alphas = [*self.alphas_cumprod[timesteps].tolist(), float(self.scheduler.final_alpha_cumprod.double())]
        levels = tuple(NoiseLevel(math.sqrt(alpha), math.sqrt(1 - alpha)) for alpha in alphas)
        return Schedule(timesteps, levels, self.num_train_timesteps)

    def noise_levels(self, timesteps: torch.Tensor) -> NoiseLevel:
        alphas = self.alphas_cumprod[timesteps.cpu()].view(-1, 1, 1, 1)
        return NoiseLevel(alphas.sqrt(), (1 - alphas).sqrt())

    def recompute_activations(self, on: bool = True) -> None:
        if on:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(pixels.device.type, enabled=False), self._awake(self.vae, pixels.device):
            posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
            return posterior.mean.float() * self.vae.config["scaling_factor"]

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.autocast(latents.device.type, enabled=False), self._awake(self.vae, latents.device):
            latents = (latents / self.vae.config["scaling_factor"]).to(self.vae.dtype)
            return self.vae.decode(latents).sample.float().clamp(-1, 1)

    def token_ids(self, text: str) -> list[int]:
        return self.tokenizers[0](text, add_special_tokens=False, verbose=False).input_ids

    def park_encoders(self, device: torch.device | str) -> None:
        for part in (self.vae, *self.text_encoders.values()):
            self._parking.move(part, device)

    # ---- for the families

    def _tokenize(self, tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
        """(B, L) token ids, cut or padded to what the model reads; what is cut is said in the log."""
        limit = tokenizer.model_max_length
        for prompt in prompts:
            length = len(tokenizer(prompt, verbose=False).input_ids)
            if length > limit:
                log.warning("prompt '%s' has %d tokens; the model reads the first %d", prompt, length, limit)
        options = {"padding": "max_length", "max_length": limit, "truncation": True, "return_tensors": "pt"}
        return tokenizer(prompts, return_overflowing_tokens=False, **options).input_ids

    @contextmanager
    def _awake(self, module: nn.Module, device: torch.device) -> Iterator[None]:
        """Where idle parts are kept off the accelerator, one of them is there for a moment."""
        if self.offload:
            self._parking.move(module, device)
        try:
            yield
        finally:
            if self.offload:
                self._parking.move(module, "cpu")

    @property
    def _device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def _set_up_sizes(self) -> None:
        self.size_multiple = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self.resolution = self.unet.config["sample_size"] * self.size_multiple
        self.sites = find_sites(self.unet, type(self))

    def _set_up_schedule(self, scheduler: DDIMScheduler) -> None:
        """DDIM on the model's own noise levels, "leading" with offset 1, whatever sampler it was saved with."""
        self._check_schedule(scheduler)
        with torch.device("cpu"):  # a Trainer makes models where they are to run; looking there would be waiting
            self.scheduler = DDIMScheduler.from_config(
                scheduler.config, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
            )
        self.prediction = PREDICTIONS[self.scheduler.config["prediction_type"]]
        self.alphas_cumprod = self.scheduler.alphas_cumprod.double()
        self.num_train_timesteps = len(self.alphas_cumprod)
        notes = self.source.path / NOTES_NAME
        if notes.is_file():
            known = json.loads(notes.read_text())
            self.mask_minimum = known["mask_minimum"]
            self.mask_unlike = tuple(known["mask_unlike"]) if "mask_unlike" in known else None

    def _check_schedule(self, scheduler: SchedulerMixin) -> None:
        """Raises:
        DiffstylerError: the network predicts neither ε nor v, or its noise levels are not those of a diffusion.
        """
        kind, known = scheduler.config.get("prediction_type"), inspect.signature(type(scheduler).__init__).parameters
        if "beta_start" not in known or scheduler.config.get("use_flow_sigmas"):
            raise DiffstylerError(
                f"model '{self.model}' has the noise levels of {type(scheduler).__name__}; expected betas, as DDIM has"
            )
        if kind not in PREDICTIONS:
            raise DiffstylerError(f"model '{self.model}' predicts {kind}; expected {' or '.join(PREDICTIONS)}")

    def _set_up_memory(self, dtype: torch.dtype) -> None:
        if self.quantization is not None:
            count = quantize(self.unet, self.quantization, dtype)
            log.info("%d linear layers of the UNet are held in %s", count, self.quantization)
        if self.channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if self.vae_tiling:
            self.vae.enable_tiling()
        if self.vae_slicing:
            self.vae.enable_slicing()


def find_sites(unet: nn.Module, family: type[LatentDiffusion]) -> InjectionSites:
    """A family's sites in this UNet.

    Raises:
        DiffstylerError: the UNet has another topology.
    """
    names = [name for name, _ in unet.named_modules()]
    inside = {place: [name for name in names if name.startswith(f"{place}.")] for place in family.attention_sites}
    missing = [site for site in family.feature_sites if site not in names]
    missing += [place for place, found in inside.items() if not found]
    if missing:
        raise DiffstylerError(f"the UNet has no {missing[0]}; expected the topology of {family.__name__}")
    attention = tuple(name for found in inside.values() for name in found if name.endswith(".attn1"))
    return InjectionSites(family.feature_sites, attention)
