"""Measures: zero for equals, growing with difference, blind to what they should not see."""

import torch
from metrics import luminance_ssim, patch_distance


def noise(seed: int, size: int = 48) -> torch.Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_picture_is_at_distance_zero_from_itself():
    assert patch_distance(noise(0), noise(0)) == 0
    assert abs(luminance_ssim(noise(0), noise(0)) - 1) < 1e-5


def test_patch_distance_sees_texture_and_color_but_not_place():
    a = noise(0)
    moved = a.roll((10, 7), dims=(1, 2))
    smooth = torch.nn.functional.avg_pool2d(a[None], 5, 1, 2)[0]
    tinted = (a + torch.tensor([0.4, 0.0, -0.4]).view(3, 1, 1)).clamp(-1, 1)
    assert patch_distance(a, moved) < 0.1 * patch_distance(a, smooth)
    assert patch_distance(a, moved) < 0.1 * patch_distance(a, tinted)


def test_patch_distance_of_constant_pictures_is_the_mean_projection_of_their_difference():
    gray, white = torch.zeros(3, 40, 40), torch.ones(3, 40, 40)
    half = torch.full((3, 40, 40), 0.5)
    assert abs(patch_distance(gray, white) - 2 * patch_distance(gray, half)) < 1e-4


def test_ssim_falls_with_noise():
    a = torch.nn.functional.avg_pool2d(noise(0)[None], 5, 1, 2)[0]
    little, much = a + 0.02 * noise(1), a + 0.3 * noise(1)
    assert 1 > luminance_ssim(a, little) > luminance_ssim(a, much)
