"""How near a picture comes to a style, and how much of its structure is left."""

from __future__ import annotations

import torch
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure


def patch_distance(
    a: torch.Tensor, b: torch.Tensor, *, patch: int = 5, scales: int = 3, projections: int = 128, seed: int = 0
) -> float:
    """Sliced Wasserstein-1 distance between the color patches of two pictures, mean over scales (Rabin et al. 2011).

    Args:
        a: (3, H, W) in [-1, 1].
        b: (3, H', W') in [-1, 1]; its size may differ.
        patch: side of the patches, in pixels.
        scales: how many: the pictures as they are, at half size, at a quarter …
        projections: random directions, the same for the same ``seed``.
    """
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for scale in range(scales):
        directions = torch.randn(3 * patch * patch, projections, generator=generator)
        directions = directions / directions.norm(dim=0)
        values = [_projected(picture, scale, patch, directions) for picture in (a, b)]
        distances.append((values[0] - values[1]).abs().mean())
    return torch.stack(distances).mean().item()


def luminance_ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean structural similarity of luminance, both pictures (3, H, W) in [-1, 1] (Wang et al. 2004)."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    luminance = [((picture[None].float() / 2 + 0.5) * weights).sum(1, keepdim=True) for picture in (a, b)]
    ssim = structural_similarity_index_measure(luminance[0], luminance[1], data_range=1.0)
    assert isinstance(ssim, torch.Tensor)
    return ssim.item()


def _projected(picture: torch.Tensor, scale: int, patch: int, directions: torch.Tensor) -> torch.Tensor:
    """Quantiles (256, projections) of all patches of one picture at one scale, along each direction."""
    small = functional.avg_pool2d(picture[None].float(), 2**scale)
    patches = functional.unfold(small, patch)[0].T  # (patches, 3 · patch²)
    values = (patches @ directions).sort(dim=0).values
    positions = torch.linspace(0, len(values) - 1, 256)
    below, share = positions.floor().long(), (positions % 1)[:, None]
    return values[below].lerp(values[(below + 1).clamp(max=len(values) - 1)], share)
