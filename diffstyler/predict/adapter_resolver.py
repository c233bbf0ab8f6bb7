"""The rows of a run and a library in; the LoRA of every style and content picture out, each read and checked once."""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from peft import LoraConfig

from diffstyler import storage
from diffstyler.adapters import FittedLoRA, LoRA, LoRALibrary, largest_rank, lora_files, read_lora, read_record
from diffstyler.adapters.library import RECORD_NAME
from diffstyler.backbones import NETWORK, Backbone, StableDiffusion
from diffstyler.errors import DiffstylerError
from diffstyler.files import file_sha256
from diffstyler.images import ImageError, is_picture, load_image, picture_sha256
from diffstyler.types import RowProblem, StyleRegion, Triple

ContentLoRA = Literal["found", "required", "off"]


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA that the run needs: its file, that file's sha256, and the prompt it was fitted with.

    ``picture``: sha256 of the file of the style's picture, see :func:`style_picture`; None where there is none.
    """

    path: Path
    sha256: str
    prompt: str = ""
    picture: str | None = None


@dataclass(frozen=True)
class ResolvedAdapters:
    """The LoRAs of a run: of styles by what their regions are to look like, of contents by ``picture_sha256``.

    ``outlines``: by file, the names and sizes of what each LoRA changes, without the weights. ``problems`` are of rows
    whose styles or LoRAs cannot be used, ``lacking`` of those whose pictures have none; ``how`` these are made.
    """

    styles: Mapping[tuple[Path, str, Path | None], AdapterFile]
    contents: Mapping[str, AdapterFile]
    outlines: Mapping[Path, LoRA]
    problems: tuple[RowProblem, ...] = ()
    lacking: tuple[RowProblem, ...] = ()
    how: str = ""

    def style(self, region: StyleRegion) -> AdapterFile:
        return self.styles[region.look]

    def content(self, sha256: str) -> AdapterFile | None:
        """None where the picture has no LoRA."""
        return self.contents.get(sha256)

    @property
    def config(self) -> LoraConfig:
        """Of a pack on the network that can hold any LoRA of the run, known before the model is there."""
        networks = [outline.parts[NETWORK] for outline in self.outlines.values()]
        return LoraConfig(r=max(map(largest_rank, networks)), target_modules=sorted(set().union(*networks)))


def resolve_adapters(
    triples: Sequence[Triple],
    library: LoRALibrary,
    *,
    model: str,
    content_lora: ContentLoRA = "found",
    allow_partial: bool = False,
    needs_style: bool = False,
    lora: str | None = None,
    fit_options: Sequence[str] = (),
    sha256_of: Callable[[Path], str] | None = None,
) -> ResolvedAdapters:
    """Find, read and check the LoRA of every style and content picture; what is wrong is told of each of its rows.

    Args:
        triples: the rows of the run.
        library: where pictures are looked up; it is read once.
        model: fingerprint of the base model that the LoRAs must have been fitted on.
        content_lora: as of the stylizer.
        allow_partial: keys that no dialect knows are left out.
        needs_style: every style needs its picture, though its LoRA be named by a file.
        lora: which one of a picture that has several, as of the stylizer.
        fit_options: what the fit that makes the missing ones is to be told, see :func:`fit_options_of`.
        sha256_of: reads a picture; DiffstylerError where it cannot be.
    """
    fitted: dict[tuple[str, str, str], list[FittedLoRA]] = {}
    for entry in library.entries():
        if entry.identity.model == model:
            mask = entry.identity.settings.get("mask", "everything")
            fitted.setdefault((entry.identity.role, entry.identity.picture, mask), []).append(entry)
    read = functools.cache(functools.partial(_read, allow_partial=allow_partial))
    sha256_of = sha256_of if sha256_of is not None else functools.cache(lambda path: picture_sha256(load_image(path)))
    styles, contents, outlines = {}, {}, {}
    faults: dict[object, str] = {}
    missing: dict[tuple[str, Path], str] = {}

    def style_of(region: StyleRegion) -> AdapterFile | None:
        picture = style_picture(region)
        if picture is None and needs_style:
            raise DiffstylerError(
                f"{region.style}: model.initial takes the style picture, and this LoRA has none beside it; name it in "
                "the column style_picture, or set model.initial to FromContent"
            )
        sha256 = sha256_of(picture) if picture is not None else ""
        is_named = is_picture(region.style)
        path = region.style
        if is_named:
            path = _the_one(fitted, "style", path, sha256, region.style_mask, lora=lora)
        if path is None:
            return None
        adapter, outlines[adapter.path] = read(path)
        return replace(adapter, picture=file_sha256(picture) if picture is not None else None)

    rows = ((triple, region) for triple in triples for region in triple.regions)
    for triple, region in rows:
        if region.look in styles or region.look in faults:
            continue
        try:
            adapter = style_of(region)
        except (DiffstylerError, OSError) as error:
            faults[region.look] = str(error)
            continue
        if adapter is not None:
            styles[region.look] = adapter
        else:
            missing.setdefault(("style", region.style), region.origin or triple.origin)
            faults[region.look] = ""
    wanted = {triple.content: triple.origin for triple in reversed(triples)}
    if content_lora == "off" or (content_lora == "found" and not any(role == "content" for role, _, _ in fitted)):
        wanted = {}
    for path, origin in reversed(wanted.items()):
        try:
            sha256 = sha256_of(path)
        except ImageError:
            continue  # whoever makes the picture tells it
        try:
            folder = _the_one(fitted, "content", path, sha256, lora=lora)
            if folder is not None:
                contents[sha256], outlines[contents[sha256].path] = read(folder)
            elif content_lora == "required":
                missing["content", path], faults[path] = origin, ""
        except (DiffstylerError, OSError) as error:
            faults[path] = str(error)
    problems, lacking = [], []
    for triple in triples if faults else ():
        looks = [(triple.origin, "content", triple.content, triple.content)]
        looks += [(r.origin or triple.origin, "style", r.look, r.style) for r in triple.regions]
        for origin, column, look, path in looks:
            if faults.get(look):
                problems.append(RowProblem(triple.id, origin, column, faults[look]))
            elif look in faults:
                lacking.append(RowProblem(triple.id, origin, column, f"{path} has no LoRA in {library.lora_dir}"))
    how = _missing_text(missing, library.lora_dir, fit_options) if missing else ""
    return ResolvedAdapters(styles, contents, outlines, tuple(problems), tuple(lacking), how)


def fit_options_of(backbone: Backbone, precision: str, manifest: Path | None) -> list[str]:
    """The options of a fit whose LoRAs a run with this model finds: what differs from fit's defaults."""
    options = ["--data.manifest", str(manifest)] if manifest else []
    if backbone.options or type(backbone) is not StableDiffusion:
        options += _object_options("model.backbone", backbone, backbone.options)
    # fit keeps its LoRAs in float32: it knows 16-bit precisions as mixed ones alone
    precision = precision.replace("16-true", "16-mixed")
    return options + (["--trainer.precision", precision] if precision != "32-true" else [])


def style_picture(region: StyleRegion) -> Path | None:
    """The picture of a style: the style itself, the row's ``style_picture``, or the thumbnail in a folder of fit's."""
    if is_picture(region.style) or region.style_picture is not None:
        return region.style_picture or region.style
    folder = storage.fetch(region.style if region.style.is_dir() else region.style.parent)
    thumbnail = folder / "thumbnail.png"
    return thumbnail if (folder / RECORD_NAME).is_file() and thumbnail.is_file() else None


def _the_one(
    fitted: Mapping[tuple[str, str, str], Sequence[FittedLoRA]],
    role: str,
    picture: Path,
    sha256: str,
    mask: str = "everything",
    *,
    lora: str | None,
) -> Path | None:
    """The folder of a picture's LoRA."""
    found = fitted.get((role, sha256, mask), ())
    if len(found) > 1 and lora == "newest":
        found = [max(found, key=lambda entry: (entry.folder / RECORD_NAME).stat().st_mtime_ns)]
    elif len(found) > 1 and lora is not None:
        found = [entry for entry in found if entry.identity.key.startswith(lora)] or found
    if len(found) > 1:
        names = ", ".join(str(entry.folder) for entry in found)
        ids = " or ".join(entry.identity.key[:12] for entry in found)
        raise DiffstylerError(
            f"{picture} has {len(found)} {role} LoRAs of different settings: {names}; set model.lora to newest, or to "
            f"an id ({ids}), or name one of these folders in the manifest's style column"
        )
    return found[0].folder if found else None


def _read(path: Path, *, allow_partial: bool) -> tuple[AdapterFile, LoRA]:
    """A LoRA by its folder or file: what the run needs to know of it, and its outline."""
    lora = read_lora(path, allow_partial=allow_partial)
    prompt = read_record(path).prompt if (path / RECORD_NAME).is_file() else ""
    hashes = [file_sha256(file) for file in lora_files(path).values()]
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    parts = {part: {name: m.outline for name, m in modules.items()} for part, modules in lora.parts.items()}
    return AdapterFile(lora.path, sha256, prompt), replace(lora, parts=parts)


def _missing_text(missing: Mapping[tuple[str, Path], str], lora_dir: Path, fit_options: Sequence[str]) -> str:
    """The pictures without a LoRA, each with the first row that names it, and the commands."""
    by_role: dict[str, dict[Path, str]] = {}
    for (role, path), origin in missing.items():
        by_role.setdefault(role, {})[path] = f" ({origin})" if origin else ""
    lines = []
    for role, paths in by_role.items():
        command = ["diffstyler", "fit", "--config", f"configs/{role}.yaml", *fit_options, "--lora_dir", str(lora_dir)]
        if "--data.manifest" not in fit_options:  # rows of a notebook
            command += ["--data.pictures", json.dumps(list(map(str, paths)), ensure_ascii=False)]
        named = (f"  {path}{origin}" for path, origin in paths.items())
        lines += [f"{len(paths)} {role} pictures have no LoRA in {lora_dir}:", *named]
        lines += ["make them with", "  " + shlex.join(command)]
    return "\n".join(lines)


def _object_options(key: str, value: object, settings: Mapping[str, object]) -> list[str]:
    """The words of a command line that make an object: its class, and its settings."""
    kind = type(value)
    name = kind.__name__ if kind.__module__.startswith("diffstyler.") else f"{kind.__module__}.{kind.__qualname__}"
    words = [f"--{key}", name]
    for setting, own in settings.items():
        if isinstance(own, (str, int, float, Path)):
            words += [f"--{key}.{setting}", str(own).lower() if isinstance(own, bool) else str(own)]
        elif hasattr(own, "__dict__"):
            words += _object_options(f"{key}.{setting}", own, vars(own))
        else:
            words += [f"--{key}.{setting}", json.dumps(own)]
    return words
