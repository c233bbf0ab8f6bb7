"""Every kind of picture file comes in as it looks; broken ones say so; what is written is whole."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from diffstyler.files import atomic_write, file_sha256
from diffstyler.images import ImageError, fit_size, load_image, picture_sha256, save_image, to_image, to_tensor

HEIGHT, WIDTH = 24, 40


@pytest.fixture
def picture():
    """Random pixels (H, W, 3). Not an Image: Pillow's encoders leave their settings in what they have saved."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"), [("a.png", {}), ("a.tif", {}), ("a.bmp", {}), ("a.webp", {"lossless": True})]
)
def test_lossless_formats_are_loaded_exactly(tmp_path, picture, name, options):
    image = load_image(save(tmp_path / name, Image.fromarray(picture), **options))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), picture)
    assert picture_sha256(image) == picture_sha256(Image.fromarray(picture))


def test_jpeg_is_loaded_upright_once_and_without_metadata(tmp_path):
    halves = np.zeros((32, 64, 3), np.uint8)
    halves[:, :32] = 255  # left half white; orientation 6 = turn a quarter clockwise: top half white
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load_image(save(tmp_path / "a.jpg", Image.fromarray(halves), exif=exif, quality=95))
    assert image.size == (32, 64)
    assert np.asarray(image)[:28].min() > 240
    assert np.asarray(image)[36:].max() < 15
    assert not image.info
    assert load_image(save(tmp_path / "b.png", image)).size == (32, 64)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path, name):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    image = load_image(save(tmp_path / name, Image.fromarray(levels * 257)))
    assert np.array_equal(np.asarray(image), np.repeat(levels[..., None], 3, axis=2))


@pytest.mark.parametrize(("mode", "fill"), [("F", 0.5), ("I", 70000), ("I", -1)])
def test_pixels_without_a_known_white_are_refused(tmp_path, mode, fill):
    path = save(tmp_path / "a.tif", Image.new(mode, (4, 4), fill))
    with pytest.raises(ImageError, match=r"no known white\); save it again as 8-bit PNG or JPEG"):
        load_image(path)


def palette_image(index: int) -> Image.Image:
    image = Image.new("P", (4, 4), index)
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60, 70, 80, 90])
    return image


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), {}),
        (Image.new("LA", (4, 4), (0, 0)), {}),
        (palette_image(3), {"transparency": 3}),
        (Image.new("RGB", (4, 4), (1, 2, 3)), {"transparency": (1, 2, 3)}),
    ],
    ids=["RGBA", "LA", "P", "RGB"],
)
def test_transparent_pixels_show_white_and_not_their_hidden_color(tmp_path, image, options):
    assert load_image(save(tmp_path / "a.png", image, **options)).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGBA", (4, 4), (255, 0, 0, 51)))
    assert load_image(path).getpixel((0, 0)) == (255, 204, 204)


def test_cmyk_palette_and_bitmap_become_rgb(tmp_path):
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    assert load_image(save(tmp_path / "a.tif", cmyk)).getpixel((0, 0)) == (255, 0, 0)
    assert load_image(save(tmp_path / "a.png", palette_image(1))).getpixel((0, 0)) == (10, 20, 30)
    assert load_image(save(tmp_path / "b.png", Image.new("1", (4, 4), 1))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_first_frame_of_many_with_a_warning(tmp_path, caplog, suffix):
    first, second = (Image.new("RGB", (8, 8), color) for color in ("white", "black"))
    path = save(tmp_path / f"a.{suffix}", first, save_all=True, append_images=[second])
    with caplog.at_level(logging.WARNING):
        assert load_image(path).getpixel((0, 0)) == (255, 255, 255)
    assert caplog.messages == [f"{path} has 2 frames; only the first one is used"]


def test_photos_with_an_embedded_preview_are_no_animations(tmp_path, caplog, picture):
    path = tmp_path / "a.jpg"
    save(path, Image.fromarray(picture), format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert load_image(path).size == (WIDTH, HEIGHT)
    assert not caplog.messages


def test_wrong_files_say_what_to_do(tmp_path, picture, monkeypatch):
    expected = "expected a picture (PNG, JPEG, WEBP, TIFF, BMP or GIF)"
    empty, text, eps = (tmp_path / name for name in ("empty.png", "text.png", "a.eps"))
    empty.touch()
    text.write_text("not a picture")
    Image.fromarray(picture).save(eps)
    whole = save(tmp_path / "whole.png", Image.fromarray(picture))
    cases = {
        tmp_path / "no.png": f"{expected}, found no such file; check the path",
        tmp_path: f"{expected}, got a folder; name a file in it",
        empty: f"{expected}, got an empty file; convert it, for example to PNG",
        text: f"{expected}, got something else; convert it, for example to PNG",
        eps: f"{expected}, got something else; convert it, for example to PNG",
        whole: "expected at most 100 pixels, got more; scale the picture down",
    }
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for path, message in cases.items():
        with pytest.raises(ImageError) as error:
            load_image(path)
        assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "gif"])
def test_truncated_files_are_refused(tmp_path, picture, suffix):
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(picture))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ImageError, match=rf"a\.{suffix}: expected a complete picture, but reading it failed"):
        load_image(path)


def test_hashes_tell_pictures_and_files_apart(tmp_path, picture):
    image = Image.fromarray(picture)
    a, b = save(tmp_path / "a.png", image), save(tmp_path / "b.png", image, compress_level=0)
    assert file_sha256(a) != file_sha256(b)
    assert picture_sha256(load_image(a)) == picture_sha256(load_image(b))
    assert picture_sha256(image) != picture_sha256(image.rotate(180))
    black = [Image.new("RGB", size) for size in ((2, 8), (4, 4), (8, 2))]
    assert len({picture_sha256(image) for image in black}) == 3
    a.write_bytes(b"abc")
    assert file_sha256(a) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_tensors_hold_every_level_and_give_it_back(picture):
    pixels = to_tensor(Image.fromarray(picture))
    assert pixels.shape == (3, HEIGHT, WIDTH)
    assert pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert np.array_equal(np.asarray(to_image(pixels)), picture)


def test_sizes_are_height_and_width(picture):
    pixels = to_tensor(Image.fromarray(picture), (16, 8))
    assert pixels.shape == (3, 16, 8)
    assert pixels.abs().max() <= 1
    assert to_image(pixels, (5, 7)).size == (7, 5)


def test_to_image_clamps_but_does_not_hide_a_failed_decoder():
    assert to_image(torch.full((3, 2, 2), 1.7, dtype=torch.bfloat16)).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ValueError, match="got NaN or infinity: decode in float32 or bfloat16"):
        to_image(torch.full((3, 2, 2), torch.nan))


@pytest.mark.parametrize(
    ("width_height", "resolution", "multiple", "expected"),
    [
        ((512, 512), 512, 64, (512, 512)),
        ((1200, 800), 512, 64, (512, 768)),
        ((800, 1200), 512, 64, (768, 512)),
        ((1920, 1080), 512, 8, (512, 912)),
        ((4000, 1000), 512, 8, (512, 2048)),
        ((3000, 2000), 96, 64, (128, 192)),  # each side alone would give 128 x 128
        ((10, 10), 20, 64, (64, 64)),
    ],
)
def test_fit_size(width_height, resolution, multiple, expected):
    assert fit_size(width_height, resolution, multiple) == expected


@pytest.mark.parametrize("width_height", [(4001, 1000), (1, 5)])
def test_extreme_aspects_are_refused(width_height):
    width, height = width_height
    with pytest.raises(ImageError, match=f"expected an aspect of at most 4:1, got {width} x {height} pixels; crop"):
        fit_size(width_height, 512, 8)


def test_saved_pictures_are_whole_png(tmp_path, picture):
    save_image(Image.fromarray(picture), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), picture)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic_write(path, b"old")

    def full_disk(descriptor):
        raise OSError(28, "no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
