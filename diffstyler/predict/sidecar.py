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
from diffstyler.images import bands, to_image, to_tensor
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
        if keep_outside:
            for rows in bands(size[0]):
                torch.lerp(_rows_of(job.image, rows), full[:, rows], cover[rows], out=full[:, rows])
        outside = _outside(job.image, full, cover)
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
    cover = torch.ones(size[0], size[1])
    if all(region.mask is None for region in regions):
        return cover
    for rows in bands(size[0]):
        cover[rows] = _covered([(r, None if r.mask is None else r.mask[rows]) for r in regions], cover[rows])
    return cover


def _covered(regions: Sequence[tuple[RegionJob, torch.Tensor | None]], everywhere: torch.Tensor) -> torch.Tensor:
    """The same of some rows (h, W), with the regions' masks there."""
    cover = torch.zeros_like(everywhere)
    for moment in {region.row.start for region, _ in regions}:
        active = [mask for region, mask in regions if region.acts_at(moment)]
        if all(mask is None for mask in active):
            return everywhere
        weights = shares([everywhere if mask is None else mask for mask in active])
        cover = torch.maximum(cover, torch.stack(weights).sum(0))
    return cover.clamp(max=1)


def _rows_of(image: Image.Image, rows: slice) -> torch.Tensor:
    """(3, h, W) in [-1, 1]."""
    return to_tensor(image.crop((0, rows.start, image.width, rows.stop)))


def _outside(image: Image.Image, result: torch.Tensor, cover: torch.Tensor) -> dict[str, object] | None:
    """What happened where no mask reaches, in gray levels of the written picture, and how visible the border is."""
    pixels = largest = 0
    for rows in bands(image.height):
        outside = (cover[rows] == 0).numpy()
        own = image.crop((0, rows.start, image.width, rows.stop))
        pixels += int(outside.sum())
        difference = np.asarray(ImageChops.difference(own, to_image(result[:, rows])))
        largest = max(largest, int(difference[outside].max(initial=0)))
    if not pixels:
        return None
    return {"pixels": pixels, "largest_difference": largest, "seam": seam(image, result, cover)}
