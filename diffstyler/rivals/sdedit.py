"""SDEdit (Meng et al. 2022): noise the content half-way, denoise it under the style LoRA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from diffstyler.diffusion.sampling import Region
from diffstyler.errors import DiffstylerError
from diffstyler.rivals.base import Rival, Studio, Task, joined


@dataclass(frozen=True)
class SDEdit(Rival):
    """x_{t0} = √ᾱ z_0^c + √(1−ᾱ) ε, then the sampler from t0 down (alg. 1, with DDIM for the SDE).

    Args:
        strength: t0, 0 … 1; the paper's useful range is 0.3 … 0.6.
        guidance_scale: of the prompt that the LoRA was fitted with.
    """

    strength: float = 0.6
    guidance_scale: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise DiffstylerError(f"SDEdit's strength: expected a number above 0 and at most 1, got {self.strength}")

    def __call__(self, studio: Studio, task: Task) -> Image.Image:
        assert task.style_lora is not None
        count = len(studio.schedule)
        schedule = studio.schedule[count - max(1, round(self.strength * count)) :]
        z_0 = studio.clean(task.content, studio.size(task.content))
        noise = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(task.seed))
        x = schedule.levels[0].noised(z_0, noise.to(z_0))
        prompt = studio.embed(joined([task.style_prompt, task.content_prompt]))
        with studio.denoiser(studio.adapter(task.style_lora)) as denoiser:
            region = Region(0, prompt, studio.embed(""), self.guidance_scale)
            return studio.decode(studio.sample(denoiser, x, region, schedule=schedule), task.content)
