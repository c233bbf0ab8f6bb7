"""Picture files in, upright RGB images and tensors out, and back to files that are never half-written."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from diffstyler import storage
from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
WEIGHTS = frozenset({".safetensors", ".pt", ".pth", ".ckpt", ".bin"})
BAND = 512  # rows
MAX_ASPECT = 4  # beyond it the models repeat their subject along the long side
_EXPECTED = f"expected a picture ({', '.join(FORMATS[:-1])} or {FORMATS[-1]})"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what makes it upright
_log = logging.getLogger(__name__)


class ImageError(DiffstylerError):
    """A picture that cannot be used; the text says which one, what was expected, and what to do."""


def load_image(path: Path) -> Image.Image:
    """The picture as it should look: RGB, upright, on white where it is transparent, without metadata.

    16-bit gray is scaled to 8 bits. Of an animation or a document of many pages, the first frame is taken, with a
    warning. Color profiles are not applied.

    Raises:
        ImageError: where the file is missing, empty, truncated, damaged, too large, or not one of ``FORMATS``.
    """
    with opened(path) as picture:
        return _on_white(eight_bit(picture))


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The first frame of a picture file, upright, in the file's own mode; what is wrong with it becomes an ImageError.

    EXIF data that cannot be read are left out, with a warning.

    Raises:
        ImageError: as of :func:`load_image`; whatever is raised inside, too, is a fault of the file.
    """
    with _faults_told(path), Image.open(path, formats=FORMATS) as file:
        frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)  # MPO: a photo and its previews
        file.load()
        if file.format in ("JPEG", "MPO"):
            _check_jpeg(path)
        turn = _TURNS.get(_orientation(file, path))
        yield file if turn is None else file.transpose(turn)
    if frames > 1:
        _log.warning("%s has %d frames; only the first one is used", path, frames)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright picture, by its header alone.

    Raises:
        ImageError: where the file is missing, or its header cannot be read.
    """
    with _faults_told(path), Image.open(path, formats=FORMATS) as file:
        is_turned = file.format != "TIFF" and _orientation(file, path) >= 5  # Pillow turns TIFF by itself
        return (file.height, file.width) if is_turned else file.size


@contextmanager
def _faults_told(path: Path) -> Iterator[None]:
    try:
        storage.fetch(path)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ImageError(f"{path}: {_EXPECTED}, got a pipe or device; name a file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except DiffstylerError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path}: {_EXPECTED}, found no such file; check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path}: {_EXPECTED}, got a folder; name a file in it") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise ImageError(f"{path}: expected {limit}, got more; scale the picture down") from error
    except UnidentifiedImageError as error:
        got = "an empty file" if path.stat().st_size == 0 else "something else"
        raise ImageError(f"{path}: {_EXPECTED}, got {got}; convert it, for example to PNG") from error
    except Exception as error:  # the decoders raise all kinds of errors on broken files
        cure = "save it again as 8-bit PNG or JPEG"
        raise ImageError(f"{path}: expected a complete picture, but reading it failed ({error}); {cure}") from error


def _check_jpeg(path: Path) -> None:
    """Pillow says nothing of data that do not decode to the end: what follows in the picture is noise.

    Raises:
        ImageError: the decoder met damaged data. Damage that happens to be valid code cannot be told.
    """
    try:
        simplejpeg.decode_jpeg(path.read_bytes(), "GRAY", min_factor=8, fastdct=True)
    except ValueError as error:
        if str(error).startswith(("Corrupt JPEG data", "Premature end")):  # else it is a kind that it does not know
            cure = "copy it from its source again, or, if it looks right in a viewer, save it again from there"
            raise ImageError(f"{path}: expected a whole picture, got damaged data ({error}); {cure}") from error


def _orientation(file: Image.Image, path: Path) -> int:
    """1 … 8 as EXIF counts them; 1 is upright."""
    try:
        told = file.getexif().get(ExifTags.Base.Orientation, 1)
        return told if told in _TURNS else 1
    except Exception as error:  # as of the decoders
        _log.warning("%s: its EXIF data cannot be read (%s); taken as upright", path, error)
        return 1


def save_image(image: Image.Image, path: Path) -> str:
    """Write ``image`` to ``path`` as PNG, whole or not at all -> the SHA-256 of the file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    atomic_write(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def picture_sha256(image: Image.Image) -> str:
    """SHA-256 of the size and pixels of an RGB image: the same for a picture and its lossless copies."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def is_picture(style: Path) -> bool:
    """Whether a style is named by a picture, rather than by its LoRA (a folder or a file of weights)."""
    return not style.is_dir() and style.suffix.lower() not in WEIGHTS


def to_tensor(image: Image.Image, size: tuple[int, int] | None = None) -> torch.Tensor:
    """An RGB image as pixels (3, H, W), float32 in [-1, 1], resized to ``size`` (height, width) by Lanczos."""
    pixels = torch.from_numpy(np.array(_resized(image, size)))  # (H, W, 3) in 0 … 255
    return pixels.permute(2, 0, 1).float().div(127.5).sub(1).contiguous()


def to_image(pixels: torch.Tensor, size: tuple[int, int] | None = None) -> Image.Image:
    """Pixels (3, H, W) in [-1, 1], clamped to that, as an RGB image, resized to ``size`` (height, width) by Lanczos.

    Raises:
        ValueError: where pixels are NaN or infinite, as a decoder in float16 may make them.
    """
    if not all(math.isfinite(bound) for bound in pixels.aminmax()):
        raise ValueError("expected pixels in [-1, 1], got NaN or infinity: decode in float32 or bfloat16")
    levels = np.empty((*pixels.shape[1:], 3), np.uint8)
    for rows in bands(pixels.shape[1]):
        band = pixels[:, rows].detach().float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
        levels[rows] = band.permute(1, 2, 0).cpu().numpy()
    return _resized(Image.fromarray(levels), size)


def bands(height: int) -> Iterator[slice]:
    """The rows of a picture in order, some at a time: it may be 88 megapixels, of which each copy in float32 counts."""
    for start in range(0, height, BAND):
        yield slice(start, min(start + BAND, height))


def eight_bit(image: Image.Image) -> Image.Image:
    """16-bit gray scaled to 8 bits (Pillow's own conversion would clip it); other modes as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"pixels of mode {image.mode!r} have no known white")
    return Image.fromarray((levels / 257).round().astype(np.uint8))


def fit_size(width_height: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """The (height, width) to work in: short side about ``resolution``, both sides multiples of ``multiple``.

    The short side is rounded first and the long side follows from it, so that the aspect is kept as well as the
    multiples allow.

    Raises:
        ImageError: where one side is more than ``MAX_ASPECT`` times the other.
    """
    check_aspect(width_height)
    width, height = width_height
    short, long = min(width, height), max(width, height)
    fitted_short = max(1, _rounded(resolution, multiple)) * multiple
    fitted_long = max(1, _rounded(fitted_short * long, short * multiple)) * multiple
    return (fitted_long, fitted_short) if height > width else (fitted_short, fitted_long)


def check_aspect(width_height: tuple[int, int]) -> None:
    """Raises:
    ImageError: one side is more than ``MAX_ASPECT`` times the other.
    """
    width, height = width_height
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            f"expected an aspect of at most {MAX_ASPECT}:1, got {width} x {height} pixels; crop the picture"
        )


def _on_white(image: Image.Image) -> Image.Image:
    """As RGB without metadata; pixels behind alpha are mixed with white, as a browser shows them."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = image.convert("RGB")
    rgb.info.clear()
    return rgb


def _resized(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    if size is None or size == (image.height, image.width):
        return image
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def _rounded(numerator: int, denominator: int) -> int:
    """numerator / denominator to the nearest integer, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)
