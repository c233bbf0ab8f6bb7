"""A folder of stylized pictures and their JSON sidecars in; one HTML contact sheet of them out."""

from __future__ import annotations

import base64
import functools
import io
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import jinja2
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from diffstyler import storage
from diffstyler.files import atomic_write, file_sha256, own_folder, read_json, read_json_lines
from diffstyler.images import ImageError, load_image, picture_sha256
from diffstyler.metrics.base import FIGURES_NAME
from diffstyler.types import StyleRegion

THUMBNAIL_SIDE = 512  # pixels
SMALL_SIDE = 160
#: of pictures that the page itself may hold: a few hundred thumbnails, or thousands of small ones
MOST_INSIDE = 24 << 20
MOST_SHOWN = 1e15  # numbers above it are no settings


_log = logging.getLogger(__name__)


def write_sheet(output_dir: Path) -> Path:
    """Write ``output_dir/index.html``, one row for each ``<id>.json`` that lies beside its picture; return its path.

    The page needs nothing from the network and links relatively, so that the folder can be moved or zipped: content
    and styles, which lie elsewhere, are then still shown by their thumbnails. Those go to ``output_dir/thumbnails``,
    named by the hash of the picture, and are written once. The page holds them too, up to 24 MiB, and beyond that small
    ones of 160 pixels up to the same size, so that it can be sent alone. A row has a body only while it is near the
    window: thousands open at once. A content picture that cannot be read, or that is no
    longer the one of the sidecar, is replaced by a line of text. What is no sidecar of ours is skipped with a warning.
    Figures are those that diffstyler test has left in the folder.
    """
    thumbnails = output_dir / "thumbnails"
    own_folder(thumbnails)
    show = functools.cache(functools.partial(_shown, output_dir))
    figures = _figures(output_dir)
    rows = [_row(output_dir, picture, sidecar, show, figures) for picture, sidecar in _sidecars(output_dir)]
    common = _common([row.settings for row in rows])
    page = _TEMPLATES.get_template("contact_sheet.html.j2").render(
        title=output_dir.resolve().name,
        rows=rows,
        seconds=sum(row.seconds for row in rows),
        common=common,
        measured=_means([row.figures for row in rows]),
        styles=sorted({region.style.name for row in rows for region in row.regions if region.style.name}),
        inside=_inside(output_dir, [shown.src for row in rows for shown in row.pictures if shown.src]),
    )
    path = output_dir / "index.html"
    atomic_write(path, page.encode(errors="replace"))
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
    figures: dict[str, float]

    @property
    def pictures(self) -> list[_Shown]:
        """In the order of the page."""
        shown = [(region.style, region.mask_picture) for region in self.regions]
        return [self.content, *(picture for pair in shown for picture in pair if picture is not None), self.result]


@dataclass(frozen=True)
class _Inside:
    """Pictures that the page holds, as ``data:`` URLs by where their thumbnails lie; ``small``: smaller than those."""

    urls: dict[str, str]
    small: bool

    @property
    def places(self) -> dict[str, int]:
        return {src: place for place, src in enumerate(self.urls)}


_Show = Callable[[str, str], _Shown]
_Made = tuple[str, str]  # a picture's id, and the key of what made it


Word = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class _Picture(BaseModel):
    path: Word | None = None
    sha256: Word | None = None


class _Region(BaseModel):
    model_config = ConfigDict(extra="allow")

    style: _Picture = _Picture()
    lora: _Picture = _Picture()
    mask: Word | None = None
    mask_file: Word | None = None
    prompt: Word | None = None


class _Sidecar(BaseModel):
    """What the page shows of a sidecar; the rest of it is not looked at."""

    id: Word
    key: JsonValue = ""
    content: _Picture | None = None
    regions: list[_Region] = []
    settings: dict[str, JsonValue] = {}
    seed: int | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    versions: dict[str, Word] = {}


def _sidecars(output_dir: Path) -> list[tuple[Path, _Sidecar]]:
    """Those JSON files of the folder that lie beside a picture, by name, and these pictures."""
    sidecars = []
    for path in storage.files(output_dir, "*.json"):
        picture = path.with_suffix(".png")
        if not storage.fetch(picture).is_file():
            continue
        try:
            sidecars.append((picture, _Sidecar.model_validate(read_json(path))))
        except (ValueError, OSError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            _log.warning("%s: expected the JSON sidecar of a picture; left out of the contact sheet (%s)", path, reason)
    return sidecars


def _row(
    output_dir: Path,
    picture: Path,
    sidecar: _Sidecar,
    show: _Show,
    figures: Mapping[_Made, dict[str, float]],
) -> _RowView:
    content, seconds = sidecar.content or _Picture(), sidecar.seconds or 0
    settings = {"seed": sidecar.seed, **_in_words(sidecar.settings), "seconds": round(seconds, 1) or None}
    versions = {f"{name} version": version for name, version in sidecar.versions.items()}
    return _RowView(
        id=sidecar.id,
        content=show(content.path or "", content.sha256 or ""),
        regions=[_region(output_dir, region, show) for region in sidecar.regions],
        result=show(str(picture), ""),
        settings={name: value for name, value in {**settings, **versions}.items() if value is not None},
        seconds=seconds,
        figures=figures.get((sidecar.id, str(sidecar.key)), {}),
    )


def _figures(output_dir: Path) -> dict[_Made, dict[str, float]]:
    """By a picture's id and key, what was measured of it; of one that other settings made since, nothing is known."""
    lines = [line for line in read_json_lines(output_dir / FIGURES_NAME) if "id" in line]
    return {
        (str(line["id"]), str(line.get("key", ""))): {k: float(v) for k, v in line.items() if _is_figure(v)}
        for line in lines
    }


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure, over the pictures that have it."""
    names = dict.fromkeys(name for row in figures for name in row)
    values = {name: [row[name] for row in figures if name in row] for name in names}
    return {name: sum(own) / len(own) for name, own in values.items()}


def _common(settings: Sequence[dict[str, object]]) -> dict[str, object]:
    """What is the same for all of several pictures is told once: taken out of each."""
    if len(settings) < 2:
        return {}
    first, *others = settings
    common = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    for own in settings:
        for name in common:
            del own[name]
    return common


def _region(output_dir: Path, region: _Region, show: _Show) -> _RegionView:
    numbers = {name: value for name, value in (region.model_extra or {}).items() if isinstance(value, (int, float))}
    share = numbers.pop("mask_share", 1.0)
    shown = {name: value for name, value in numbers.items() if abs(value) < MOST_SHOWN and _USUAL.get(name) != value}
    facts = [f"{name.replace('_', ' ')} {value:g}" for name, value in shown.items()]
    mask = region.mask or "everything"
    return _RegionView(
        style=show(region.style.path or "", region.style.sha256 or ""),
        mask_picture=show(str(output_dir / region.mask_file), "") if region.mask_file else None,
        mask=mask if mask == "everything" else f"{mask} ({share:.3g} of the picture)",
        prompt=region.prompt or "",
        facts=[*facts, f"LoRA {_lora_name(region.lora.path)}"] if region.lora.path else facts,
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
    path = storage.local(written)
    if not written:
        return _Shown("", "not recorded")
    try:
        if path.suffix.lower() == ".safetensors" or path.is_dir():
            return _Shown(_lora_name(written), "LoRA")
        thumbnail = _thumbnail(output_dir / "thumbnails", path, sha256)
        with Image.open(thumbnail) as image:
            width, height = image.size
        src = f"thumbnails/{thumbnail.name}"
        return _Shown(path.name, "", src, _relative(path, output_dir) if path.is_file() else src, width, height)
    except (ImageError, OSError) as error:
        _log.warning("the contact sheet cannot show a picture: %s", error)
        return _Shown(path.name, "changed since" if isinstance(error, _ChangedError) else "not readable")


def _inside(output_dir: Path, sources: Sequence[str]) -> _Inside:
    """All of these thumbnails as they are, where the page can hold them; else small ones, else none."""
    files = {src: output_dir / src for src in dict.fromkeys(sources)}
    small = sum(file.stat().st_size for file in files.values()) > MOST_INSIDE
    if small:
        files = {src: _small(file) for src, file in files.items()}
    if small and sum(file.stat().st_size for file in files.values()) > MOST_INSIDE:
        return _Inside({}, small=False)
    kinds = {".jpg": "jpeg", ".webp": "webp"}
    coded = {src: base64.b64encode(file.read_bytes()).decode() for src, file in files.items()}
    return _Inside({src: f"data:image/{kinds[files[src].suffix]};base64,{text}" for src, text in coded.items()}, small)


def _small(thumbnail: Path) -> Path:
    """Of a thumbnail, written beside it once."""
    small = thumbnail.with_name(f"{thumbnail.stem}-{SMALL_SIDE}.webp")
    if not small.is_file():
        buffer = io.BytesIO()
        with Image.open(thumbnail) as image:
            image.thumbnail((SMALL_SIDE, SMALL_SIDE), Image.Resampling.LANCZOS)
            image.save(buffer, "WEBP", quality=70)
        atomic_write(small, buffer.getvalue())
    return small


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
    image.save(buffer, "JPEG", quality=90, subsampling=0)
    atomic_write(thumbnail, buffer.getvalue())
    return thumbnail


def _relative(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
