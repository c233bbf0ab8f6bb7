"""What every model family offers: pictures and prompts in, noise predictions and pictures out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from diffstyler.types import PromptEmbeds


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
    After loading, ``unet`` is the denoiser that adapters and hooks are attached to.
    """

    unet: nn.Module
    sites: InjectionSites
    #: sides of a picture must be multiples of this many pixels
    size_multiple: int
    #: the short side, in pixels, that the model was trained on
    resolution: int
    #: (T,) float64, the product of 1 − β up to each training timestep
    alphas_cumprod: torch.Tensor
    #: "epsilon" or "v_prediction"
    prediction_type: str
    #: the share of attention that a phrase draws at least somewhere in a picture that shows it; 0 = not known
    mask_minimum: float = 0.0

    @abstractmethod
    def load(self, dtype: torch.dtype = torch.float32) -> Backbone:
        """Read the weights (once; a later call only checks the dtype) and return self."""

    def check(self) -> None:
        """Whether the files are there, whole, and of this family; reads no weights.

        Raises:
            ValueError: what is wrong, and what to do.
        """

    def prepare(self, device: torch.device) -> None:
        """Called once when the loaded model is on the device that it is to run on: choose what runs there.

        Raises:
            ValueError: a wish cannot be honored there.
        """

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
    def text_encoders(self) -> dict[str, nn.Module]:
        """By the names that LoRA files have for them: ``text_encoder``, ``text_encoder_2``."""

    @abstractmethod
    def sampling_schedule(self, num_inference_steps: int) -> Schedule:
        """The sampling grid t_1 > … > t_N with its ᾱ."""

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
        """The raw output of the UNet for (B, C, h, w) latents at (B,) timesteps: ε or v."""

    @abstractmethod
    def park_encoders(self, device: torch.device | str) -> None:
        """Move image and text encoders to ``device``: off the accelerator while they are idle, back before use."""

    def predict_noise(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompt: PromptEmbeds, alphas: torch.Tensor
    ) -> torch.Tensor:
        """ε(x, t, c) in float32, for latents at the noise levels ``alphas`` (B,), the ᾱ of each row.

        From v-prediction by ε = √ᾱ v + √(1−ᾱ) x (Salimans and Ho 2022, appendix D).
        """
        output = self.predict(latents, timesteps, prompt).float()
        if self.prediction_type == "epsilon":
            return output
        alphas = alphas.to(output).view(-1, 1, 1, 1)
        return alphas.sqrt() * output + (1 - alphas).sqrt() * latents


@dataclass(frozen=True)
class Schedule:
    """A sampling grid: ``timesteps`` (N,) int64, descending; ``alphas`` (N + 1,) float64, ᾱ at each, then the last."""

    timesteps: torch.Tensor
    alphas: torch.Tensor

    def __len__(self) -> int:
        return len(self.timesteps)
