"""Where a studio keeps what it is given and what it makes; uploads in, checked pictures of bounded size out."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write
from diffstyler.images import ImageError, check_aspect, image_size, load_image, picture_sha256, save_image

#: of an uploaded picture
MOST_BYTES, MOST_PIXELS = 40 << 20, 50_000_000
#: of any upload, such as a LoRA
MOST_UPLOADED = 1 << 30


class Folder:
    """The folder of a studio. What the page may serve lies in ``files``, under names that nobody guesses.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.queue = self.path / "studio.sqlite"
        self.files = self.path / "files"
        self.uploads = self.path / "uploads"  # Gradio's own, which it also serves from
        self.uploads.mkdir(parents=True, exist_ok=True)

    def job(self, id: str) -> Path:
        """Where a job's files go; made."""
        folder = self.files / "jobs" / id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def keep_picture(self, upload: Path, name: str = "") -> Path:
        """A picture that somebody sent, upright and without metadata, under a name that its pixels give.

        The upload itself is removed, whatever it is.

        Raises:
            ImageError: it is no picture, or a too large or too long one.
        """
        try:
            return self._kept(upload, name)
        finally:
            if self.uploads in upload.resolve().parents:
                upload.unlink(missing_ok=True)

    def _kept(self, upload: Path, name: str) -> Path:
        name = re.sub(r"[^\w-]+", "_", Path(name or upload.name).stem).strip("_")[:60] or "picture"
        if (size := upload.stat().st_size) > MOST_BYTES:
            raise ImageError(
                f"{upload.name}: expected at most {MOST_BYTES >> 20} MB, got {size >> 20}; scale the picture down"
            )
        try:
            width, height = image_size(upload)
            if width * height > MOST_PIXELS:
                told = f"expected at most {MOST_PIXELS} pixels, got {width} x {height}; scale the picture down"
                raise ImageError(f"{upload.name}: {told}")
            check_aspect((width, height))
            image = load_image(upload)
        except ImageError as error:
            told = str(error).replace(str(upload), upload.name)
            raise ImageError(told if upload.name in told else f"{upload.name}: {told}") from error
        path = self.files / "pictures" / picture_sha256(image) / f"{name}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(image, path)
        return path

    def keep_drawn(self, drawn: Image.Image) -> Path:
        """A painted mask, or what is laid over a photograph, under a name that its pixels give."""
        path = self.files / "drawn" / f"{picture_sha256(drawn)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            save_image(drawn, path)
        return path

    def picture(self, token: str) -> Path:
        """What :func:`token_of` names.

        Raises:
            DiffstylerError: there is no such picture.
        """
        path = self.files / "pictures" / token
        if not re.fullmatch(r"[0-9a-f]{64}/[\w-]{1,60}\.png", token) or not path.is_file():
            raise DiffstylerError("the picture is not there any more; choose it again")
        return path

    def token_of(self, picture: Path) -> str:
        """What a page calls a kept picture."""
        return f"{picture.parent.name}/{picture.name}"

    def thumbnail(self, source: Path, key: str) -> Path:
        """A small copy of a picture that lies elsewhere, for the page; ``key`` tells it from all others."""
        path = self.files / "thumbnails" / f"{key}.jpg"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_jpeg(load_image(source), path, side=200)
        return path


def save_jpeg(image: Image.Image, path: Path, side: int = 1024) -> None:
    """A picture to be looked at, its long side at most ``side``; whole or not at all."""
    small, buffer = image.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(buffer, "JPEG", quality=88)
    atomic_write(path, buffer.getvalue())
