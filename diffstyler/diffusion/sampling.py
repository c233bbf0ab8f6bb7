"""Content trajectories and styled regions -> latents of the stylized pictures, by fused denoising."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from diffstyler.backbones import Schedule
from diffstyler.diffusion.denoiser import Denoiser, Group, Row
from diffstyler.diffusion.fusion import FuseLatents, Fusion, Step, shares
from diffstyler.diffusion.injection import Injection, NoInjection
from diffstyler.types import PromptEmbeds, Trajectory


@dataclass(frozen=True, eq=False)
class Region:
    """A style at work on a part of a picture.

    ``slot``: the style adapter in the pack, None for the base model. ``mask`` (h, w) in [0, 1] on the latent grid,
    1 = stylize; None = everywhere. Active at the noise levels stop < t / T <= start. ``injection``: how the content
    steers this style. ``source_prompt``: of a source row under this adapter, None where it is as without.
    """

    slot: int | None
    prompt: PromptEmbeds
    negative_prompt: PromptEmbeds
    guidance_scale: float
    strength: float = 1.0
    mask: torch.Tensor | None = None
    start: float = 1.0
    stop: float = 0.0
    injection: Injection = field(default_factory=NoInjection)
    source_prompt: PromptEmbeds | None = None

    def active(self, timestep: int, num_train_timesteps: int) -> bool:
        return self.stop < timestep / num_train_timesteps <= self.start


@dataclass(frozen=True)
class Canvas:
    """One picture to denoise: where it starts (C, h, w), the content's way, and its regions, later ones on top.

    ``content_slot``, ``source_prompt``: of the source row that all regions share; None = the base model, and the
    prompt that all pictures share.
    """

    latents: torch.Tensor
    content: Trajectory
    regions: tuple[Region, ...]
    content_slot: int | None = None
    source_prompt: PromptEmbeds | None = None


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    canvases: Sequence[Canvas],
    schedule: Schedule,
    source_prompt: PromptEmbeds,
    fusion: Fusion | None = None,
) -> list[torch.Tensor]:
    """Mask-wise DDIM denoising with cross-LoRA injection (the method) -> x_0 of each picture, (C, h, w).

    Args:
        denoiser: ε of the model under its adapters.
        canvases: pictures of equal latent size, made together.
        schedule: the sampling grid; every content trajectory holds its timesteps.
        source_prompt: one row, the conditioning of the source rows ("").
        fusion: how the regions and the content become one picture; by default latents are blended.
    """
    fusion = fusion if fusion is not None else FuseLatents()
    x = [canvas.latents for canvas in canvases]
    num_train_timesteps = len(denoiser.backbone.alphas_cumprod)
    with denoiser.injecting():
        for step, t in enumerate(schedule.timesteps.tolist()):
            moment = Moment(step, len(schedule), t, schedule.alphas[step].item())
            active = [[r for r in canvas.regions if r.active(t, num_train_timesteps)] for canvas in canvases]
            groups = [
                _groups(x_t, canvas, regions, moment, source_prompt)
                for x_t, canvas, regions in zip(x, canvases, active, strict=True)
            ]
            noise_preds = iter(denoiser([group for own in groups for group, _ in own]) if any(groups) else ())
            for i, (canvas, regions) in enumerate(zip(canvases, active, strict=True)):
                noises = {r: e for _, members in groups[i] for r, e in _guided(next(noise_preds), members)}
                now = Step(
                    x_t=x[i],
                    alpha=moment.alpha,
                    alpha_to=schedule.alphas[step + 1].item(),
                    content=canvas.content.at(t),
                    content_to=_next_content(canvas.content, schedule, step),
                    clean=canvas.content.clean,
                )
                x[i] = fusion(now, [noises[r] for r in regions], shares([r.mask for r in regions]))
    return x


@torch.no_grad()
def generate(denoiser: Denoiser, latents: torch.Tensor, schedule: Schedule, region: Region) -> torch.Tensor:
    """Text to image by plain DDIM under one adapter: noise (C, h, w) -> x_0 (C, h, w)."""
    nowhere = Trajectory(schedule.timesteps, latents.expand(len(schedule) + 1, *latents.shape))
    return denoise(denoiser, [Canvas(latents, nowhere, (region,))], schedule, region.negative_prompt)[0]


@dataclass(frozen=True)
class Moment:
    """Step ``step`` of ``num_inference_steps``: the timestep and its ᾱ."""

    step: int
    num_inference_steps: int
    timestep: int
    alpha: float


def _groups(
    x_t: torch.Tensor, canvas: Canvas, regions: list[Region], moment: Moment, source_prompt: PromptEmbeds
) -> list[tuple[Group, list[Region]]]:
    """The rows of one picture at one step: a source, and the negative and positive rows of the regions it steers.

    One source row, under the content adapter or the base, serves every region; only an injection that runs its source
    under the style's own adapter needs one for each.
    """
    t, alpha = moment.timestep, moment.alpha
    shared = [region for region in regions if not region.injection.source_under_style]
    own = [region for region in regions if region.injection.source_under_style]

    def group(
        members: list[Region], slot: int | None, strength: float, prompt: PromptEmbeds | None
    ) -> tuple[Group, list[Region]]:
        rates = [r.injection.rates(moment.step, moment.num_inference_steps, t) for r in members]
        targets = tuple(
            Row(x_t, t, alpha, told, region.slot, region.strength, rate)
            for region, rate in zip(members, rates, strict=True)
            for told in _prompts(region)
        )
        steered = any(rate.active for rate in rates)
        told = source_prompt if prompt is None else prompt
        source = Row(canvas.content.at(t), t, alpha, told, slot, strength) if steered else None
        return Group(source, targets), members

    groups = [group(shared, canvas.content_slot, 1.0, canvas.source_prompt)] if shared else []
    return groups + [group([region], region.slot, region.strength, region.source_prompt) for region in own]


def _prompts(region: Region) -> tuple[PromptEmbeds, ...]:
    """What a region's rows are told; without guidance the negative prompt has no say."""
    return (region.prompt,) if region.guidance_scale == 1 else (region.negative_prompt, region.prompt)


def _guided(noise_preds: torch.Tensor, regions: list[Region]) -> Iterator[tuple[Region, torch.Tensor]]:
    """ε_i = ε_neg + g_i (ε_pos − ε_neg) of each region (Ho and Salimans 2022)."""
    rows = iter(noise_preds)
    for region in regions:
        noise_pred = next(rows)
        if region.guidance_scale != 1:
            noise_pred = noise_pred + region.guidance_scale * (next(rows) - noise_pred)
        yield region, noise_pred


def _next_content(content: Trajectory, schedule: Schedule, step: int) -> torch.Tensor:
    return content.at(int(schedule.timesteps[step + 1])) if step + 1 < len(schedule) else content.clean
