"""A finished picture -> its pixels at the content's own size, and everything needed to repeat it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image, ImageChops
from torch.nn import functional

from diffstyler.diffusion.fusion import shares
from diffstyler.images import to_image, to_tensor
from diffstyler.masking.prompt import Everything
from diffstyler.metrics.region import seam
from diffstyler.predict.picture_job import PictureJob, RegionJob
from diffstyler.storage import told
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
    size = (job.image.height, job.image.width)
    full = functional.interpolate(
        pixels[None].cpu(), size, mode="bicubic", antialias=True, align_corners=False
    )[0].clamp_(-1, 1)  # fmt: skip
    outside = None
    cover = coverage(job.regions, size)
    if not bool((cover == 1).all()):
        original = to_tensor(job.image)
        if keep_outside:
            torch.lerp(original, full, cover, out=full)
        outside = _outside(job.image, original, full, cover)
        del original  # of large pictures, each copy counts
    masks, regions = {}, []
    for number, region in enumerate(job.regions, start=1):
        share = 1.0 if region.mask is None else round(float(region.mask.mean()), 4)
        record = {**region.describe(), "mask_share": share}
        if not isinstance(region.mask_prompt, Everything):
            record["mask_file"] = name = f"masks/{job.triple.id}-{number}.png"
            masks[name] = torch.ones(size) if region.mask is None else region.mask
        regions.append(record)
    provenance = {
        "id": job.triple.id,
        "key": job.key,
        "content": {
            "path": told(job.triple.content),
            "sha256": job.content_sha256,
            "prompt": job.triple.content_prompt,
        },
        "content_lora": told(job.content_adapter.path) if job.content_adapter else None,
        "regions": regions,
        "outside": outside,
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
        if all(mask is None for mask in active):
            return torch.ones(height, width)
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
    channels = zip(image.split(), to_image(result).split(), strict=True)
    difference = max(np.asarray(ImageChops.difference(*pair))[outside.numpy()].max() for pair in channels)
    return {"pixels": int(outside.sum()), "largest_difference": int(difference), "seam": seam(original, result, cover)}
