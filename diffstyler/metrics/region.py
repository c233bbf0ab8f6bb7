"""What happened at the borders of masks, and outside them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from diffstyler.images import bands, to_tensor
from diffstyler.metrics.base import LUMINANCE, Metric, Sample


class OutsideDifference(Metric):
    """Largest and mean difference from the content where no mask reaches, in gray levels of the written picture.

    No network. Of pictures with masks, at the content's own size, over pixels that no mask touches; the largest is over
    channels too. 0 … 255, less is better; 0 = the content's own pixels.
    """

    figures: ClassVar = {"outside_largest": False, "outside_mean": False}

    def __call__(self, sample: Sample) -> dict[str, float]:
        cover = _cover(sample)
        if cover is None or not (cover == 0).any():
            return {}
        content, result = (np.asarray(image).astype(int) for image in (sample.content_image, sample.result_image))
        difference = torch.from_numpy(np.abs(result - content))[cover == 0].float()
        return {"outside_largest": difference.max().item(), "outside_mean": difference.mean().item()}


class SeamEnergy(Metric):
    """Luminance gradient of the result across the masks' borders over the content's own there, see :func:`seam`.

    No network. 1 = as the content, less is better; far above 1 a border shows.
    """

    figures: ClassVar = {"seam": False}

    def __call__(self, sample: Sample) -> dict[str, float]:
        cover = _cover(sample)
        energy = None if cover is None else seam(sample.content_image, sample.result_image, cover)
        return {"seam": energy["result"] / energy["content"]} if energy is not None and energy["content"] > 0 else {}


def seam(
    content: Image.Image | torch.Tensor, result: Image.Image | torch.Tensor, mask: torch.Tensor
) -> dict[str, float] | None:
    """How strong the luminance gradient is along a mask's border, in the content and in the result.

    Args:
        content: RGB, or (3, H, W) in [-1, 1].
        result: the same size.
        mask: (H, W) in [0, 1].

    Returns:
        Mean gradient across the border (the component along the mask's own gradient) in gray levels (0 … 255) a pixel,
        over all pixels where the mask changes; None where it changes nowhere.
    """
    pictures, height = {"content": content, "result": result}, len(mask)
    sums, count = dict.fromkeys(pictures, 0.0), 0
    for rows in bands(height):
        near = slice(max(rows.start - 1, 0), min(rows.stop + 1, height))  # derivatives reach one row farther
        own = slice(rows.start - near.start, rows.stop - near.start)
        across = _gradient(mask[near])[:, own]
        strength = across.norm(dim=0)
        border = strength > 0
        direction = across[:, border] / strength[border]
        count += int(border.sum())
        for name, picture in pictures.items():
            along = (_gradient(_luminance(picture, near))[:, own][:, border] * direction).sum(0)
            sums[name] += along.abs().sum(dtype=torch.float64).item()
    return {name: round(total / count, 3) for name, total in sums.items()} if count else None


def _luminance(picture: Image.Image | torch.Tensor, rows: slice) -> torch.Tensor:
    """Of some rows, (h, W), in gray levels."""
    if isinstance(picture, Image.Image):
        picture, rows = to_tensor(picture.crop((0, rows.start, picture.width, rows.stop))), slice(None)
    return (picture[:, rows].float() * 127.5 * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(0)


def _cover(sample: Sample) -> torch.Tensor | None:
    """How much of each pixel any style has, (H, W); None where one has all."""
    masks = [region.mask for region in sample.regions]
    if not masks or any(mask is None for mask in masks):
        return None
    return torch.stack([mask for mask in masks if mask is not None]).amax(0)


def _gradient(picture: torch.Tensor) -> torch.Tensor:
    """(H, W) -> its derivatives (2, H, W) along y and x, by central differences."""
    return torch.stack(torch.gradient(picture.float()))
