"""Points that grow a region: the thing under them, to its edges, and never the whole picture unasked."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from diffstyler.masking.region import grow_region

GROUND, DISK, BAR = (90, 110, 70), (200, 60, 40), (60, 80, 190)


@pytest.fixture(scope="module", params=[(200, 160), (90, 120), (700, 500)], ids=str)
def scene(request) -> tuple[Image.Image, torch.Tensor, torch.Tensor]:
    """A disk and a bar on a ground, all of them grainy and lit from the left, with the masks of both."""
    width, height = request.param
    masks = [Image.new("L", request.param) for _ in range(2)]
    ImageDraw.Draw(masks[0]).ellipse([0.1 * width, 0.2 * height, 0.45 * width, 0.7 * height], fill=255)
    ImageDraw.Draw(masks[1]).rectangle([0.6 * width, 0.1 * height, 0.9 * width, 0.9 * height], fill=255)
    picture = Image.new("RGB", request.param, GROUND)
    for mask, color in zip(masks, (DISK, BAR), strict=True):
        picture.paste(color, mask=mask)
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 1)) + np.linspace(15, -15, width)[None, :, None]
    grainy = Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
    return grainy, *(torch.from_numpy(np.asarray(mask) > 0) for mask in masks)


def iou(found: torch.Tensor, expected: torch.Tensor) -> float:
    inside = found > 0
    return ((inside & expected).sum() / (inside | expected).sum()).item()


def at(picture: Image.Image, x: float, y: float) -> tuple[float, float]:
    return x * picture.width, y * picture.height


def test_a_point_finds_its_thing(scene):
    picture, disk, bar = scene
    for point, thing in ((at(picture, 0.3, 0.5), disk), (at(picture, 0.7, 0.3), bar)):
        found = grow_region(picture, [point], [])
        assert found.shape == (picture.height, picture.width)
        assert set(found.unique().tolist()) == {0.0, 1.0}
        assert iou(found, thing) > 0.9


def test_several_points_find_several_things(scene):
    picture, disk, bar = scene
    found = grow_region(picture, [at(picture, 0.3, 0.5), at(picture, 0.7, 0.3)], [])
    assert iou(found, disk | bar) > 0.9


def test_negative_points_keep_their_thing_out(scene):
    picture, disk, bar = scene
    sides = [at(picture, 0.05, 0.9), at(picture, 0.95, 0.5)]
    ground = grow_region(picture, sides, [at(picture, 0.3, 0.5), at(picture, 0.7, 0.3)])
    assert iou(ground, ~(disk | bar)) > 0.9
    x, y = (int(value) for value in at(picture, 0.7, 0.3))
    assert ground[y, x] == 0


def test_it_answers_the_same_each_time(scene):
    picture, point = scene[0], at(scene[0], 0.3, 0.5)
    assert torch.equal(grow_region(picture, [point], []), grow_region(picture, [point], []))


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (64, 64), (300, 8)])
def test_a_plain_picture_is_no_error_and_the_point_is_in(size):
    found = grow_region(Image.new("RGB", size, "teal"), [size], [])  # the far corner
    assert found[-1, -1] == 1
    assert size[0] * size[1] < 100 or found.mean() <= 0.6
