"""Clean latents -> their way to noise (DDIM inversion), and the cache of such trajectories."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from diffstyler.backbones import Schedule
from diffstyler.denoiser import Denoiser, Group, Row, ddim_step
from diffstyler.images import atomic_write
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


class TrajectoryCache:
    """Trajectories found by everything that determines them: the latest in memory, all of them on disk.

    Args:
        folder: where the files lie, one safetensors file each; None keeps nothing on disk.
        in_memory: how many stay in memory.
    """

    def __init__(self, folder: Path | None, *, in_memory: int = 64) -> None:
        self.folder = folder
        self.in_memory = in_memory
        self._recent: OrderedDict[str, Trajectory] = OrderedDict()

    def get(self, key: dict[str, str | int | None]) -> Trajectory | None:
        """The trajectory stored under this key, or None. A damaged file counts as none."""
        name = _name(key)
        if name in self._recent:
            self._recent.move_to_end(name)
            return self._recent[name]
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        try:
            tensors = load_file(path)
        except SafetensorError:
            return None
        return self._remember(name, Trajectory(tensors["timesteps"], tensors["latents"]))

    def put(self, key: dict[str, str | int | None], trajectory: Trajectory) -> None:
        name = _name(key)
        trajectory = self._remember(name, Trajectory(trajectory.timesteps.cpu(), trajectory.latents.cpu().contiguous()))
        path = self._path(name)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"timesteps": trajectory.timesteps, "latents": trajectory.latents}
        atomic_write(path, save(tensors, metadata={"key": json.dumps(key, sort_keys=True)}))

    def _remember(self, name: str, trajectory: Trajectory) -> Trajectory:
        self._recent[name] = trajectory
        while len(self._recent) > self.in_memory:
            self._recent.popitem(last=False)
        return trajectory

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name[:2] / f"{name}.safetensors"


def _name(key: dict[str, str | int | None]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
