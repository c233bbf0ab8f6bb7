"""Pictures -> their trajectories to noise, kept for later pictures."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from diffstyler.files import atomic_write
from diffstyler.types import Trajectory


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
