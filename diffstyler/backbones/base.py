"""What every model family offers: pictures and prompts in, noise predictions and pictures out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature

import torch
from torch import nn

from diffstyler.backbones.prediction import Prediction
from diffstyler.errors import DiffstylerError
from diffstyler.types import NoiseLevel, PromptEmbeds, Schedule

#: the denoiser among the parts of a model, as LoRA files call it
NETWORK = "unet"


#: kinds of one layer, by shape and by what its hooks do, that are compiled before it runs as it is
COMPILED_SHAPES = 128


@dataclass(frozen=True)
class InjectionSites:
    """Where a family's UNet is steered (module paths inside the UNet).

    ``features``: convolutions whose output is the residual branch of a decoder block, before the skip is added.
    ``attention``: self-attention modules that own ``to_q`` and ``to_k``.
    """

    features: tuple[str, ...]
    attention: tuple[str, ...]


class Backbone(nn.Module, ABC):
    """A frozen latent diffusion model.

    Building one is cheap: weights are read by :meth:`load`, so that settings and manifests can be checked first.
    After loading, ``network`` is the denoiser that adapters and hooks are attached to.
    """

    sites: InjectionSites
    #: sides of a picture must be multiples of this many pixels
    size_multiple: int
    #: the short side, in pixels, that the model was trained on
    resolution: int
    #: T, of the training
    num_train_timesteps: int
    #: what the network's output means
    prediction: Prediction
    #: class names of the layers that the network is made of, for compilers; none = it is one
    repeated_layers: tuple[str, ...] = ()
    #: pictures are encoded and decoded in tiles, which gives other pixels
    vae_tiling: bool = False
    #: the arguments that it was made with, those with a default only where they differ from it
    options: dict[str, object]
    _whole: Callable | None = None
    #: the share of attention that a phrase draws at least somewhere in a picture that shows it; 0 = not known
    mask_minimum: float = 0.0
    #: the mean squared error of ε at t / T = 0.3 above which a picture is unlike those that the model was taught, and
    #: the share of attention that a phrase draws on average in a place that it names in such a picture; None = unknown
    mask_unlike: tuple[float, float] | None = None

    def __new__(cls, *args: object, **options: object) -> Backbone:
        made = super().__new__(cls)
        parameters = signature(cls.__init__).parameters
        given = {**dict(zip(list(parameters)[1:], args, strict=False)), **options}  # the first one is self
        made.options = {k: v for k, v in given.items() if k not in parameters or v != parameters[k].default}
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    @abstractmethod
    def load(self, dtype: torch.dtype = torch.float32) -> Backbone:
        """Read the weights (once; a later call only checks the dtype) and return self."""

    def check(self) -> None:
        """Whether the files are there, whole, and of this family; reads no weights.

        Raises:
            DiffstylerError: what is wrong, and what to do.
        """

    def outline(self, dtype: torch.dtype, *, text_encoders: bool = False) -> Backbone:
        """Another of its kind by its configurations alone: network and autoencoder, and ``text_encoders`` if asked for.

        Raises:
            DiffstylerError: it is not known before the weights are read.
        """
        raise DiffstylerError(f"a {type(self).__name__} is known only when it is loaded")

    def prepare(self, device: torch.device) -> None:
        """Called once when the loaded model is on the device that it is to run on: choose what runs there.

        Raises:
            DiffstylerError: a wish cannot be honored there.
        """

    def save_memory(self, *, vae_tiling: bool, offload: bool) -> None:
        """Before loading: work in tiles, keep idle parts off the device, where the settings do not ask for it anyway.

        Raises:
            DiffstylerError: this family cannot.
        """
        if vae_tiling or offload:
            raise DiffstylerError(f"{type(self).__name__} cannot work in tiles or off the device; allow more memory")

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 (hex) of the weight files, known without loading them."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """The model's name, family and hash, and what else tells it from others, for provenance."""

    @property
    def settings(self) -> dict[str, str]:
        """What changes its numbers besides weights and precision, as plain values; empty where nothing does."""
        return {}

    @property
    @abstractmethod
    def is_loaded(self) -> bool:
        """Whether the weights are here."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The denoiser: what adapters and injection act on."""

    @property
    @abstractmethod
    def text_encoders(self) -> dict[str, nn.Module]:
        """By the names that LoRA files have for them: ``text_encoder``, ``text_encoder_2``."""

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What LoRAs can reach, by the names that their files have for it; the denoiser first."""
        return {NETWORK: self.network, **self.text_encoders}

    @abstractmethod
    def sampling_schedule(self, num_inference_steps: int) -> Schedule:
        """The sampling grid t_1 > … > t_N with its noise levels."""

    @abstractmethod
    def noise_levels(self, timesteps: torch.Tensor) -> NoiseLevel:
        """Of (B,) training timesteps, as (B, 1, 1, 1) float64 on the CPU."""

    @abstractmethod
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> scaled latents (B, C, h, w): the posterior mean."""

    @abstractmethod
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) -> (B, 3, H, W) in [-1, 1]."""

    @abstractmethod
    def encode_prompt(self, prompts: list[str]) -> PromptEmbeds:
        """B prompts -> their conditioning."""

    @abstractmethod
    def token_ids(self, text: str) -> list[int]:
        """The text's tokens, without those for start and end."""

    @abstractmethod
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, prompt: PromptEmbeds) -> torch.Tensor:
        """The raw output of the network for (B, C, h, w) latents at (B,) timesteps."""

    @abstractmethod
    def park_encoders(self, device: torch.device | str) -> None:
        """Move image and text encoders to ``device``: off the accelerator while they are idle, back before use."""

    def predict_noise(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompt: PromptEmbeds, level: NoiseLevel
    ) -> torch.Tensor:
        """ε(x, t, c) in at least float32, for latents at the noise ``level`` of each row, (B, 1, 1, 1)."""
        output = self.predict(latents, timesteps, prompt)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return self.prediction.noise(output, latents, level.to(output))

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(p.dtype for p in self.network.parameters() if p.is_floating_point())

    def own_precision(self) -> AbstractContextManager:
        """Inside, layers run in the dtype that they were loaded in: autocast would take norms and what follows them to
        float32 and back, which costs a fifth of the time and nearly a third of the memory on an H200."""
        device = next(self.network.parameters()).device.type
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        return torch.autocast(device, enabled=False) if mixed else nullcontext()

    def compile(self, backend: str = "inductor") -> None:
        """Compile the network's repeated layers, each in its first forward, once for each shape that it meets; hooks
        registered before are compiled with it. On CUDA convolutions then keep their channels last."""
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_SHAPES)
        layers = [module for module in self.network.modules() if type(module).__name__ in self.repeated_layers]
        for layer in layers or [self.network]:
            layer.compile(dynamic=False, backend=backend)
        if next(self.network.parameters()).is_cuda:
            self.network.to(memory_format=torch.channels_last)

    @contextmanager
    def compiled(self, backend: str = "inductor") -> Iterator[None]:
        """Inside, the network runs compiled as a whole, its hooks with it; it is compiled in its first forward there,
        once for each shape and kind of call. From then on convolutions on CUDA keep their channels last."""
        network = self.network
        if self._whole is None:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_SHAPES)
            network.compile(dynamic=False, backend=backend)
            self._whole = network._compiled_call_impl
            if next(network.parameters()).is_cuda:
                network.to(memory_format=torch.channels_last)
        network._compiled_call_impl = self._whole
        try:
            yield
        finally:
            network._compiled_call_impl = None

    def uncompile(self) -> None:
        for module in self.network.modules():
            module._compiled_call_impl = None
        self._whole = None

    def recompute_activations(self, on: bool = True) -> None:
        """Gradient checkpointing: less memory for the backward pass, more time.

        Raises:
            DiffstylerError: this family cannot.
        """
        raise DiffstylerError(f"{type(self).__name__} has no gradient checkpointing; leave it out")
