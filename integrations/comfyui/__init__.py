"""ComfyUI nodes on diffstyler's public API: load a LoRA, find a mask by a prompt, bring regions into styles.

Copy or link this folder into ``ComfyUI/custom_nodes`` and install diffstyler into ComfyUI's Python.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from diffstyler import StableDiffusion, Stylizer

#: a LoRA of the graph, and a region: its mask (H, W) in [0, 1], None = everything, and its LoRA
Lora = str
Region = tuple[torch.Tensor | None, Lora]


class LoadLora:
    """A LoRA by its folder or file, or by its hub id."""

    CATEGORY = "diffstyler"
    RETURN_TYPES = ("DIFFSTYLER_LORA",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802
        return {"required": {"lora": ("STRING", {"default": "loras/monet"})}}

    def load(self, lora: str) -> tuple[Lora]:
        from diffstyler.adapters import lora_at, read_lora

        path = lora_at(lora)
        read_lora(path)  # what is wrong with it is told here
        return (str(path),)


class MaskPrompt:
    """What a mask prompt finds in each picture of a batch."""

    CATEGORY = "diffstyler"
    RETURN_TYPES = ("MASK",)
    FUNCTION = "find"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802
        prompt = ("STRING", {"default": "the sky", "multiline": True})
        return {"required": {"image": ("IMAGE",), "prompt": prompt}, "optional": {"model": _MODEL}}

    def find(self, image: torch.Tensor, prompt: str, model: str = "embedded") -> tuple[torch.Tensor]:
        from diffstyler import masks

        stylizer = _stylizer(model)
        found = [masks(_picture(one), [prompt], stylizer)[0] for one in image]
        return (torch.stack([torch.from_numpy(np.asarray(mask, np.float32) / 255) for mask in found]),)


class StyledRegion:
    """A LoRA for a part of the picture; chained, later ones lie on top."""

    CATEGORY = "diffstyler"
    RETURN_TYPES = ("DIFFSTYLER_REGIONS",)
    FUNCTION = "add"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802
        optional = {"mask": ("MASK",), "below": ("DIFFSTYLER_REGIONS",)}
        return {"required": {"lora": ("DIFFSTYLER_LORA",)}, "optional": optional}

    def add(
        self, lora: Lora, mask: torch.Tensor | None = None, below: tuple[Region, ...] = ()
    ) -> tuple[tuple[Region, ...]]:
        return ((*below, (mask, lora)),)


class StylizeRegions:
    """Each region in its style; outside all of them every pixel is the picture's own."""

    CATEGORY = "diffstyler"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "stylize"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802
        return {
            "required": {
                "image": ("IMAGE",),
                "regions": ("DIFFSTYLER_REGIONS",),
                "content_prompt": ("STRING", {"default": ""}),
                "steps": ("INT", {"default": 50, "min": 1, "max": 999}),
                "guidance_scale": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 30.0, "step": 0.5}),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 2.0, "step": 0.05}),
            },
            "optional": {"model": _MODEL},
        }

    def stylize(
        self,
        image: torch.Tensor,
        regions: tuple[Region, ...],
        content_prompt: str,
        steps: int,
        guidance_scale: float,
        strength: float,
        model: str = "embedded",
    ) -> tuple[torch.Tensor]:
        from diffstyler import stylize

        stylizer = _stylizer(model, num_inference_steps=steps, guidance_scale=guidance_scale)
        made = []
        for index, one in enumerate(image):
            parts = [("everything" if mask is None else _mask(mask, index), lora) for mask, lora in regions]
            picture = stylize(
                _picture(one),
                regions=parts,
                stylizer=stylizer,
                content_prompt=content_prompt,
                strength=strength,
                progress=_bar(),
            )
            made.append(torch.from_numpy(np.asarray(picture, np.float32) / 255))
        return (torch.stack(made),)


_MODEL = ("STRING", {"default": "embedded"})  # a diffusers folder, a .safetensors file, or a hub id

NODE_CLASS_MAPPINGS = {
    "DiffstylerLoadLora": LoadLora,
    "DiffstylerMaskPrompt": MaskPrompt,
    "DiffstylerRegion": StyledRegion,
    "DiffstylerStylizeRegions": StylizeRegions,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "DiffstylerLoadLora": "Load diffstyler LoRA",
    "DiffstylerMaskPrompt": "Mask prompt",
    "DiffstylerRegion": "Styled region",
    "DiffstylerStylizeRegions": "Stylize regions",
}


def _stylizer(model: str, **settings: float) -> Stylizer:
    """LoRAs without a picture beside them start from the content alone."""
    from diffstyler import Stylizer
    from diffstyler.diffusion.initial import FromContent

    return Stylizer(_backbone(model), output_dir=None, initial=FromContent(), **settings)  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def _backbone(model: str) -> StableDiffusion:
    """Stays loaded from one node to the next, and from one run to the next, until another model is named."""
    from diffstyler import StableDiffusion

    return StableDiffusion(model)


def _picture(pixels: torch.Tensor) -> Image.Image:
    """ComfyUI's (H, W, 3) in [0, 1]."""
    return Image.fromarray((pixels[..., :3].cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8))


def _mask(masks: torch.Tensor, index: int) -> Image.Image:
    """Of the picture in this place of the batch; one mask serves all."""
    own = masks[index if len(masks) > 1 else 0] if masks.ndim == 3 else masks
    return Image.fromarray((own.cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8))


def _bar():  # noqa: ANN202
    """ComfyUI's own bar, where this runs inside it."""
    try:
        from comfy.utils import ProgressBar  # type: ignore[import-not-found]
    except ImportError:
        return None
    bar = ProgressBar(1)
    return lambda done, total: bar.update_absolute(done, total)
