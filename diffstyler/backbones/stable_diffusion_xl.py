"""Stable Diffusion XL: two text encoders, a pooled embedding, and the picture's size as conditioning."""

# diffusers annotates few of its return types
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportOptionalOperand=false

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from diffstyler.backbones.latent_diffusion import LatentDiffusion
from diffstyler.types import PromptEmbeds


class StableDiffusionXL(LatentDiffusion):
    """Stable Diffusion XL base, or a model fine-tuned from it (Podell et al. 2023).

    Injection follows Stable Diffusion 1.x by resolution: features at a quarter of the latents' side, queries and keys
    from the second attention there to the last one. The last decoder block, at the latents' full size, has none.

    Args:
        model: a diffusers directory, a single file, or a hub id such as ``stabilityai/stable-diffusion-xl-base-1.0``.
        options: as of StableDiffusion.

    Raises:
        ValueError: the model is not there, or is not of this family.
    """

    pipeline = StableDiffusionXLPipeline
    text_encoder_names = ("text_encoder", "text_encoder_2")
    feature_sites = ("up_blocks.0.resnets.1.conv2",)
    attention_sites = tuple(
        f"up_blocks.{block}.attentions.{layer}" for block, layer in [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    )

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(model, **options)

    def encode_prompt(self, prompts: list[str]) -> PromptEmbeds:
        """The last but one layer of both text encoders side by side; the second one's projection is the pooled part.

        An empty prompt is zeros where the model was trained so (``force_zeros_for_empty_prompt``).
        """
        tokens = []
        for text_encoder, tokenizer in zip(self.text_encoders.values(), self.tokenizers, strict=True):
            with self._awake(text_encoder, self._device), self.own_precision():
                ids = self._tokenize(tokenizer, prompts).to(text_encoder.device)
                output = text_encoder(ids, output_hidden_states=True)
            tokens.append(output.hidden_states[-2])
        embeds = PromptEmbeds(torch.cat(tokens, -1), output.text_embeds)
        if not self.pipeline_config.get("force_zeros_for_empty_prompt", True):
            return embeds
        said = torch.tensor([bool(prompt) for prompt in prompts], device=embeds.tokens.device)
        return PromptEmbeds(embeds.tokens * said.view(-1, 1, 1), embeds.pooled * said.view(-1, 1))

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, prompt: PromptEmbeds) -> torch.Tensor:
        """The UNet is told that the picture has its size from the start: nothing was cropped or enlarged."""
        assert prompt.pooled is not None
        dtype = self.unet.dtype
        height, width = (side * self.size_multiple for side in latents.shape[-2:])
        time_ids = latents.new_zeros(len(latents), 6, dtype=dtype)
        time_ids[:, 0::4], time_ids[:, 1::4] = height, width
        with self.own_precision():
            return self.unet(
                latents.to(dtype),
                timesteps,
                encoder_hidden_states=prompt.tokens.to(dtype),
                added_cond_kwargs={"text_embeds": prompt.pooled.to(dtype), "time_ids": time_ids},
            ).sample
