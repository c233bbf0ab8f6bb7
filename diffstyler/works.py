"""A row of the manifest with everything about it settled, and the finished picture with all that made it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from diffstyler.fusion import shares
from diffstyler.images import file_sha256, is_picture, to_image, to_tensor
from diffstyler.lookup import AdapterFile
from diffstyler.mask_prompt import File, MaskPrompt, parse_mask_prompt
from diffstyler.metrics import seam
from diffstyler.types import StyleRegion, Stylized, Triple
from diffstyler.writer import request_key

VERSIONS = ("diffstyler", "torch", "diffusers", "peft", "lightning", "transformers")


@dataclass(frozen=True)
class Style:
    """A region of the manifest with every setting settled. ``mask`` (H, W) at the content's size, None = everywhere."""

    region: StyleRegion
    adapter: AdapterFile
    prompt: str
    negative_prompt: str
    guidance_scale: float
    mask: torch.Tensor | None = None

    @property
    def mask_prompt(self) -> MaskPrompt:
        return parse_mask_prompt(self.region.mask)

    @property
    def settled(self) -> dict:
        """What the row left open."""
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "guidance_scale": self.guidance_scale,
        }

    @property
    def request(self) -> dict:
        """What determines this region's share of the picture."""
        files = [file_sha256(node.path) for node in self.mask_prompt.walk() if isinstance(node, File)]
        hashes = {"style": style_sha256(self.region.style), "lora": self.adapter.sha256, "mask_files": files}
        return {**asdict(self.region), **hashes, **self.settled}

    def describe(self) -> dict:
        picture = {"path": str(self.region.style)}
        if is_picture(self.region.style):
            picture["sha256"] = file_sha256(self.region.style)
        described = {key: value for key, value in asdict(self.region).items() if key != "style"}
        lora = {"path": str(self.adapter.path), "sha256": self.adapter.sha256}
        return {**described, **self.settled, "style": picture, "lora": lora}


@dataclass(frozen=True)
class Work:
    """A triple made ready: its upright ``image``, and the ``size`` (height, width) that it is worked on at."""

    triple: Triple
    image: Image.Image
    size: tuple[int, int]
    content_sha256: str
    content_adapter: AdapterFile | None
    styles: tuple[Style, ...]
    settings: dict

    @property
    def pixels(self) -> torch.Tensor:
        """(3, H, W) in [-1, 1] at working size."""
        return to_tensor(self.image, self.size)

    @property
    def key(self) -> str:
        """sha256 of everything that determines the picture."""
        return request_key(
            {
                "content": self.content_sha256,
                "content_adapter": self.content_adapter.sha256 if self.content_adapter else None,
                "regions": [style.request for style in self.styles],
                "seed": self.triple.seed,
                "settings": self.settings,
            }
        )


def finish(work: Work, pixels: torch.Tensor, seconds: float, *, keep_outside: bool) -> Stylized:
    """The picture at the content's own size, and everything needed to repeat it.

    Args:
        work: what was asked for.
        pixels: (3, h, w) in [-1, 1] at working size.
        seconds: that it took.
        keep_outside: outside all masks the content's own pixels are put back.
    """
    original = to_tensor(work.image)
    full = functional.interpolate(
        pixels[None].cpu(), original.shape[1:], mode="bicubic", antialias=True, align_corners=False
    )[0].clamp(-1, 1)  # fmt: skip
    cover = coverage(work.styles, original.shape[1:])
    if keep_outside:
        full = torch.lerp(original, full, cover)
    masks = {
        f"masks/{work.triple.id}-{i}.png": style.mask
        for i, style in enumerate(work.styles, start=1)
        if style.mask is not None
    }
    regions = [style.describe() for style in work.styles]
    for name, mask in masks.items():
        number = int(name.removesuffix(".png").rsplit("-", 1)[1])
        regions[number - 1] |= {"mask_file": name, "mask_share": round(float(mask.mean()), 4)}
    provenance = {
        "id": work.triple.id,
        "key": work.key,
        "content": {
            "path": str(work.triple.content),
            "sha256": work.content_sha256,
            "prompt": work.triple.content_prompt,
        },
        "content_lora": str(work.content_adapter.path) if work.content_adapter else None,
        "regions": regions,
        "outside": _outside(work.image, original, full, cover),
        "result": f"{work.triple.id}.png",
        "settings": work.settings,
        "seed": work.triple.seed,
        "seconds": round(seconds, 3),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in VERSIONS}},
    }
    return Stylized(work.triple.id, full, provenance, masks)


def coverage(styles: Sequence[Style], size: Sequence[int]) -> torch.Tensor:
    """How much of each pixel any style has at any time, (H, W) in [0, 1]."""
    height, width = size
    cover = torch.zeros(height, width)
    for moment in {style.region.start for style in styles}:
        active = [style.mask for style in styles if style.region.stop < moment <= style.region.start]
        everywhere = torch.ones(height, width)
        weights = shares([everywhere if mask is None else mask for mask in active])
        cover = torch.maximum(cover, torch.stack(weights).sum(0))
    return cover.clamp(max=1)


def _outside(
    image: Image.Image, original: torch.Tensor, result: torch.Tensor, cover: torch.Tensor
) -> dict[str, object] | None:
    """What happened where no mask reaches, in gray levels of the written picture, and how visible the border is."""
    outside = cover == 0
    if not outside.any():
        return None
    before, after = (torch.from_numpy(np.array(picture)).int() for picture in (image, to_image(result)))
    difference = (before - after).abs().amax(-1)[outside].max()
    return {"pixels": int(outside.sum()), "largest_difference": int(difference), "seam": seam(original, result, cover)}


def style_picture(style: Path) -> Path:
    """The picture itself, or the thumbnail in a LoRA's folder."""
    return style if is_picture(style) else (style if style.is_dir() else style.parent) / "thumbnail.png"


def style_sha256(style: Path) -> str | None:
    """Of the picture that the initial latents may take statistics from."""
    picture = style_picture(style)
    return file_sha256(picture) if picture.is_file() else None
