"""Latents on their way down -> pictures of what they are on their way to, to be looked at while the rest is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch.nn import functional

from diffstyler.backbones import Backbone
from diffstyler.images import to_image
from diffstyler.predict.picture_job import PictureJob
from diffstyler.predict.sidecar import coverage
from diffstyler.types import Step


def previews(
    backbone: Backbone,
    jobs: Sequence[PictureJob],
    show: Callable[[Image.Image], None],
    every: int,
    *,
    keep_outside: bool,
) -> Callable[[Step, Sequence[torch.Tensor]], None]:
    """What :func:`denoise` is to tell its estimates: each is decoded, laid over its content, and shown.

    Args:
        backbone: decodes.
        jobs: the pictures, with their masks, in the order of the estimates.
        show: is given each picture, at working size.
        every: steps from one look to the next; the finished picture is not shown.
        keep_outside: outside all masks the content's own pixels are put back.
    """
    covers = [_cover(job) if keep_outside else torch.ones(job.size) for job in jobs]

    def on_estimate(step: Step, estimates: Sequence[torch.Tensor]) -> None:
        done = step.index + 1
        if done % every or done == step.count:
            return
        for job, cover, x_0 in zip(jobs, covers, estimates, strict=True):
            pixels = backbone.decode_latents(x_0[None])[0].float().cpu()
            if torch.isfinite(pixels).all():
                show(to_image(torch.lerp(job.pixels, pixels, cover)))

    return on_estimate


def _cover(job: PictureJob) -> torch.Tensor:
    """:func:`coverage` at working size."""
    cover = coverage(job.regions, (job.image.height, job.image.width))
    return functional.interpolate(cover[None, None], job.size, mode="area")[0, 0]
