"""A picture's job and the trajectories that it needs -> the canvas that the denoising starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from diffstyler.cuda import send
from diffstyler.diffusion.fusion import Fusion
from diffstyler.diffusion.initial import InitialLatents, initial_latents
from diffstyler.diffusion.injection import Injection
from diffstyler.diffusion.matching import Part
from diffstyler.diffusion.sampling import Canvas, Region
from diffstyler.predict.adapter_cache import AdapterCache
from diffstyler.predict.adapter_resolver import AdapterFile
from diffstyler.predict.picture_job import PictureJob, RegionJob
from diffstyler.types import Step, Trajectory


@dataclass(frozen=True)
class Strategies:
    """How a run injects, starts, fuses and guides; ``guidance_scale`` and ``negative_prompt`` are of what no mask
    covers, the interval is of all."""

    injection: Injection
    initial: InitialLatents
    fusion: Fusion
    guidance_scale: float
    guidance_interval: tuple[float, float]
    negative_prompt: str


def compose(
    job: PictureJob,
    content: Trajectory,
    styles: Mapping[AdapterFile, Trajectory],
    looks: Mapping[tuple[AdapterFile, str], Part],
    adapters: AdapterCache,
    strategies: Strategies,
    begin: Step,
) -> Canvas:
    """x_T, the content's way, and the regions as tensors.

    Args:
        job: what is to be made, with its masks.
        content: on a grid that holds ``begin``.
        styles: of the regions that start, where the initial latents need them.
        looks: of the regions, where they are to be matched with their style pictures.
        adapters: where all adapters of the job are loaded.
        strategies: of the run.
        begin: the first step.
    """
    seen = [region for region in job.regions if region.finds_something]
    regions = {r: _region(r, looks.get(r.look), content.clean, adapters, strategies) for r in seen}
    starting = starting_regions(job, begin)
    z_T = content.at(begin.timestep)
    z_T_styles = [styles[r.adapter].latents[0] if strategies.initial.needs_style else None for r in starting]
    starts = [strategies.initial(z_T, z_T_style, job.triple.seed) for z_T_style in z_T_styles]
    x_T = initial_latents(z_T, starts, [regions[r].mask for r in starting])
    outside = [] if strategies.fusion.outside is None else [_outside(strategies.fusion.outside, adapters, strategies)]
    return Canvas(
        x_T,
        content,
        (*outside, *regions.values()),
        adapters.slot(job.content_adapter),
        adapters.embed("", job.content_adapter),
    )


def starting_regions(job: PictureJob, begin: Step) -> Sequence[RegionJob]:
    """Those that act in the first step."""
    return [region for region in job.regions if region.finds_something and region.acts_at(begin.time)]


def cells_of(latent_mask: torch.Tensor) -> torch.Tensor:
    """The cells that a mask (h, w) on the latent grid covers for the most part, (n,) int64."""
    return (latent_mask > 0.5).flatten().nonzero()[:, 0]


def _region(
    job: RegionJob, look: Part | None, latents: torch.Tensor, adapters: AdapterCache, strategies: Strategies
) -> Region:
    row, adapter = job.row, job.adapter
    assert row.prompt is not None
    assert row.negative_prompt is not None
    assert row.guidance_scale is not None
    mask = cells = None
    if job.mask is not None:
        mask = strategies.fusion.latent_mask(job.mask, (latents.shape[1], latents.shape[2]))
        cells = send(cells_of(mask), latents.device)
        mask = send(mask.to(latents.dtype), latents.device)
    return Region(
        slot=adapters.slot(adapter),
        prompt=adapters.embed(row.prompt, adapter, row.strength),
        negative_prompt=adapters.embed(row.negative_prompt, adapter, row.strength),
        source_prompt=adapters.embed("", adapter, row.strength),
        guidance_scale=row.guidance_scale,
        strength=row.strength,
        mask=mask,
        start=row.start,
        stop=row.stop,
        guidance_interval=strategies.guidance_interval,
        injection=strategies.injection.scheduled(row.inject_features, row.inject_attention),
        cells=cells,
        look=look,
    )


def _outside(injection: Injection, adapters: AdapterCache, strategies: Strategies) -> Region:
    """What no mask covers, by the base model."""
    nothing, negative = adapters.embed(""), adapters.embed(strategies.negative_prompt)
    scale, interval = strategies.guidance_scale, strategies.guidance_interval
    return Region(None, nothing, negative, scale, guidance_interval=interval, injection=injection)
