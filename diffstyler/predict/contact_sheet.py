"""A folder of stylized pictures and their JSON sidecars in; one HTML contact sheet of them out."""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import quote

import jinja2
from PIL import Image

from diffstyler.files import atomic_write, file_sha256
from diffstyler.images import ImageError, load_image, picture_sha256
from diffstyler.types import StyleRegion

THUMBNAIL_SIDE = 512  # pixels


_log = logging.getLogger(__name__)


def write_sheet(output_dir: Path) -> Path:
    """Write ``output_dir/index.html``, one row for each ``<id>.json`` that lies beside its picture; return its path.

    The page needs nothing from the network and links relatively, so that the folder can be moved or zipped: content
    and styles, which lie elsewhere, are then still shown by their thumbnails. Those go to ``output_dir/thumbnails``,
    named by the hash of the picture, and are written once. A content picture that cannot be read, or that is no
    longer the one of the sidecar, is replaced by a line of text. Sidecars that are not JSON are skipped with a warning.
    """
    thumbnails = output_dir / "thumbnails"
    thumbnails.mkdir(parents=True, exist_ok=True)
    show = functools.cache(functools.partial(_shown, output_dir))
    rows = [_row(output_dir, sidecar, show) for sidecar in _sidecars(output_dir)]
    page = _TEMPLATES.get_template("contact_sheet.html.j2").render(
        title=output_dir.resolve().name, rows=rows, seconds=sum(row.seconds for row in rows)
    )
    path = output_dir / "index.html"
    atomic_write(path, page.encode())
    return path


@dataclass(frozen=True)
class _Shown:
    """A picture on the page: where its thumbnail and the full file are, or ``note``, why it cannot be shown."""

    name: str
    note: str = ""
    src: str = ""
    href: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class _RegionView:
    style: _Shown
    mask_picture: _Shown | None
    mask: str
    prompt: str
    facts: list[str]


@dataclass(frozen=True)
class _RowView:
    id: str
    content: _Shown
    regions: list[_RegionView]
    result: _Shown
    settings: dict[str, object]
    seconds: float


_Show = Callable[[str, str], _Shown]


def _sidecars(output_dir: Path) -> list[dict]:
    """Those JSON files of the folder that lie beside a picture, by name."""
    sidecars = []
    for path in sorted(output_dir.glob("*.json")):
        if not path.with_suffix(".png").is_file():
            continue
        try:
            sidecar = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            _log.warning("%s: expected the JSON sidecar of a picture; left out of the contact sheet (%s)", path, error)
            continue
        sidecars.append({"id": path.stem, "result": path.with_suffix(".png").name, **_dict(sidecar)})
    return sidecars


def _row(output_dir: Path, sidecar: dict, show: _Show) -> _RowView:
    content, seconds = _dict(sidecar.get("content")), sidecar.get("seconds") or 0
    settings = {"seed": sidecar.get("seed"), **_in_words(_dict(sidecar.get("settings")))}
    settings["seconds"] = round(seconds, 1) or None
    versions = {f"{name} version": version for name, version in _dict(sidecar.get("versions")).items()}
    return _RowView(
        id=str(sidecar["id"]),
        content=show(str(content.get("path") or ""), str(content.get("sha256") or "")),
        regions=[_region(output_dir, _dict(region), show) for region in sidecar.get("regions") or []],
        result=show(str(output_dir / sidecar["result"]), ""),
        settings={name: value for name, value in {**settings, **versions}.items() if value is not None},
        seconds=seconds,
    )


def _region(output_dir: Path, region: dict, show: _Show) -> _RegionView:
    style, lora = _dict(region.get("style")), _dict(region.get("lora"))
    named = {name: value for name, value in region.items() if isinstance(value, (int, float))}
    share = named.pop("mask_share", 1.0)
    facts = [f"{name.replace('_', ' ')} {value:g}" for name, value in named.items() if _USUAL.get(name) != value]
    mask = str(region.get("mask") or "everything")
    return _RegionView(
        style=show(str(style.get("path") or ""), str(style.get("sha256") or "")),
        mask_picture=show(str(output_dir / region["mask_file"]), "") if region.get("mask_file") else None,
        mask=mask if mask == "everything" else f"{mask} ({share:.3g} of the picture)",
        prompt=str(region.get("prompt") or ""),
        facts=[*facts, f"LoRA {_lora_name(lora['path'])}"] if lora.get("path") else facts,
    )


#: of a region, and so not worth a word
_USUAL = {field.name: field.default for field in fields(StyleRegion)}


def _in_words(settings: dict, under: str = "") -> dict[str, str]:
    """Nested settings by names and values as one says them; what is not set is left out."""
    told: dict[str, str] = {}
    for name, value in settings.items():
        words = f"{under}{name.replace('_', ' ')}"
        if isinstance(value, dict):
            kind = value.get("class") or value.get("name")
            told |= {words: str(kind)} if kind else {}
            told |= _in_words({k: v for k, v in value.items() if v != kind}, f"{words}: ")
        elif value not in (None, "", []):
            told[words] = ", ".join(map(str, value)) if isinstance(value, list) else _plain(value)
    return told


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lora_name(path: str) -> str:
    """Of the folder, where the file has the name that all have."""
    file = Path(path)
    return file.parent.name if file.name == "pytorch_lora_weights.safetensors" else file.name


def _shown(output_dir: Path, written: str, sha256: str) -> _Shown:
    """The picture at the path ``written``, which had the hash ``sha256`` ("" = not known)."""
    path = Path(written)
    if not written:
        return _Shown("", "not recorded")
    if path.suffix.lower() == ".safetensors" or path.is_dir():
        return _Shown(_lora_name(written), "LoRA")
    try:
        thumbnail = _thumbnail(output_dir / "thumbnails", path, sha256)
        with Image.open(thumbnail) as image:
            width, height = image.size
    except (ImageError, OSError) as error:
        _log.warning("the contact sheet cannot show a picture: %s", error)
        return _Shown(path.name, "changed since" if isinstance(error, _ChangedError) else "not readable")
    src = f"thumbnails/{thumbnail.name}"
    return _Shown(path.name, "", src, _relative(path, output_dir) if path.is_file() else src, width, height)


class _ChangedError(ImageError):
    """The file at a path is no longer the picture that was used."""


def _thumbnail(folder: Path, path: Path, sha256: str) -> Path:
    known = re.fullmatch("[0-9a-f]{64}", sha256) is not None
    thumbnail = folder / f"{sha256 if known else file_sha256(path)}.jpg"
    if thumbnail.is_file():
        return thumbnail
    image = load_image(path)
    if known and sha256 not in (file_sha256(path), picture_sha256(image)):
        raise _ChangedError(f"{path}: expected the picture with SHA-256 {sha256[:8]}…, got another")
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0, optimize=True)
    atomic_write(thumbnail, buffer.getvalue())
    return thumbnail


def _relative(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
