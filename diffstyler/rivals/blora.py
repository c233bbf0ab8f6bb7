"""B-LoRA (Frenkel et al. 2024), with InstantStyle's blocks (Wang et al. 2024): style and content live apart."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from diffstyler.diffusion.sampling import Region
from diffstyler.errors import DiffstylerError
from diffstyler.rivals.base import Rival, Studio, Task, joined


@dataclass(frozen=True)
class BLoRA(Rival):
    """One LoRA of two: the style's in the style blocks, the content's in the content blocks, nothing elsewhere.

    The paper's blocks are SDXL's (``up_blocks.0.attentions.0`` and ``.1``); of Stable Diffusion 1 and 2 these are the
    ones that InstantStyle names. The paper samples from noise; here the content's z_T is the start, which keeps more of
    it.

    Args:
        style_blocks: where the style LoRA acts.
        content_blocks: where the content LoRA acts.
        guidance_scale: of both prompts together.
    """

    style_blocks: tuple[str, ...] = ("up_blocks.1.",)
    content_blocks: tuple[str, ...] = ("down_blocks.2.",)
    guidance_scale: float = 3.0

    needs_content_lora = True

    def __call__(self, studio: Studio, task: Task) -> Image.Image:
        assert task.style_lora is not None
        assert task.content_lora is not None
        chosen = {self.style_blocks: task.style_lora, self.content_blocks: task.content_lora}
        adapter = {
            n: m for blocks, lora in chosen.items() for n, m in studio.adapter(lora).items() if n.startswith(blocks)
        }
        if not adapter:
            raise DiffstylerError(f"BLoRA: no LoRA acts in {', '.join(self.style_blocks + self.content_blocks)}")
        prompt = studio.embed(joined([task.style_prompt, task.content_prompt]))
        size = studio.size(task.content)
        with studio.denoiser(adapter) as denoiser:
            content = studio.invert(denoiser, task.content, size)
            region = Region(0, prompt, studio.embed(""), self.guidance_scale)
            x_0 = studio.sample(denoiser, content.latents[0], region)
        return studio.decode(x_0, task.content)
