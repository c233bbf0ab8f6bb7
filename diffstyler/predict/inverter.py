"""Pictures -> their trajectories to noise, those not known yet all in one batch, and kept for later pictures."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from PIL import ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from diffstyler.backbones import Backbone
from diffstyler.cuda import send
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.inversion import Clean, invert
from diffstyler.files import atomic_write
from diffstyler.images import MAX_ASPECT, fit_size, image_size, load_image, to_tensor
from diffstyler.predict.adapter_cache import AdapterCache
from diffstyler.predict.adapter_resolver import AdapterFile
from diffstyler.types import Trajectory

#: trajectories that stay in memory
KEPT = 32

#: starts that stay in memory, each a fraction of a trajectory: rows go by content, and all styles come with each
STARTS_KEPT = 512

Key = dict[str, str | int | None]


@dataclass(frozen=True)
class ToInvert:
    """A picture to invert under an adapter, or under the base model, on a grid of ``steps``.

    ``sha256`` and ``size`` (height, width) tell it from others; ``pixels`` opens it, (3, H, W) in [-1, 1].
    ``start_only``: of its trajectory z_T alone is used.
    """

    sha256: str
    size: tuple[int, int]
    pixels: Callable[[], torch.Tensor]
    adapter: AdapterFile | None
    steps: int
    start_only: bool = False


class Inverter:
    """DDIM inversion of pictures under their adapters.

    Args:
        backbone: a loaded model.
        adapters: where their adapters are loaded.
        cache: of what was inverted before.
        refinements: fixed-point refinements of each step.
        settings: what else the trajectories depend on, as plain values.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapters: AdapterCache,
        cache: TrajectoryCache,
        *,
        refinements: int,
        settings: Mapping[str, str | int | None],
    ) -> None:
        self.backbone = backbone
        self.adapters = adapters
        self.cache = cache
        self.refinements = refinements
        self.settings = {"model": backbone.fingerprint(), "refinements": refinements, **settings}

    def __call__(self, denoiser: Denoiser, pictures: Sequence[ToInvert], device: torch.device) -> list[Trajectory]:
        """{z_t} of each picture, on the device; at least z_T where no more is used."""
        names = [_name(self._key(picture)) for picture in pictures]
        distinct: dict[str, ToInvert] = {}
        for name, picture in zip(names, pictures, strict=True):
            if name not in distinct or not picture.start_only:
                distinct[name] = picture
        found = {name: self.cache.get(self._key(own), start_only=own.start_only) for name, own in distinct.items()}
        missing = [name for name, known in found.items() if known is None]

        def grid(name: str) -> tuple[int, tuple[int, int]]:
            return distinct[name].steps, distinct[name].size

        for _, group in groupby(sorted(missing, key=grid), key=grid):
            alike = list(group)
            made = self._invert(denoiser, [distinct[name] for name in alike], device)
            for name, trajectory in zip(alike, made, strict=True):
                self.cache.put(self._key(distinct[name]), trajectory, start_only=distinct[name].start_only)
                found[name] = trajectory
        there = {n: Trajectory(own.timesteps, send(own.latents, device)) for n, own in found.items() if own is not None}
        return [there[name] for name in names]

    def _invert(self, denoiser: Denoiser, pictures: Sequence[ToInvert], device: torch.device) -> list[Trajectory]:
        """Pictures of one size on one grid, each under its own adapter, from E(picture)."""
        clean = [
            Clean(
                self.backbone.encode_image(send(picture.pixels()[None], device))[0],
                self.adapters.embed("", picture.adapter),
                self.adapters.slot(picture.adapter),
            )
            for picture in pictures
        ]
        schedule = self.backbone.sampling_schedule(pictures[0].steps)
        return invert(denoiser, clean, schedule, refinements=self.refinements)

    def _key(self, picture: ToInvert) -> Key:
        return {
            "picture": picture.sha256,
            "size": "x".join(map(str, picture.size)),
            "adapter": picture.adapter.sha256 if picture.adapter else None,
            "steps": picture.steps,
            **self.settings,
        }


def style_to_invert(path: Path, adapter: AdapterFile, *, resolution: int, multiple: int, steps: int) -> ToInvert:
    """A style picture under its own LoRA, at its own aspect, whatever the content is: one inversion serves them all.

    Of a picture longer than the models can take, the middle.
    """
    width, height = image_size(path)
    cut = min(width, MAX_ASPECT * height), min(height, MAX_ASPECT * width)
    size = fit_size(cut, resolution, multiple)
    sha256 = str(adapter.picture)
    return ToInvert(
        sha256,
        size,
        lambda: to_tensor(ImageOps.fit(load_image(path), cut), size),
        adapter,
        steps,
        start_only=True,
    )


class TrajectoryCache:
    """Trajectories found by everything that determines them: the latest in memory, all of them on disk.

    Args:
        folder: where the files lie, one safetensors file each; None keeps nothing on disk.
        in_memory: how many stay in memory.
    """

    def __init__(self, folder: Path | None, *, in_memory: int = KEPT) -> None:
        self.folder = folder
        self.in_memory = in_memory
        self._recent: OrderedDict[str, Trajectory] = OrderedDict()
        self._starts: OrderedDict[str, Trajectory] = OrderedDict()

    def get(self, key: Key, *, start_only: bool = False) -> Trajectory | None:
        """The trajectory stored under this key, or at least its start; None where it is not known.

        A damaged file counts as none.
        """
        name = _name(key)
        recent = self._starts if start_only else self._recent
        if name in recent:
            recent.move_to_end(name)
            return recent[name]
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        try:
            tensors = load_file(path)
        except SafetensorError:
            return None
        return self._remember(name, Trajectory(tensors["timesteps"], tensors["latents"]), start_only)

    def put(self, key: Key, trajectory: Trajectory, *, start_only: bool = False) -> None:
        """Keep it: on disk as it is, in memory its start where no more is used."""
        name = _name(key)
        trajectory = Trajectory(trajectory.timesteps.cpu(), trajectory.latents.cpu().contiguous())
        self._remember(name, trajectory, start_only)
        path = self._path(name)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"timesteps": trajectory.timesteps, "latents": trajectory.latents}
        atomic_write(path, save(tensors, metadata={"key": json.dumps(key, sort_keys=True)}))

    def _remember(self, name: str, trajectory: Trajectory, start_only: bool) -> Trajectory:
        recent, most = (self._starts, STARTS_KEPT) if start_only else (self._recent, self.in_memory)
        if start_only:
            trajectory = Trajectory(trajectory.timesteps[:1].clone(), trajectory.latents[:1].clone())
        recent[name] = trajectory
        while len(recent) > most:
            recent.popitem(last=False)
        return trajectory

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name[:2] / f"{name}.safetensors"


def _name(key: Key) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
