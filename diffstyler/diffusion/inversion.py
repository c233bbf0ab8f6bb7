"""Clean latents -> their way to noise (DDIM inversion)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diffstyler.diffusion.ddim import ddim_step
from diffstyler.diffusion.denoiser import Denoiser, Group, Row
from diffstyler.types import NoiseLevel, PromptEmbeds, Schedule, Trajectory


@dataclass(frozen=True)
class Clean:
    """z_0 (C, h, w) to invert under one row of conditioning and an adapter's ``slot``, None for the base model."""

    latents: torch.Tensor
    prompt: PromptEmbeds
    slot: int | None = None


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    pictures: Sequence[Clean],
    schedule: Schedule,
    *,
    refinements: int = 0,
    on_step: Callable[[int], None] = lambda pictures: None,
) -> list[Trajectory]:
    """DDIM inversion without guidance, all pictures in the same calls.

    Args:
        denoiser: ε of the model under its adapters.
        pictures: of equal latent size.
        schedule: the grid to walk up.
        refinements: fixed-point steps in which ε is evaluated again on the new z_t (0 … about 5).
        on_step: is told after each step how many pictures took it.
    """

    def noise_pred(latents: torch.Tensor, timestep: int, level: NoiseLevel) -> torch.Tensor:
        rows = [Row(z, timestep, level, p.prompt, p.slot) for z, p in zip(latents, pictures, strict=True)]
        return torch.cat(denoiser([Group(None, (row,)) for row in rows]))

    path = [torch.stack([picture.latents for picture in pictures])]
    for step in reversed(list(schedule)):
        z, level = path[-1], step.level_to
        z_up = z
        for _ in range(1 + refinements):
            z_up = ddim_step(z, noise_pred(z_up, step.timestep, level), step.level_to, step.level)
            level = step.level
        path.append(z_up)
        on_step(len(pictures))
    ways = torch.stack(path[::-1], dim=1)
    return [Trajectory(schedule.timesteps, way) for way in ways]
