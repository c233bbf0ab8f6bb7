"""Pictures to fit -> the training crops that their latents are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional

from diffstyler.errors import DiffstylerError
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
            if value is not None and not 1 <= value < math.inf:
                raise DiffstylerError(f"crops.{name}: expected a positive number, got {value}")

    def settled(self, rows: int) -> Crops:
        """The same for a fit of so many training rows, its ``count`` a number."""
        return replace(self, count=self.count or min(max(rows // ROWS_A_CROP, 1), MOST_CROPS))

    def side(self, resolution: int, multiple: int) -> int:
        """Of the crops, in pixels: the same for every picture. Arguments as of :func:`take_crops`."""
        short, _ = fit_size((1, 1), self.resolution or resolution, multiple)
        return min((self.crop_size or self.resolution or resolution) // multiple * multiple or multiple, short)


def take_crops(
    paths: Sequence[Path],
    crops: Crops,
    seed: int,
    *,
    resolution: int,
    multiple: int,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Square crops (count, 3, S, S) in [-1, 1], S a multiple of ``multiple`` pixels; the same for the same seed.

    Args:
        paths: of several pictures, ``crops.count`` from each.
        crops: how to crop.
        seed: of places and order.
        resolution: what ``crops.resolution`` = None stands for.
        multiple: of the model.
        mask: (H, W) in [0, 1] at the only picture's size: this part of it is to be learned.

    Returns:
        The crops, and the mask's (count, 1, S, S), each of which holds some of it; None without a mask.
    """
    assert mask is None or len(paths) == 1, "a mask belongs to one picture"
    taken = torch.cat([_crops_of(path, crops, seed, resolution, multiple, mask) for path in paths])
    return taken[:, :3], taken[:, 3:] if mask is not None else None


def _crops_of(
    path: Path, crops: Crops, seed: int, resolution: int, multiple: int, mask: torch.Tensor | None
) -> torch.Tensor:
    """(count, 3, S, S), or (count, 4, S, S) with the mask's crops."""
    image = load_image(path)
    pixels = to_tensor(image, fit_size(image.size, crops.resolution or resolution, multiple))
    side = crops.side(resolution, multiple)
    generator = torch.Generator().manual_seed(seed)
    if mask is not None:
        mask = functional.interpolate(mask[None, None], pixels.shape[1:], mode="area")[0]
        pixels = torch.cat([pixels, mask])
    taken: list[torch.Tensor] = []
    count = crops.count or MOST_CROPS
    for _ in range(MAX_TRIES * count):
        y, x = (_randint(length - side + 1, generator) for length in pixels.shape[1:])
        crop = pixels[:, y : y + side, x : x + side]
        if mask is None or crop[3].mean() >= MIN_SHARE * mask.mean():
            taken.append(crop.flip(-1) if crops.flip and len(taken) % 2 else crop)
        if len(taken) == count:
            break
    assert taken, "some place holds at least the mean"
    return torch.stack(taken)


def _randint(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))
