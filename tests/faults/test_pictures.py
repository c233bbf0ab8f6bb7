"""Pictures as disks and cameras leave them: each is read as it looks, or is a row's own error, by its header too."""

import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffstyler.images import ImageError, image_size, load_image

BAD_EXIF = {
    "garbage": b"Exif\0\0garbage",
    "no header": b"Exif\0\0\0\0\0\0\0\0\0\0",
    "cut": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12",
    "an offset beyond the end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "orientation as text": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
    "orientation 99": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    "orientation 0": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0",
    "empty": b"Exif\0\0",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("kind", BAD_EXIF)
def test_bad_exif_leaves_the_picture_as_it_is(tmp_path, kind, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (40, 24), "red").save(path, exif=BAD_EXIF[kind])
    assert load_image(path).size == image_size(path) == (40, 24)


@pytest.mark.parametrize("read", [load_image, image_size])
@pytest.mark.parametrize("error", [SyntaxError("not a TIFF file"), struct.error("cut"), KeyError(274), OverflowError()])
def test_unreadable_exif_is_told(tmp_path, caplog, monkeypatch, read, error):
    """Which files raise what changes with every version of Pillow."""

    def getexif(self: Image.Image) -> Image.Exif:
        raise error

    path = tmp_path / "a.jpg"
    Image.new("RGB", (40, 24), "red").save(path)
    monkeypatch.setattr(Image.Image, "getexif", getexif)
    with caplog.at_level(logging.WARNING):
        read(path)
    assert f"{path}: its EXIF data cannot be read" in caplog.text


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_header_tells_the_size_that_the_picture_has(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (40, 24), "red").save(path, exif=exif)
    assert load_image(path).size == image_size(path) == ((24, 40) if orientation > 4 else (40, 24))


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def broken(path: Path, kind: str) -> None:
    sides = {"100 megapixels": (10_000, 10_000), "200 megapixels": (20_000, 10_000), "bomb": (2**31 - 1, 2**31 - 1)}
    if kind in sides:
        path.write_bytes(png_header(*sides[kind]))
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to nothing":
        path.symlink_to(path.with_name("gone"))
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"a picture", "header alone": png_header(8, 8)[:20]}[kind])


BROKEN = (
    *("100 megapixels", "200 megapixels", "bomb", "missing", "empty", "text", "header alone", "folder", "pipe"),
    *("link to nothing", "link to itself"),
)


@pytest.mark.parametrize("read", [load_image, image_size])
@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_told_by_its_path(tmp_path, kind, read):
    path = tmp_path / "a.png"
    broken(path, kind)
    with pytest.raises(ImageError, match=r"a\.png: expected "):
        read(path)


def jpeg(path: Path, **options) -> bytearray:
    """A picture with detail everywhere, written in one of the ways that there are."""
    levels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    mode = options.pop("mode", "RGB")
    Image.fromarray(levels).convert(mode).save(path, "JPEG", **options)
    return bytearray(path.read_bytes())


WRITTEN = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 4},
    "gray": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "RGB": {"keep_rgb": True},
    "4:4:4": {"subsampling": 0},
}


@pytest.mark.parametrize("damage", [b"", b"\0" * 600], ids=["lost", "zeroed"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_a_jpeg_with_damaged_data_is_told_however_it_was_written(tmp_path, kind, damage):
    path = tmp_path / "a.jpg"
    data = jpeg(path, **WRITTEN[kind])
    load_image(path)
    middle = len(data) // 2
    data[middle : middle + 600] = damage
    path.write_bytes(data)
    with Image.open(path) as file:
        file.load()  # Pillow says nothing
    with pytest.raises(ImageError, match=r"a\.jpg: expected a whole picture, got damaged data \(.*\); copy it"):
        load_image(path)


def test_what_follows_a_jpeg_is_no_damage(tmp_path):
    """Cameras put previews, depth and videos there."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(path) + b"a video" * 100)
    assert load_image(path).size == (128, 96)


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_of_an_animation_the_first_frame_alone_is_decoded(tmp_path, monkeypatch, suffix):
    path, opened = tmp_path / f"a.{suffix}", []
    colors = [Image.new("RGB", (40, 24), (255, shade, 0)) for shade in range(0, 240, 8)]
    colors[0].save(path, save_all=True, append_images=colors[1:])
    with Image.open(path) as animation:
        assert animation.n_frames == len(colors)
        kind, seek = type(animation), type(animation).seek
    monkeypatch.setattr(kind, "seek", lambda self, frame: opened.append(frame) or seek(self, frame))
    assert load_image(path).getpixel((0, 0)) == pytest.approx((255, 0, 0), abs=8)
    assert set(opened) <= {0}
