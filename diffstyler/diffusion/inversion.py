"""Clean latents -> their way to noise (DDIM inversion)."""

from __future__ import annotations

import torch

from diffstyler.backbones import Schedule
from diffstyler.diffusion.ddim import ddim_step
from diffstyler.diffusion.denoiser import Denoiser, Group, Row
from diffstyler.types import PromptEmbeds, Trajectory


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    latents: list[torch.Tensor],
    schedule: Schedule,
    prompt: PromptEmbeds,
    *,
    slot: int | None = None,
    refinements: int = 0,
) -> list[Trajectory]:
    """DDIM inversion of clean latents z_0, each (C, h, w), without guidance.

    Args:
        denoiser: ε of the model under its adapters.
        latents: one z_0 a picture, of equal size.
        schedule: the grid to walk up.
        prompt: one row of conditioning, shared by all.
        slot: the adapter the inversion runs under, None for the base model.
        refinements: fixed-point steps in which ε is evaluated again on the new z_t (0 … about 5).
    """
    path = [list(latents)]
    alphas, timesteps = schedule.alphas.tolist(), schedule.timesteps.tolist()
    for k in reversed(range(len(schedule))):
        z, t, alpha, alpha_to = path[-1], timesteps[k], alphas[k + 1], alphas[k]

        def noise_at(points: list[torch.Tensor], level: float, t: int = t) -> list[torch.Tensor]:
            rows = [Group(None, (Row(point, t, level, prompt, slot),)) for point in points]
            return [noise_pred[0] for noise_pred in denoiser(rows)]

        noise_pred = noise_at(z, alpha)
        z_up = [ddim_step(x, e, alpha, alpha_to) for x, e in zip(z, noise_pred, strict=True)]
        for _ in range(refinements):
            noise_pred = noise_at(z_up, alpha_to)
            z_up = [ddim_step(x, e, alpha, alpha_to) for x, e in zip(z, noise_pred, strict=True)]
        path.append(z_up)
    return [
        Trajectory(schedule.timesteps, torch.stack([points[i] for points in reversed(path)]))
        for i in range(len(latents))
    ]
