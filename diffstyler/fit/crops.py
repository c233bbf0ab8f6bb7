"""One picture to fit -> the training crops that its latents are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional

from diffstyler.images import fit_size, load_image, to_tensor

MIN_SHARE = 0.5  # a crop holds at least this share of the mask that the picture holds on average


MAX_TRIES = 50  # for each crop


ROWS_A_CROP = 20  # encoding a crop costs about half as much as training on it once


MOST_CROPS = 16


@dataclass(frozen=True)
class Crops:
    """How training crops are taken from a picture.

    Args:
        resolution: short side, in pixels, that the picture is brought to; None = the model's.
        crop_size: side of the square crops, in pixels; None = ``resolution``.
        count: how many different crops are encoded; each training row is one of them. None = one for every twenty
            rows of the fit, at most 16.
        flip: mirror every second crop.
    """

    resolution: int | None = None
    crop_size: int | None = None
    count: int | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("resolution", "crop_size", "count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"crops.{name}: expected a positive number, got {value}")

    def settled(self, rows: int) -> Crops:
        """The same for a fit of so many training rows, its ``count`` a number."""
        return replace(self, count=self.count or min(max(rows // ROWS_A_CROP, 1), MOST_CROPS))

    def side(self, resolution: int, multiple: int) -> int:
        """Of the crops, in pixels: the same for every picture. Arguments as in :meth:`FitPicture.crops`."""
        short, _ = fit_size((1, 1), self.resolution or resolution, multiple)
        return min((self.crop_size or self.resolution or resolution) // multiple * multiple or multiple, short)


@dataclass(frozen=True)
class FitPicture:
    """A picture that gets a LoRA: ``sha256`` identifies its pixels, ``prompt`` describes it, ``seed`` fixes the fit.

    ``mask`` is a mask prompt: only this part of the picture is learned. ``role`` is "style" or "content". ``others``
    are more pictures of the same LoRA, called ``name``; ``sha256`` is then of all of them. What is left are this
    LoRA's own settings, None = the run's.
    """

    path: Path
    sha256: str
    prompt: str
    seed: int
    role: str = "style"
    steps: int | None = None
    learning_rate: float | None = None
    rank: int | None = None
    alpha: int | None = None
    gradient_clip: float | None = None
    mask: str = "everything"
    resolution: int | None = None
    crop_size: int | None = None
    name: str | None = None
    others: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path, *self.others)

    @property
    def label(self) -> str:
        """What the LoRA is called."""
        return self.name or self.path.stem

    def own_crops(self, run: Crops) -> Crops:
        """How crops are taken from this picture, where ``run`` says how they are taken from all."""
        return replace(run, resolution=self.resolution or run.resolution, crop_size=self.crop_size or run.crop_size)

    def crops(
        self, settings: Crops, *, resolution: int, multiple: int, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Square crops (count, 3, S, S) in [-1, 1], S a multiple of ``multiple`` pixels; the same for the same seed.

        Of several pictures, ``count`` from each.

        Args:
            settings: how to crop.
            resolution: what ``settings.resolution`` = None stands for.
            multiple: of the model.
            mask: (H, W) in [0, 1] at the picture's size: only this part of it is to be learned.

        Returns:
            The crops, and the mask's (count, 1, S, S), each of which holds some of it; None without a mask.
        """
        assert mask is None or not self.others, "a mask belongs to one picture"
        parts = [self._crops_of(path, settings, resolution, multiple, mask) for path in self.paths]
        crops = torch.cat(parts)
        return crops[:, :3], crops[:, 3:] if mask is not None else None

    def _crops_of(
        self, path: Path, settings: Crops, resolution: int, multiple: int, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(count, 3, S, S), or (count, 4, S, S) with the mask's crops."""
        image = load_image(path)
        pixels = to_tensor(image, fit_size(image.size, settings.resolution or resolution, multiple))
        side = settings.side(resolution, multiple)
        generator = torch.Generator().manual_seed(self.seed)
        if mask is not None:
            mask = functional.interpolate(mask[None, None], pixels.shape[1:], mode="area")[0]
            pixels = torch.cat([pixels, mask])
        crops: list[torch.Tensor] = []
        count = settings.count or MOST_CROPS
        for _ in range(MAX_TRIES * count):
            y, x = (_randint(length - side + 1, generator) for length in pixels.shape[1:])
            crop = pixels[:, y : y + side, x : x + side]
            if mask is None or crop[3].mean() >= MIN_SHARE * mask.mean():
                crops.append(crop.flip(-1) if settings.flip and len(crops) % 2 else crop)
            if len(crops) == count:
                break
        assert crops, "some place holds at least the mean"
        return torch.stack(crops)


def _randint(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))
