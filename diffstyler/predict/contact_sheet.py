"""A folder of stylized pictures and their JSON sidecars in; one HTML contact sheet of them out."""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from PIL import Image

from diffstyler.files import atomic_write, file_sha256
from diffstyler.images import ImageError, load_image, picture_sha256

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
    page = _PAGE.render(title=output_dir.resolve().name, rows=rows, seconds=sum(row.seconds for row in rows))
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
    settings = {"seed": sidecar.get("seed"), **_dict(sidecar.get("settings")), "seconds": round(seconds, 1) or None}
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
    facts = [f"{name} {value:g}" for name, value in region.items() if isinstance(value, (int, float))]
    return _RegionView(
        style=show(str(style.get("path") or ""), str(style.get("sha256") or "")),
        mask_picture=show(str(output_dir / region["mask_file"]), "") if region.get("mask_file") else None,
        mask=str(region.get("mask") or "everything"),
        prompt=str(region.get("prompt") or ""),
        facts=[*facts, f"LoRA {Path(lora['path']).name}"] if lora.get("path") else facts,
    )


def _shown(output_dir: Path, written: str, sha256: str) -> _Shown:
    """The picture at the path ``written``, which had the hash ``sha256`` ("" = not known)."""
    path = Path(written)
    if not written:
        return _Shown("", "not recorded")
    if path.suffix.lower() == ".safetensors" or path.is_dir():
        return _Shown(path.name, "LoRA")
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


_TEMPLATE = """\
{% macro picture(shown, kind) %}
<figure class="{{ kind }}">
{% if shown.note %}
  <div class="note">{{ shown.note }}</div>
{% else %}
  <a href="{{ shown.href }}" title="{{ shown.name }}"><img src="{{ shown.src }}" alt="{{ kind }}: {{ shown.name }}"
    width="{{ shown.width }}" height="{{ shown.height }}" style="--aspect: {{ "%.4f" % (shown.width / shown.height) }}"
    loading="lazy" decoding="async"></a>
{% endif %}
  <figcaption title="{{ shown.name }}">{{ caller() if caller is defined else shown.name }}</figcaption>
</figure>
{% endmacro %}
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --paper: #f6f5f2; --card: #fff; --ink: #1c1b19; --soft: #6d6a63; --line: #e3e0d9 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #131312; --card: #1c1c1a; --ink: #eceae4; --soft: #98948b; --line: #2e2d2a }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem clamp(1rem, 3vw, 3rem); max-width: 92rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
header { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: baseline; margin-bottom: 1.75rem }
h1 { margin: 0; font-size: 1.75rem; font-weight: 600; letter-spacing: -.02em; overflow-wrap: anywhere }
header p { margin: 0; flex: 1; color: var(--soft) }
input { font: inherit; padding: .45rem .9rem; border: 1px solid var(--line); border-radius: 2rem; width: 16rem;
  background: var(--card); color: inherit }
article { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.25rem;
  margin-bottom: 1.25rem; content-visibility: auto; contain-intrinsic-size: auto 34rem }
article[hidden] { display: none }
h2 { margin: 0 0 .9rem; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere }
.row { display: grid; gap: 1.25rem; grid-template-columns: minmax(0, 4fr) minmax(0, 2.6fr) minmax(0, 4fr) }
h3 { margin: 0 0 .45rem; font-size: .7rem; font-weight: 600; letter-spacing: .09em; text-transform: uppercase;
  color: var(--soft) }
figure { margin: 0; min-width: 0 }
figure img { display: block; width: min(100%, 32rem * var(--aspect)); height: auto; border-radius: 8px;
  background: var(--line) }
figcaption { margin-top: .35rem; font-size: .8rem; color: var(--soft); overflow-wrap: anywhere }
.note { display: grid; place-items: center; aspect-ratio: 4 / 3; padding: .5rem; border: 1px dashed var(--line);
  border-radius: 8px; color: var(--soft); font-size: .85rem; text-align: center }
.region { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; align-items: start }
.region + .region { margin-top: 1rem; padding-top: 1rem; border-top: 1px solid var(--line) }
.region img, .region .note { width: 100%; aspect-ratio: 1; object-fit: cover }
.mask img { object-fit: contain; background: #000 }
.words { grid-column: 1 / -1; margin: 0; font-size: .85rem; overflow-wrap: anywhere }
.words span { display: inline-block; margin: .25rem .25rem 0 0; padding: .05rem .55rem; border-radius: 1rem;
  background: var(--paper); color: var(--soft); font-size: .75rem }
details { margin-top: 1rem; font-size: .85rem }
summary { cursor: pointer; color: var(--soft) }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem 1.5rem;
  margin: .75rem 0 0 }
dt { color: var(--soft); font-size: .75rem }
dd { margin: 0; overflow-wrap: anywhere }
dialog { border: 0; padding: 0; max-width: none; max-height: none; width: 100vw; height: 100vh; background: #0d0d0ded }
dialog img { width: 100%; height: 100%; padding: 1.5rem; object-fit: contain; cursor: zoom-out }
@media (max-width: 60rem) {
  .row { grid-template-columns: 1fr 1fr } .row > :last-child { grid-column: 1 / -1; order: -1 }
}
@media print { input, details { display: none } article { content-visibility: visible; break-inside: avoid } }
</style>
<header>
  <h1>{{ title }}</h1>
  <p>{{ rows | length }} picture{{ "" if rows | length == 1 else "s" }}
  {%- if seconds %} · {{ "%.0f min" % (seconds / 60) if seconds >= 120 else "%.0f s" % seconds }}{% endif %}</p>
  {% if rows | length > 1 %}<input type="search" placeholder="Find a picture or style" aria-label="Find">{% endif %}
</header>
<main>
{% for row in rows %}
<article>
  <h2>{{ row.id }}</h2>
  <div class="row">
    <section><h3>Content</h3>{{ picture(row.content, "content") }}</section>
    <section><h3>{{ "Styles" if row.regions | length > 1 else "Style" }}</h3>
    {% for region in row.regions %}
      <div class="region">
        {{ picture(region.style, "style") }}
        {% if region.mask_picture %}
        {% call picture(region.mask_picture, "mask") %}{{ region.mask }}{% endcall %}
        {% endif %}
        <p class="words">{{ region.prompt }}
          {% if region.prompt %}<br>{% endif %}
          {% if not region.mask_picture %}<span>{{ region.mask }}</span>{% endif %}
          {% for fact in region.facts %}<span>{{ fact }}</span>{% endfor %}
        </p>
      </div>
    {% endfor %}
    </section>
    <section><h3>Result</h3>{{ picture(row.result, "result") }}</section>
  </div>
  {% if row.settings %}
  <details><summary>Settings</summary><dl>
    {% for name, value in row.settings.items() %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor %}
  </dl></details>
  {% endif %}
</article>
{% else %}
<p>No pictures yet.</p>
{% endfor %}
</main>
<dialog aria-label="Full picture"><img alt=""></dialog>
<script>
const dialog = document.querySelector("dialog"), full = dialog.firstChild, find = document.querySelector("input");
document.querySelector("main").addEventListener("click", event => {
  const link = event.target.closest("figure a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  full.onerror = () => { full.onerror = null; full.src = link.firstChild.src; };  // the file lies elsewhere now
  full.src = link.href;
  full.alt = link.title;
  dialog.showModal();
});
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => full.removeAttribute("src"));
find?.addEventListener("input", () => {
  const wanted = find.value.trim().toLowerCase();
  for (const row of document.querySelectorAll("article"))
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
});
</script>
</html>
"""


_PAGE = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
).from_string(_TEMPLATE)
