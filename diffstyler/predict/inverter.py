"""Pictures -> their trajectories to noise, those not known yet all in one batch, and kept for later pictures."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from diffstyler import storage
from diffstyler.backbones import Backbone
from diffstyler.cuda import send
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.inversion import Clean, invert
from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write, sweep
from diffstyler.images import MAX_ASPECT, fit_size, image_size, load_image, to_tensor
from diffstyler.predict.adapter_cache import AdapterCache
from diffstyler.predict.adapter_resolver import AdapterFile
from diffstyler.types import Trajectory

log = logging.getLogger(__name__)

#: trajectories that stay in memory
KEPT = 32

#: starts that stay in memory, each a fraction of a trajectory: rows go by content, and all styles come with each
STARTS_KEPT = 512

Key = dict[str, str | int | None]


@dataclass(frozen=True)
class ToInvert:
    """A picture to invert under an adapter, or under the base model, on a grid of ``steps``.

    ``sha256`` and ``size`` (height, width) tell it from others; ``pixels`` opens it, (3, H, W) in [-1, 1].
    ``start_only``: of its trajectory z_T and z_0 alone are used; of 0 steps, which are both.
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
        on_step: is told after each step how many pictures took it.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapters: AdapterCache,
        cache: TrajectoryCache,
        *,
        refinements: int,
        settings: Mapping[str, str | int | None],
        on_step: Callable[[int], None] = lambda pictures: None,
    ) -> None:
        self.backbone = backbone
        self.adapters = adapters
        self.cache = cache
        self.refinements = refinements
        self.on_step = on_step
        self.settings = {"model": backbone.fingerprint(), "refinements": refinements, **settings}

    def __call__(self, denoiser: Denoiser, pictures: Sequence[ToInvert], device: torch.device) -> list[Trajectory]:
        """{z_t} of each picture, on the device; at least z_T and z_0 where no more is used."""
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
        if pictures[0].steps == 0:
            nowhere = torch.zeros(0, dtype=torch.int64)
            return [Trajectory(nowhere, picture.latents[None]) for picture in clean]
        schedule = self.backbone.sampling_schedule(pictures[0].steps)
        return invert(denoiser, clean, schedule, refinements=self.refinements, on_step=self.on_step)

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
    size = fit_size(_cut(image_size(path)), resolution, multiple)
    sha256 = str(adapter.picture)
    return ToInvert(sha256, size, lambda: to_tensor(style_image(path), size), adapter, steps, start_only=True)


def style_image(path: Path) -> Image.Image:
    """A style picture; of one longer than the models can take, the middle."""
    image = load_image(path)
    return ImageOps.fit(image, _cut(image.size))


def _cut(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    return min(width, MAX_ASPECT * height), min(height, MAX_ASPECT * width)


class TrajectoryCache:
    """Trajectories found by everything that determines them: the latest in memory, all of them on disk.

    Args:
        folder: where the files lie, one safetensors file each; None keeps nothing on disk.
        in_memory: how many stay in memory.
        most_bytes: that the files may take here; those used longest ago go first.
    """

    def __init__(self, folder: Path | None, *, in_memory: int = KEPT, most_bytes: float = math.inf) -> None:
        self.folder = storage.local(folder) if folder is not None else None
        self.in_memory = in_memory
        self.most_bytes = most_bytes
        self._swept = False
        self._size = most_bytes  # of what lies there, not known before it is looked at
        self._recent: OrderedDict[str, Trajectory] = OrderedDict()
        self._starts: OrderedDict[str, Trajectory] = OrderedDict()

    def get(self, key: Key, *, start_only: bool = False) -> Trajectory | None:
        """The trajectory stored under this key, or at least its ends; None where it is not known.

        A file that is not what was put there counts as none, with a warning.
        """
        name = _name(key)
        recent = self._starts if start_only else self._recent
        if name in recent:
            recent.move_to_end(name)
            return recent[name]
        path = self._path(name)
        if path is None or not storage.fetch(path).is_file():
            return None
        try:
            trajectory = _read(path, key)
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # it was used
        except (DiffstylerError, SafetensorError, OSError) as error:
            log.warning("%s is no trajectory of this picture (%s); it is made again", path, error)
            return None
        return self._remember(name, trajectory, start_only)

    def put(self, key: Key, trajectory: Trajectory, *, start_only: bool = False) -> None:
        """Keep it: on disk as it is, in memory its ends where no more is used.

        A disk that does not take it is told, and no more: pictures do not need it.
        """
        name = _name(key)
        trajectory = Trajectory(trajectory.timesteps.cpu(), trajectory.latents.cpu().contiguous())
        self._remember(name, trajectory, start_only)
        path = self._path(name)
        if path is None or not trajectory.latents.isfinite().all():
            return
        tensors = {"timesteps": trajectory.timesteps, "latents": trajectory.latents}
        data = save(tensors, metadata={"key": json.dumps(key, sort_keys=True), "sha256": _sha256(trajectory)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)
            if not self._swept:
                for folder in path.parent.parent.iterdir():
                    sweep(folder)
                self._swept = True
            self._make_room(len(data))
        except OSError as error:
            log.warning("%s cannot be kept (%s); the run goes on without", path, error)

    def _make_room(self, added: int) -> None:
        """Remove the files used longest ago, down to nine tenths of the bound, where they are more than it allows."""
        assert self.folder is not None
        self._size += added
        if self._size <= self.most_bytes:
            return
        there = [(file.stat(), file) for file in self.folder.glob("??/*.safetensors") if file.is_file()]
        self._size = sum(stat.st_size for stat, _ in there)
        if self._size <= self.most_bytes:
            return
        for stat, file in sorted(there, key=lambda one: one[0].st_atime):
            if self._size <= 0.9 * self.most_bytes:
                break
            file.unlink(missing_ok=True)
            self._size -= stat.st_size

    def _remember(self, name: str, trajectory: Trajectory, start_only: bool) -> Trajectory:
        recent, most = (self._starts, STARTS_KEPT) if start_only else (self._recent, self.in_memory)
        if start_only:
            trajectory = Trajectory(trajectory.timesteps[:1].clone(), trajectory.latents[[0, -1]])
        recent[name] = trajectory
        while len(recent) > most:
            recent.popitem(last=False)
        return trajectory

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name[:2] / f"{name}.safetensors"


def _name(key: Key) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _sha256(trajectory: Trajectory) -> str:
    digest = hashlib.sha256()
    for tensor in (trajectory.timesteps, trajectory.latents):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}:".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, key: Key) -> Trajectory:
    """Raises:
    DiffstylerError: it is of another picture, or changed since it was written.
    """
    with safe_open(path, "pt") as file:
        told = file.metadata() or {}
        if told.get("key") != json.dumps(key, sort_keys=True):
            raise DiffstylerError("it is another one's")
        if set(file.keys()) != {"timesteps", "latents"}:
            raise DiffstylerError(f"expected latents and timesteps, got {', '.join(file.keys())}")
        trajectory = Trajectory(file.get_tensor("timesteps"), file.get_tensor("latents"))
    timesteps, latents = trajectory.timesteps, trajectory.latents
    if timesteps.ndim != 1 or latents.ndim != 4 or len(latents) != len(timesteps) + 1:
        raise DiffstylerError(f"its shapes are {tuple(timesteps.shape)} and {tuple(latents.shape)}")
    if told.get("sha256") != _sha256(trajectory) or not latents.isfinite().all():
        raise DiffstylerError("its numbers changed since it was written")
    return trajectory
