"""A finished picture -> its pixels at the content's own size, and everything needed to repeat it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from diffstyler.diffusion.fusion import shares
from diffstyler.images import to_image, to_tensor
from diffstyler.masking.prompt import Everything
from diffstyler.predict.picture_job import PictureJob, RegionJob
from diffstyler.types import Stylized

VERSIONS = ("diffstyler", "torch", "diffusers", "peft", "lightning", "transformers")


def finish(job: PictureJob, pixels: torch.Tensor, seconds: float, *, keep_outside: bool) -> Stylized:
    """The picture at the content's own size, and everything needed to repeat it.

    Args:
        job: what was asked for.
        pixels: (3, h, w) in [-1, 1] at working size.
        seconds: that it took.
        keep_outside: outside all masks the content's own pixels are put back.
    """
    original = to_tensor(job.image)
    full = functional.interpolate(
        pixels[None].cpu(), original.shape[1:], mode="bicubic", antialias=True, align_corners=False
    )[0].clamp(-1, 1)  # fmt: skip
    cover = coverage(job.regions, original.shape[1:])
    if keep_outside:
        full = torch.lerp(original, full, cover)
    masks, regions = {}, []
    for number, region in enumerate(job.regions, start=1):
        mask = torch.ones(original.shape[1:]) if region.mask is None else region.mask
        told = {**region.describe(), "mask_share": round(float(mask.mean()), 4)}
        if not isinstance(region.mask_prompt, Everything):
            told["mask_file"] = name = f"masks/{job.triple.id}-{number}.png"
            masks[name] = mask
        regions.append(told)
    provenance = {
        "id": job.triple.id,
        "key": job.key,
        "content": {
            "path": str(job.triple.content),
            "sha256": job.content_sha256,
            "prompt": job.triple.content_prompt,
        },
        "content_lora": str(job.content_adapter.path) if job.content_adapter else None,
        "regions": regions,
        "outside": _outside(job.image, original, full, cover),
        "result": f"{job.triple.id}.png",
        "settings": job.settings,
        "seed": job.triple.seed,
        "seconds": round(seconds, 3),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in VERSIONS}},
    }
    return Stylized(job.triple.id, full, provenance, masks)


def coverage(regions: Sequence[RegionJob], size: Sequence[int]) -> torch.Tensor:
    """How much of each pixel any region has at any time, (H, W) in [0, 1]."""
    height, width = size
    cover = torch.zeros(height, width)
    for moment in {region.row.start for region in regions}:
        active = [region.mask for region in regions if region.acts_at(moment)]
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


def seam(content: torch.Tensor, result: torch.Tensor, mask: torch.Tensor) -> dict[str, float] | None:
    """How strong the luminance gradient is along a mask's border, in the content and in the result.

    Args:
        content: (3, H, W) in [-1, 1].
        result: the same size.
        mask: (H, W) in [0, 1].

    Returns:
        Mean gradient across the border (the component along the mask's own gradient) in gray levels (0 … 255) a pixel,
        over all pixels where the mask changes; None where it changes nowhere.
    """
    across = _gradient(mask)
    strength = across.norm(dim=0)
    border = strength > 0
    if not border.any():
        return None
    direction = across[:, border] / strength[border]
    values = {}
    for name, picture in {"content": content, "result": result}.items():
        luminance = (picture.float() * 127.5 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
        values[name] = round((_gradient(luminance)[:, border] * direction).sum(0).abs().mean().item(), 3)
    return values


def _gradient(picture: torch.Tensor) -> torch.Tensor:
    """(H, W) -> its derivatives (2, H, W) along y and x, by central differences."""
    return torch.stack(torch.gradient(picture.float()))
