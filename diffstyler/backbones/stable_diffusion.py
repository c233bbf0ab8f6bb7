"""Stable Diffusion 1.x and 2.x, and the embedded model, which has their topology."""

# diffusers annotates few of its return types
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportOptionalOperand=false

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline

from diffstyler.backbones.latent_diffusion import LatentDiffusion
from diffstyler.types import PromptEmbeds


class StableDiffusion(LatentDiffusion):
    """Stable Diffusion 1.x or 2.x, ε- or v-prediction (Rombach et al. 2022)."""

    pipeline = StableDiffusionPipeline
    #: decoder layer 4
    feature_sites = ("up_blocks.1.resnets.1.conv2",)
    #: decoder layers 4 … 11
    attention_sites = tuple(
        f"up_blocks.{block}.attentions.{layer}"
        for block, layer in [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    )

    def encode_prompt(self, prompts: list[str]) -> PromptEmbeds:
        with self._awake(self.text_encoder, self._device), self.own_precision():
            ids = self._tokenize(self.tokenizers[0], prompts).to(self.text_encoder.device)
            return PromptEmbeds(self.text_encoder(ids).last_hidden_state)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, prompt: PromptEmbeds) -> torch.Tensor:
        dtype = self.unet.dtype
        with self.own_precision():
            return self.unet(latents.to(dtype), timesteps, encoder_hidden_states=prompt.tokens.to(dtype)).sample
