"""Patches of a picture get the style's distribution, where the region is and nowhere else."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch.nn import functional

from diffstyler.diffusion.matching import FEWEST_CELLS, NoMatching, Part, PatchTransport, StyleMatching
from diffstyler.errors import DiffstylerError
from diffstyler.types import NoiseLevel, Step

CELLS = torch.arange(16 * 20).view(16, 20)
LEFT = CELLS[:, :10].flatten()


def step(index: int = 0, time: float = 0.5) -> Step:
    return Step(index, 50, 500, time, NoiseLevel(0.7, 0.7), NoiseLevel(0.8, 0.6))


def drawn(seed: int, size: tuple[int, int] = (16, 20), channels: int = 4) -> torch.Tensor:
    """Neighbors are alike."""
    noise = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(seed))
    return functional.avg_pool2d(noise, 3, stride=1, padding=1)[0]


def style(seed: int = 1, size: tuple[int, int] = (18, 14)) -> torch.Tensor:
    """Of other values, and harder edges."""
    return 2 + 3 * drawn(seed, size).sign() * drawn(seed + 1, size).abs()


def patch_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over random directions of scipy's distance between 3 x 3 patches."""
    directions = torch.randn(30, 9 * len(a), generator=torch.Generator().manual_seed(9))
    values = [directions @ functional.unfold(x[None], 3)[0] for x in (a, b)]
    return float(np.mean([wasserstein_distance(*pair) for pair in zip(*(v.numpy() for v in values), strict=True)]))


def match(matching: StyleMatching, clean: Part, look: Part, strength: float = 1.0, index: int = 0) -> torch.Tensor:
    """Of a picture that is its own content."""
    return matching(step(index), clean, look, strength, clean.latents)


def test_a_channel_gets_the_values_of_the_style_in_its_own_order():
    clean, look = drawn(0, channels=1), style()[:1]
    moved = match(PatchTransport(patch=1), Part(clean), Part(look))
    assert torch.equal(moved.flatten().argsort(), clean.flatten().argsort())
    assert wasserstein_distance(moved.flatten(), look.flatten()) < 0.02 * wasserstein_distance(
        clean.flatten(), look.flatten()
    )
    half = match(PatchTransport(0.5, patch=1), Part(clean), Part(look))
    torch.testing.assert_close(half, (clean + moved) / 2)


@pytest.mark.parametrize("patch", [3, 5])
def test_patches_come_nearer_step_by_step(patch):
    clean, look = drawn(0), style()
    distances = [patch_distance(clean, look)]
    for index in range(8):
        clean = match(PatchTransport(patch=patch), Part(clean), Part(look), index=index)
        distances.append(patch_distance(clean, look))
    assert distances[1] < 0.5 * distances[0]
    assert distances[-1] < 0.9 * distances[1]


def test_what_is_like_the_style_stays():
    look = style()
    moved = match(PatchTransport(), Part(look), Part(look))
    # the windows at the edges are counted, so that a patch is as often there as here
    torch.testing.assert_close(moved, look, atol=0.05 * float(look.std()), rtol=0)


def test_what_is_flat_stays_flat():
    moved = match(PatchTransport(), Part(torch.full((4, 16, 20), 0.3)), Part(style()))
    assert moved[:, 2:-2, 2:-2].std(dim=(1, 2)).max() < 0.01  # at the edges fewer patches are averaged


def test_a_region_is_moved_by_its_own_patches_alone():
    clean, other = drawn(0), drawn(0)
    other[:, :, 12:] += 5  # outside, and no patch of the region sees it
    moved, again = (match(PatchTransport(), Part(c, LEFT), Part(style())) for c in (clean, other))
    assert torch.equal(moved[:, :, 11:], clean[:, :, 11:])  # one cell of a patch reaches over the edge
    assert torch.equal(moved[:, :, :11], again[:, :, :11])
    assert patch_distance(moved[:, :, :10], style()) < 0.5 * patch_distance(clean[:, :, :10], style())


def test_the_contents_order_holds_and_its_values_do_not_come():
    clean, look, content = drawn(0, channels=1), style()[:1], 7 + 4 * drawn(3, channels=1)
    held, free = (
        PatchTransport(patch=1, content_weight=weight)(step(time=1.0), Part(clean), Part(look), 1.0, content)
        for weight in (1.0, 0.0)
    )
    assert torch.equal(held.flatten().argsort(), content.flatten().argsort())
    assert torch.equal(free, match(PatchTransport(patch=1), Part(clean), Part(look)))
    assert wasserstein_distance(held.flatten(), look.flatten()) < 0.02 * wasserstein_distance(
        content.flatten(), look.flatten()
    )


def test_less_of_a_style_brings_less_of_the_content_back():
    clean, content = drawn(0), drawn(3)
    near = PatchTransport(content_weight=1.0)(step(time=1.0), Part(clean), Part(style()), 1e-4, content)
    torch.testing.assert_close(near, clean, atol=1e-2, rtol=0)


def test_the_content_holds_less_as_the_noise_goes():
    clean, content = drawn(0), drawn(3)
    mixed = PatchTransport(content_weight=0.5)(step(time=0.6), Part(clean), Part(style()), 1.0, content)
    torch.testing.assert_close(mixed, match(PatchTransport(), Part(torch.lerp(clean, content, 0.3)), Part(style())))


def test_a_part_of_the_style_picture_is_the_style():
    look = style(size=(16, 20))
    spoiled = look.clone()
    spoiled[:, :, 12:] = 40
    whole, part = (match(PatchTransport(), Part(drawn(0)), Part(s, LEFT)) for s in (look, spoiled))
    assert torch.equal(whole, part)


@pytest.mark.parametrize(
    ("matching", "clean", "strength"),
    [
        (NoMatching(), Part(drawn(0)), 1.0),
        (PatchTransport(0.0), Part(drawn(0)), 1.0),
        (PatchTransport(), Part(drawn(0)), 0.0),
        (PatchTransport(), Part(drawn(0), LEFT[: FEWEST_CELLS - 1]), 1.0),
        (PatchTransport(patch=7), Part(drawn(0, (6, 20))), 1.0),
    ],
)
def test_nothing_is_moved(matching, clean, strength):
    assert matching(step(), clean, Part(style()), strength, drawn(5)) is clean.latents


def test_a_weak_style_pulls_less_and_a_strong_one_no_more():
    clean, look = drawn(0), style()
    whole, half, more = (match(PatchTransport(), Part(clean), Part(look), s) for s in (1.0, 0.5, 2.0))
    torch.testing.assert_close(half, (clean + whole) / 2)
    assert torch.equal(whole, more)


def test_the_number_of_threads_changes_no_bit():
    clean, look, threads = Part(drawn(0, (64, 64), 16)), Part(style()[:1].repeat(16, 1, 1)), torch.get_num_threads()
    made = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            made.append(match(PatchTransport(), clean, look))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*made)


@pytest.mark.parametrize(
    "settings",
    [
        {"rate": 1.1},
        {"rate": -0.1},
        {"content_weight": 1.1},
        {"content_weight": -0.1},
        {"content_weight": None},
        {"patch": 2},
        {"patch": 9},
    ],
)
def test_wrong_settings_are_told(settings):
    with pytest.raises(DiffstylerError, match=f"matching.{next(iter(settings))}: expected"):
        PatchTransport(**settings)
