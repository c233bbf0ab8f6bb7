"""A folder of results and their sidecars in; what is measured of them out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffstyler.diffusion.fusion import shares
from diffstyler.errors import DiffstylerError
from diffstyler.files import read_json
from diffstyler.images import ImageError, is_picture, load_image
from diffstyler.manifests.pictures import read_manifest
from diffstyler.metrics.base import Sample, Styled

log = logging.getLogger(__name__)


def find_results(output_dir: Path, manifest: Path | None) -> list[Path]:
    """The sidecars of the folder's pictures, by name; with a manifest, of its pictures alone.

    Raises:
        DiffstylerError: there are none, or a picture of the manifest has none.
    """
    if manifest is None:
        found = [file for file in sorted(output_dir.glob("*.json")) if file.with_suffix(".png").is_file()]
    else:
        found = [output_dir / f"{triple.id}.json" for triple in read_manifest(manifest)]
        missing = [file.stem for file in found if not (file.is_file() and file.with_suffix(".png").is_file())]
        if missing:
            some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise DiffstylerError(
                f"{output_dir}: {len(missing)} of {len(found)} pictures of {manifest} are not there ({some}); make "
                "them with diffstyler predict, or leave the manifest out to measure what there is"
            )
    if not found:
        raise DiffstylerError(f"{output_dir}: expected pictures and their sidecars, as diffstyler predict writes them")
    return found


def read_samples(sidecars: Sequence[Path], resolution: int) -> Iterator[Sample]:
    """Each result with its content, styles and masks; one that cannot be measured is left out, with a warning."""
    for path in sidecars:
        try:
            yield _sample(path, resolution)
        except (ImageError, KeyError, TypeError, ValueError, OSError) as error:
            log.warning("%s is not measured: %s", path, error if isinstance(error, ValueError) else repr(error))


def _sample(sidecar: Path, resolution: int) -> Sample:
    made = read_json(sidecar)
    content = load_image(Path(made["content"]["path"]))
    result = load_image(sidecar.with_suffix(".png"))
    if content.size != result.size:
        raise ImageError(
            f"its content is {content.width} x {content.height}, the result {result.width} x {result.height}"
        )
    masks = [_mask(sidecar.parent / r["mask_file"]) if "mask_file" in r else None for r in made["regions"]]
    visible = shares(masks) if any(mask is not None for mask in masks) else masks
    regions = [
        Styled(_style(Path(region["style"].get("picture", region["style"]["path"]))), mask, region.get("prompt") or "")
        for region, mask in zip(made["regions"], visible, strict=True)
    ]
    return Sample(str(made["id"]), content, result, tuple(regions), resolution, str(made.get("key", "")))


def _style(path: Path) -> Image.Image | None:
    return load_image(path) if is_picture(path) else None


def _mask(path: Path) -> torch.Tensor:
    """(H, W) in [0, 1]."""
    return torch.from_numpy(np.array(load_image(path).convert("L"))).float() / 255
