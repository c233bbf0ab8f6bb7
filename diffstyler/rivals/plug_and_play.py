"""Plug-and-Play (Tumanyan et al. 2023): the content's features and attention, injected into a text-guided sampling."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from diffstyler.diffusion.injection import CrossLoRAInjection
from diffstyler.diffusion.sampling import Region
from diffstyler.rivals.base import Rival, Studio, Task, joined


@dataclass(frozen=True)
class PlugAndPlay(Rival):
    """The model is the base with the style LoRA merged, everywhere: in the inversion, the source row and the sampling.

    From z_T^c, features of decoder layer 4 replaced in the first τ_f of the steps, queries and keys of layers 4 … 11 in
    the first τ_A (sec. 4, alg. 1). Inverted on the sampling grid, as all methods here are but the reference preset; the
    paper takes 1000 steps.

    Args:
        features: τ_f as a fraction of the steps; the paper: 0.8.
        attention: τ_A; the paper: 0.5.
        guidance_scale: the authors' code: 7.5.
        negative_prompt: the authors' code.
    """

    features: float = 0.8
    attention: float = 0.5
    guidance_scale: float = 7.5
    negative_prompt: str = "ugly, blurry, black, low res, unrealistic"

    def __call__(self, studio: Studio, task: Task) -> Image.Image:
        assert task.style_lora is not None
        injection = CrossLoRAInjection(self.features, self.attention, adaptive=False, source_under_style=True)
        prompt = studio.embed(joined([task.style_prompt, task.content_prompt]))
        region = Region(0, prompt, studio.embed(self.negative_prompt), self.guidance_scale, injection=injection)
        size = studio.size(task.content)
        with studio.denoiser(studio.adapter(task.style_lora)) as denoiser:
            content = studio.invert(denoiser, task.content, size, slot=0, under=task.style_lora)
            x_0 = studio.sample(denoiser, content.latents[0], region, content=content)
        return studio.decode(x_0, task.content)
