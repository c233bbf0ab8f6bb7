"""Content trajectories and styled regions -> latents of the stylized pictures, by fused denoising."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffstyler.backbones import Schedule
from diffstyler.denoiser import Denoiser, Group, Row, ddim_step
from diffstyler.injection import Injection, NoInjection, Rates
from diffstyler.types import PromptEmbeds, Trajectory


@dataclass(frozen=True)
class Region:
    """A style at work on a part of a picture.

    ``slot``: the style adapter in the pack, None for the base model. ``mask`` (h, w) in [0, 1] on the latent grid,
    1 = stylize; None = everywhere. Active at the noise levels stop < t / T <= start.
    """

    slot: int | None
    prompt: PromptEmbeds
    negative_prompt: PromptEmbeds
    guidance_scale: float
    strength: float = 1.0
    mask: torch.Tensor | None = None
    start: float = 1.0
    stop: float = 0.0

    def active(self, timestep: int, num_train_timesteps: int) -> bool:
        return self.stop < timestep / num_train_timesteps <= self.start


@dataclass(frozen=True)
class Canvas:
    """One picture to denoise: where it starts (C, h, w), the content's way, and its regions, later ones on top."""

    latents: torch.Tensor
    content: Trajectory
    regions: tuple[Region, ...]
    content_slot: int | None = None


class InitialLatents(ABC):
    """Where the denoising starts."""

    #: the style picture's own inversion is needed
    needs_style: bool = False

    @abstractmethod
    def __call__(self, content: torch.Tensor, style: torch.Tensor | None, seed: int) -> torch.Tensor:
        """z_T of the content (C, h, w), and of the style or None, and the row's seed -> x_T (C, h, w)."""


class FromContent(InitialLatents):
    """x_T = √(1−n) z_T^c + √n ε: the content's layout, with a share n of fresh noise drawn by the row's seed.

    Args:
        noise: n, 0 … 1; 0 = no noise, every seed gives the same picture.
    """

    def __init__(self, noise: float = 0.0) -> None:
        if not 0 <= noise <= 1:
            raise ValueError(f"initial.noise: expected a share in 0 … 1, got {noise}")
        self.noise = noise

    def __call__(self, content: torch.Tensor, style: torch.Tensor | None, seed: int) -> torch.Tensor:
        if self.noise == 0:
            return content
        fresh = torch.randn(content.shape, generator=torch.Generator().manual_seed(seed)).to(content)
        return (1 - self.noise) ** 0.5 * content + self.noise**0.5 * fresh


class FromContentAdaIN(InitialLatents):
    """The content's z_T with each channel's mean and deviation of the style's (Huang and Belongie 2017, eq. 8)."""

    needs_style = True

    def __call__(self, content: torch.Tensor, style: torch.Tensor | None, seed: int) -> torch.Tensor:
        assert style is not None
        mean, std = content.mean((1, 2), keepdim=True), content.std((1, 2), keepdim=True)
        return (content - mean) / std * style.std((1, 2), keepdim=True) + style.mean((1, 2), keepdim=True)


class FromStyle(InitialLatents):
    """x_T = z_T^s: the style's own noise; the content comes in by injection alone."""

    needs_style = True

    def __call__(self, content: torch.Tensor, style: torch.Tensor | None, seed: int) -> torch.Tensor:
        assert style is not None
        return style


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    canvases: Sequence[Canvas],
    schedule: Schedule,
    injection: Injection,
    source_prompt: PromptEmbeds,
) -> list[torch.Tensor]:
    """Mask-wise DDIM denoising with cross-LoRA injection (the method) -> x_0 of each picture, (C, h, w).

    Args:
        denoiser: ε of the model under its adapters.
        canvases: pictures of equal latent size, made together.
        schedule: the sampling grid; every content trajectory holds its timesteps.
        injection: how content steers style.
        source_prompt: one row, the conditioning of the source rows ("").
    """
    x = [canvas.latents for canvas in canvases]
    num_train_timesteps = len(denoiser.backbone.alphas_cumprod)
    with denoiser.injecting():
        for step, t in enumerate(schedule.timesteps.tolist()):
            alpha, alpha_to = schedule.alphas[step].item(), schedule.alphas[step + 1].item()
            rates = injection.rates(step, len(schedule), t)
            active = [[r for r in canvas.regions if r.active(t, num_train_timesteps)] for canvas in canvases]
            groups = [
                group
                for x_t, canvas, regions in zip(x, canvases, active, strict=True)
                for group in _groups(x_t, canvas, regions, t, alpha, rates, injection, source_prompt)
            ]
            noise_preds = iter(denoiser(groups)) if groups else iter(())
            for i, (canvas, regions) in enumerate(zip(canvases, active, strict=True)):
                noises = _guided(noise_preds, regions, injection)
                styled = [ddim_step(x[i], noise_pred, alpha, alpha_to) for noise_pred in noises]
                x[i] = _fuse(styled, regions, _next_content(canvas.content, schedule, step))
    return x


@torch.no_grad()
def generate(denoiser: Denoiser, latents: torch.Tensor, schedule: Schedule, region: Region) -> torch.Tensor:
    """Text to image by plain DDIM under one adapter: noise (C, h, w) -> x_0 (C, h, w)."""
    nowhere = Trajectory(schedule.timesteps, latents.expand(len(schedule) + 1, *latents.shape))
    return denoise(denoiser, [Canvas(latents, nowhere, (region,))], schedule, NoInjection(), region.negative_prompt)[0]


def _groups(
    x_t: torch.Tensor,
    canvas: Canvas,
    regions: list[Region],
    t: int,
    alpha: float,
    rates: Rates,
    injection: Injection,
    source_prompt: PromptEmbeds,
) -> list[Group]:
    """The rows of one picture at one step: source, then negative and positive rows of each active region."""

    def source(slot: int | None, strength: float) -> Row | None:
        if not rates.active:
            return None
        return Row(canvas.content.at(t), t, alpha, source_prompt, slot, strength)

    def targets(region: Region) -> tuple[Row, ...]:
        prompts = (region.prompt,) if region.guidance_scale == 1 else (region.negative_prompt, region.prompt)
        return tuple(Row(x_t, t, alpha, prompt, region.slot, region.strength, rates) for prompt in prompts)

    if injection.source_under_style:
        return [Group(source(region.slot, region.strength), targets(region)) for region in regions]
    rows = tuple(row for region in regions for row in targets(region))
    return [Group(source(canvas.content_slot, 1.0), rows)] if rows else []


def _guided(noise_preds, regions: list[Region], injection: Injection) -> list[torch.Tensor]:  # noqa: ANN001
    """ε_i = ε_neg + g_i (ε_pos − ε_neg) of each region (Ho and Salimans 2022)."""
    if not regions:
        return []
    if injection.source_under_style:
        rows = [row for _ in regions for row in next(noise_preds)]
    else:
        rows = list(next(noise_preds))
    guided = []
    for region in regions:
        if region.guidance_scale == 1:
            guided.append(rows.pop(0))
        else:
            negative, positive = rows.pop(0), rows.pop(0)
            guided.append(negative + region.guidance_scale * (positive - negative))
    return guided


def _fuse(styled: list[torch.Tensor], regions: list[Region], outside: torch.Tensor) -> torch.Tensor:
    """x_t' = Σ M_i y_i + (1 − Σ M_i) z_t'^c; a later region covers an earlier one where they overlap."""
    fused = outside
    for y, region in zip(styled, regions, strict=True):
        fused = y if region.mask is None else torch.lerp(fused, y, region.mask.to(y))
    return fused


def _next_content(content: Trajectory, schedule: Schedule, step: int) -> torch.Tensor:
    return content.at(int(schedule.timesteps[step + 1])) if step + 1 < len(schedule) else content.clean
