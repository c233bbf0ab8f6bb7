"""The rows of a run and a library in; the LoRA of every style and content picture out, each read and checked once."""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from peft import LoraConfig

from diffstyler.adapters import FittedLoRA, LoRA, LoRALibrary, largest_rank, lora_files, read_lora, read_record
from diffstyler.adapters.library import RECORD_NAME
from diffstyler.backbones import NETWORK, Backbone, StableDiffusion
from diffstyler.errors import DiffstylerError
from diffstyler.files import file_sha256
from diffstyler.images import ImageError, is_picture, load_image, picture_sha256
from diffstyler.types import StyleRegion, Triple

ContentLoRA = Literal["found", "required", "off"]


class MissingLoRAError(DiffstylerError):
    """Pictures without a LoRA; the text lists them all and the command that makes them."""


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA that the run needs: its file, that file's sha256, and the prompt it was fitted with.

    ``picture``: sha256 of the file of the style picture, or of the thumbnail beside the LoRA; None where neither is.
    """

    path: Path
    sha256: str
    prompt: str = ""
    picture: str | None = None


@dataclass(frozen=True)
class ResolvedAdapters:
    """The LoRAs of a run: of style pictures by path and part of the picture, of contents by ``picture_sha256``.

    ``outlines``: by file, the names and sizes of what each LoRA changes, without the weights.
    """

    styles: Mapping[tuple[Path, str], AdapterFile]
    contents: Mapping[str, AdapterFile]
    outlines: Mapping[Path, LoRA]

    def style(self, region: StyleRegion) -> AdapterFile:
        return self.styles[region.style, region.style_mask]

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
    lora: str | None = None,
    fit_options: Sequence[str] = (),
) -> ResolvedAdapters:
    """Find, read and check the LoRA of every style and content picture.

    Args:
        triples: the rows of the run.
        library: where pictures are looked up; it is read once.
        model: fingerprint of the base model that the LoRAs must have been fitted on.
        content_lora: as of the stylizer.
        allow_partial: keys that no dialect knows are left out.
        lora: which one of a picture that has several, as of the stylizer.
        fit_options: what the fit that makes the missing ones is to be told, see :func:`fit_options_of`.

    Raises:
        MissingLoRAError: some pictures have none.
        DiffstylerError: a LoRA file is damaged, or several LoRAs fit one picture.
    """
    fitted: dict[tuple[str, str, str], list[FittedLoRA]] = {}
    for entry in library.entries():
        if entry.identity.model == model:
            mask = entry.identity.settings.get("mask", "everything")
            fitted.setdefault((entry.identity.role, entry.identity.picture, mask), []).append(entry)
    read = functools.cache(functools.partial(_read, allow_partial=allow_partial))
    sha256_of = functools.cache(lambda picture: picture_sha256(load_image(picture)))
    styles, contents, missing, outlines = {}, {}, [], {}
    for path, mask in dict.fromkeys((r.style, r.style_mask) for triple in triples for r in triple.regions):
        folder = _the_one(fitted, "style", path, sha256_of(path), mask, lora=lora) if is_picture(path) else path
        if folder is None:
            missing.append(("style", path))
            continue
        adapter, outlines[adapter.path] = read(folder)
        styles[path, mask] = replace(adapter, picture=style_sha256(path))
    wanted = dict.fromkeys(triple.content for triple in triples)
    if content_lora == "off" or (content_lora == "found" and not any(role == "content" for role, _, _ in fitted)):
        wanted = {}
    for path in wanted:
        try:
            sha256 = sha256_of(path)
        except ImageError:
            continue  # it fails with its row
        folder = _the_one(fitted, "content", path, sha256, lora=lora)
        if folder is not None:
            contents[sha256], outlines[contents[sha256].path] = read(folder)
        elif content_lora == "required":
            missing.append(("content", path))
    if missing:
        raise MissingLoRAError(_missing_text(missing, library.lora_dir, fit_options))
    return ResolvedAdapters(styles, contents, outlines)


def fit_options_of(backbone: Backbone, precision: str, manifest: Path | None) -> list[str]:
    """The options of a fit whose LoRAs a run with this model finds: what differs from fit's defaults."""
    options = ["--data.manifest", str(manifest)] if manifest else []
    if backbone.options or type(backbone) is not StableDiffusion:
        options += _object_options("model.backbone", backbone, backbone.options)
    # fit keeps its LoRAs in float32: it knows 16-bit precisions as mixed ones alone
    precision = precision.replace("16-true", "16-mixed")
    return options + (["--trainer.precision", precision] if precision != "32-true" else [])


def style_picture(style: Path) -> Path:
    """The picture itself, or the thumbnail in a LoRA's folder."""
    return style if is_picture(style) else (style if style.is_dir() else style.parent) / "thumbnail.png"


def style_sha256(style: Path) -> str | None:
    """Of the file of the picture that the initial latents may take statistics from."""
    picture = style_picture(style)
    return file_sha256(picture) if picture.is_file() else None


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


def _missing_text(missing: Iterable[tuple[str, Path]], lora_dir: Path, fit_options: Sequence[str]) -> str:
    by_role: dict[str, list[Path]] = {}
    for role, path in missing:
        by_role.setdefault(role, []).append(path)
    lines = []
    for role, paths in by_role.items():
        command = ["diffstyler", "fit", "--config", f"configs/{role}.yaml", *fit_options, "--lora_dir", str(lora_dir)]
        if "--data.manifest" not in fit_options:  # rows of a notebook
            command += ["--data.pictures", json.dumps(list(map(str, paths)), ensure_ascii=False)]
        lines += [f"{len(paths)} {role} pictures have no LoRA in {lora_dir}:", *(f"  {path}" for path in paths)]
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
