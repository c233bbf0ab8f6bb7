"""Inversion of many pictures: what is not known runs together, and a style runs once, whatever the contents are."""

import pytest
import torch
from PIL import Image
from runs import pixels, row, stylize

from diffstyler.diffusion import inversion
from diffstyler.diffusion.initial import FromContent, FromStyle
from diffstyler.images import load_image
from diffstyler.predict import inverter
from diffstyler.predict.adapter_resolver import AdapterFile
from diffstyler.predict.inverter import Clean, style_to_invert


@pytest.fixture
def inverted(monkeypatch) -> list[list[tuple[int, ...]]]:
    """The latents' shapes of each batch that was inverted."""
    batches, real = [], inversion.invert

    def invert(denoiser, pictures: list[Clean], *more, **how):
        batches.append([tuple(picture.latents.shape[1:]) for picture in pictures])
        return real(denoiser, pictures, *more, **how)

    monkeypatch.setattr(inverter, "invert", invert)
    return batches


def test_a_style_is_inverted_once_for_contents_of_every_size(studio, tiny_dir, inverted):
    Image.open(studio / "gold.png").resize((96, 64)).save(studio / "wide.png")
    (folder,) = (studio / "loras").glob("gold-*")
    Image.open(studio / "wide.png").save(folder / "thumbnail.png")
    rows = [row(studio, content, style=str(folder), id=content) for content in ("photo", "tall")]
    rows = [r.__class__(r.id, r.content, (r.regions[0].__class__(folder),)) for r in rows]
    stylize(studio, tiny_dir, *rows)
    shapes = [shape for batch in inverted for shape in batch]
    assert shapes.count((8, 12)) == 1  # the style, at its own aspect
    assert sorted(shapes) == [(8, 9), (8, 12), (11, 8)]


@pytest.mark.parametrize("folder", [None, "cache"])
def test_more_styles_than_trajectories_stay_in_memory_are_inverted_once(
    studio, tiny_dir, inverted, monkeypatch, folder
):
    """Rows go by content: each content comes with all styles, and what is least recently used is the next style."""
    monkeypatch.setitem(inverter.TrajectoryCache.__init__.__kwdefaults__, "in_memory", 1)
    rows = [row(studio, content, style) for content in ("photo", "tall") for style in ("gold", "tomato")]
    cache_dir = None if folder is None else studio / folder
    made = stylize(studio, tiny_dir, *rows, cache_dir=cache_dir, num_inference_steps=2)
    assert sum(map(len, inverted)) == 4  # two contents, two styles
    again = stylize(studio, tiny_dir, *rows, out="again", cache_dir=cache_dir, num_inference_steps=2)
    assert sum(map(len, inverted)) == (8 if folder is None else 4)
    assert list(map(pixels, made)) == list(map(pixels, again))


def test_a_batch_is_inverted_together_under_each_ones_adapter(studio, tiny_dir, inverted):
    """Contents and styles of one size, contents twice; alone each gives the same picture."""
    Image.open(studio / "photo.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(studio / "flipped.png")
    rows = [row(studio, content, style) for content in ("photo", "flipped") for style in ("gold", "tomato")]
    how = {"rows_per_call": 4, "num_inference_steps": 2}
    alone = [stylize(studio, tiny_dir, r, out=r.id, **how)[0] for r in rows]
    inverted.clear()
    together = stylize(studio, tiny_dir, *rows, batch_size=4, **how)
    assert sorted(inverted) == [[(8, 8)] * 2, [(8, 9)] * 2]
    assert list(map(pixels, together)) == list(map(pixels, alone))


def test_no_style_is_inverted_that_no_start_needs(studio, tiny_dir, inverted):
    late = row(studio, id="late")
    late = late.__class__(late.id, late.content, (late.regions[0].__class__(late.regions[0].style, start=0.5),))
    stylize(studio, tiny_dir, row(studio), out="content", initial=FromContent())
    stylize(studio, tiny_dir, late)
    assert [len(batch) for batch in inverted] == [1, 1]


def test_a_start_from_the_style_covers_contents_of_every_size(studio, tiny_dir):
    """Larger and smaller than the style picture, and of another aspect."""
    Image.open(studio / "gold.png").resize((160, 64)).save(studio / "long.png")
    rows = [row(studio, content) for content in ("photo", "tall", "long")]
    for made, r in zip(stylize(studio, tiny_dir, *rows, initial=FromStyle()), rows, strict=True):
        assert made.size == load_image(r.content).size


@pytest.mark.parametrize(
    ("size", "expected"), [((96, 64), (64, 96)), ((64, 160), (160, 64)), ((1000, 100), (64, 256)), ((9, 90), (256, 64))]
)
def test_the_middle_of_a_style_that_is_too_long(tmp_path, size, expected):
    path = tmp_path / "style.png"
    picture = Image.new("RGB", size, "red")
    picture.paste("blue", (size[0] // 2 - 4, size[1] // 2 - 4, size[0] // 2 + 4, size[1] // 2 + 4))
    picture.save(path)
    asked = style_to_invert(path, AdapterFile(path, "a", "", "b"), resolution=64, multiple=8, steps=3)
    made = asked.pixels()
    assert asked.size == tuple(made.shape[1:]) == expected
    center = made[:, expected[0] // 2, expected[1] // 2]
    torch.testing.assert_close(center, torch.tensor([-1.0, -1.0, 1.0]), atol=0.2, rtol=0)


def test_a_style_that_is_known_gives_the_same_picture(studio, tiny_dir):
    """Of a known style only the two ends are there: the noise for the start, the picture for the matching."""
    how = {"rows_per_call": 4, "num_inference_steps": 2}
    last = stylize(studio, tiny_dir, row(studio, "tall"), out="alone", **how)
    for cache_dir in (None, studio / "cache", studio / "cache"):
        out = f"again{len(list(studio.iterdir()))}"
        made = stylize(studio, tiny_dir, row(studio), row(studio, "tall"), out=out, cache_dir=cache_dir, **how)
        assert pixels(made[1]) == pixels(last[0])
