"""What flows between the modules: frozen dataclasses, from a manifest row to a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

#: what a wrong row means: all are told and nothing is made, or the others are made
OnError = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True)
class StyleRegion:
    """One style for one part of a picture, as the manifest states it.

    ``mask`` is a mask prompt (see ``mask_prompt``) on the content; ``style_mask`` one on the style picture, for the
    part of it that the LoRA learns. ``strength`` scales the style LoRA (0 = base model, 1 = as fitted; 0 … 2).
    ``start`` and ``stop`` bound the part of the denoising in which the style acts, as fractions of the noise level: 1 =
    pure noise, 0 = the finished picture. ``inject_features`` and ``inject_attention`` are the fractions of the steps in
    which the content steers this style. ``style_picture`` is the picture of a style that its LoRA's file names.
    ``None`` means "the default of the run". ``origin`` names the row, where it is another one than its picture's.
    """

    style: Path
    mask: str = "everything"
    prompt: str | None = None
    negative_prompt: str | None = None
    strength: float = 1.0
    guidance_scale: float | None = None
    start: float = 1.0
    stop: float = 0.0
    inject_features: float | None = None
    inject_attention: float | None = None
    style_mask: str = "everything"
    style_picture: Path | None = None
    origin: str = field(default="", compare=False)

    @property
    def look(self) -> tuple[Path, str, Path | None]:
        """What of a style picture, or which LoRA with which picture, the region is to look like."""
        return self.style, self.style_mask, self.style_picture

    @property
    def record(self) -> dict[str, object]:
        """What it states, by name; neither where it stands, nor the picture, which its hash tells."""
        return {name: value for name, value in asdict(self).items() if name not in ("origin", "style_picture")}


@dataclass(frozen=True)
class RowProblem:
    """What is wrong with a row: the ``id`` of its picture, where it stands, and the ``reason``."""

    id: str
    origin: str
    column: str
    reason: str

    def __str__(self) -> str:
        place = self.origin or self.id
        return f"{place}, column '{self.column}': {self.reason}" if self.column else f"{place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Triple:
    """One picture to make: a content picture and the styles of its regions, later regions on top.

    ``origin`` names the manifest row for error messages, such as ``manifest.csv row 3``.
    """

    id: str
    content: Path
    regions: tuple[StyleRegion, ...]
    content_prompt: str = ""
    seed: int = 0
    origin: str = ""


@dataclass(frozen=True)
class PromptEmbeds:
    """Text conditioning of B rows: token embeddings (B, L, D) of the text encoder's last used layer.

    ``pooled`` (B, E): one embedding of the whole prompt, of families that have it.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None

    def __getitem__(self, rows: slice | torch.Tensor | list[int]) -> PromptEmbeds:
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PromptEmbeds:
        return self._each(lambda tensor: tensor.to(device, dtype))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PromptEmbeds:
        return PromptEmbeds(change(self.tokens), None if self.pooled is None else change(self.pooled))

    @staticmethod
    def cat(parts: list[PromptEmbeds]) -> PromptEmbeds:
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return PromptEmbeds(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class NoiseLevel:
    """Where latents are between picture and noise: z = signal · x0 + sigma · ε.

    √ᾱ and √(1−ᾱ) of a diffusion model, 1 − σ and σ of a flow. Numbers, or tensors that broadcast over latents.
    """

    signal: float | torch.Tensor
    sigma: float | torch.Tensor

    def noised(self, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """z of x0 and ε."""
        return self.signal * clean + self.sigma * noise

    def clean(self, noised: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x0 of z and ε."""
        return (noised - self.sigma * noise) / self.signal

    def noise(self, noised: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """ε of z and x0."""
        return (noised - self.signal * clean) / self.sigma

    def to(self, tensor: torch.Tensor) -> NoiseLevel:
        """As tensors of this one's device and dtype."""
        values = (torch.as_tensor(value, dtype=tensor.dtype) for value in (self.signal, self.sigma))
        return NoiseLevel(*(value.to(tensor.device) for value in values))  # some devices have no float64


@dataclass(frozen=True)
class Step:
    """Step ``index`` of ``count``, at ``timestep``, from one noise level to the next.

    ``time`` is the timestep as a fraction of the training timesteps: 1 = pure noise, 0 = the finished picture.
    """

    index: int
    count: int
    timestep: int
    time: float
    level: NoiseLevel
    level_to: NoiseLevel


@dataclass(frozen=True)
class Schedule:
    """A sampling grid: ``timesteps`` (N,) int64, descending; the N + 1 ``levels`` at each of them, then the last."""

    timesteps: torch.Tensor
    levels: tuple[NoiseLevel, ...]
    num_train_timesteps: int

    def __len__(self) -> int:
        return len(self.timesteps)

    def __iter__(self) -> Iterator[Step]:
        for index, timestep in enumerate(self.timesteps.tolist()):
            time = timestep / self.num_train_timesteps
            yield Step(index, len(self), timestep, time, *self.levels[index : index + 2])

    def __getitem__(self, steps: slice) -> Schedule:
        """A part of the grid without gaps."""
        start, stop, _ = steps.indices(len(self))
        return Schedule(self.timesteps[start:stop], self.levels[start : stop + 1], self.num_train_timesteps)


@dataclass(frozen=True)
class Trajectory:
    """A picture on its way to noise: ``latents`` (N + 1, C, h, w), the k-th at ``timesteps[k]``, the last one clean.

    ``timesteps`` (N,) int64, descending.
    """

    timesteps: torch.Tensor
    latents: torch.Tensor

    def at(self, timestep: int) -> torch.Tensor:
        """z_t, (C, h, w)."""
        return self.latents[self.timesteps.tolist().index(timestep)]

    def on(self, schedule: Schedule) -> Trajectory:
        """The part of it on a grid whose timesteps it holds: z_t of step k is then ``latents[k]``."""
        known = self.timesteps.tolist()
        places = [known.index(timestep) for timestep in schedule.timesteps.tolist()]
        return Trajectory(schedule.timesteps, self.latents[[*places, -1]])

    @property
    def clean(self) -> torch.Tensor:
        """z_0, (C, h, w)."""
        return self.latents[-1]


@dataclass(frozen=True)
class Stylized:
    """A finished picture: ``pixels`` (3, H, W) in [-1, 1] at the content's size, and all that made it (plain JSON).

    ``masks``: by the file name that the provenance gives them, (H, W) in [0, 1].
    """

    id: str
    pixels: torch.Tensor
    provenance: dict
    masks: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """A picture that could not be made, and why."""

    id: str
    origin: str
    reason: str
