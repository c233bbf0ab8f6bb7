"""One picture to fit -> the training crops that its latents are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from diffstyler.images import fit_size, load_image, to_tensor


@dataclass(frozen=True)
class Crops:
    """How training crops are taken from a picture.

    Args:
        resolution: short side, in pixels, that the picture is brought to; None = the model's.
        crop_size: side of the square crops, in pixels; None = ``resolution``.
        count: how many different crops are encoded; each training row is one of them.
        flip: mirror every second crop.
    """

    resolution: int | None = None
    crop_size: int | None = None
    count: int = 16
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("resolution", "crop_size", "count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"crops.{name}: expected a positive number, got {value}")


@dataclass(frozen=True)
class FitPicture:
    """A picture that gets a LoRA: ``sha256`` identifies its pixels, ``prompt`` describes it, ``seed`` fixes the fit.

    ``role`` is "style" or "content"; the others are this LoRA's own settings, None = the run's.
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

    def crops(self, settings: Crops, *, resolution: int, multiple: int) -> torch.Tensor:
        """Square crops (count, 3, S, S) in [-1, 1], S a multiple of ``multiple`` pixels; the same for the same seed.

        Args:
            settings: how to crop.
            resolution: what ``settings.resolution`` = None stands for.
            multiple: of the model.
        """
        short = settings.resolution or resolution
        image = load_image(self.path)
        pixels = to_tensor(image, fit_size(image.size, short, multiple))
        side = min((settings.crop_size or short) // multiple * multiple or multiple, *pixels.shape[1:])
        generator = torch.Generator().manual_seed(self.seed)
        crops = []
        for index in range(settings.count):
            y, x = (_randint(length - side + 1, generator) for length in pixels.shape[1:])
            crop = pixels[:, y : y + side, x : x + side]
            crops.append(crop.flip(-1) if settings.flip and index % 2 else crop)
        return torch.stack(crops)


def _randint(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))
