"""What the mask prompts of a manifest find, drawn over the pictures, before any diffusion is run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torchvision.transforms.functional import to_pil_image

from diffstyler.backbones import Backbone, StableDiffusion
from diffstyler.files import atomic_write, own_folder
from diffstyler.images import is_picture, load_image, picture_sha256, save_image
from diffstyler.manifests.pictures import read_manifest
from diffstyler.masking import AttentionMasker, Masker, check_masks, find_masks
from diffstyler.masking.prompt import with_files_from
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.predict.contact_sheet import write_sheet
from diffstyler.types import StyleRegion, Triple

log = logging.getLogger(__name__)


COLORS = ((230, 60, 50), (40, 120, 230), (50, 170, 80), (240, 180, 30), (160, 80, 200), (30, 190, 190))


class MaskError(RuntimeError):
    """Some masks could not be found; the text names the pictures and says why. The others are written."""


def preview_masks(
    manifest: Path | None = None,
    *,
    content: Path | None = None,
    mask: Sequence[str] = (),
    backbone: Backbone | None = None,
    masker: Masker | None = None,
    feather: float = 0.02,
    output_dir: Path = Path("masks"),
    device: str = "auto",
) -> Path:
    """Find the masks of a manifest, or of one picture, and draw them over it.

    Args:
        manifest: CSV, JSON Lines or Parquet, as for predict.
        content: one picture, in place of a manifest.
        mask: its mask prompts.
        backbone: the base model, whose attention finds words.
        masker: what finds words, points and boxes.
        feather: soft border, as a fraction of the short side.
        output_dir: gets the masks, the overlays and index.html.
        device: "cpu", "cuda", or "auto".

    Returns:
        The path of index.html.

    Raises:
        MaskError: some masks could not be found.
        ValueError: the manifest or a prompt is wrong; nothing was computed.
    """
    triples = read_manifest(manifest) if manifest is not None else (_one(content, mask),)
    check_masks(triples)
    masker = masker if masker is not None else AttentionMasker()
    backbone = (backbone if backbone is not None else StableDiffusion()).load()
    chosen = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    backbone.to(chosen).prepare(chosen)
    masker.setup(backbone)
    failures = []
    for triple in track(triples, "masks"):
        try:
            _preview(masker, triple, feather, output_dir)
        except (ValueError, OSError) as error:
            failures.append(f"  {triple.origin or triple.id}: {error}")
    sheet = write_sheet(output_dir)
    if failures:
        raise MaskError(f"{len(failures)} of {len(triples)} pictures without masks:\n" + "\n".join(failures))
    return sheet


def _one(content: Path | None, masks: Sequence[str]) -> Triple:
    if content is None or not masks:
        raise ValueError("nothing to mask: expected --manifest, or --content and --mask")
    prompts = [with_files_from(parse_mask_prompt(mask), Path()) for mask in masks]
    return Triple(content.stem, content, tuple(StyleRegion(Path(), mask=str(prompt)) for prompt in prompts))


def _preview(masker: Masker, triple: Triple, feather: float, output_dir: Path) -> None:
    """The masks, the overlay as ``<id>.png``, and a sidecar for the sheet."""
    picture = load_image(triple.content)
    prompts = [parse_mask_prompt(region.mask) for region in triple.regions]
    with torch.no_grad():
        masks = find_masks(
            masker, picture, prompts, feather=feather * min(picture.size), origin=triple.origin or triple.id
        )
    regions = []
    own_folder(output_dir / "masks")
    for number, (region, mask) in enumerate(zip(triple.regions, masks, strict=True), start=1):
        name = f"masks/{triple.id}-{number}.png"
        save_image(to_pil_image(mask), output_dir / name)
        style = {"path": str(region.style)} if region.style.is_file() and is_picture(region.style) else {}
        share = round(float(mask.mean()), 4)
        regions.append({"mask": region.mask, "mask_file": name, "mask_share": share, "style": style})
    save_image(_overlay(picture, masks), output_dir / f"{triple.id}.png")
    sidecar = {
        "id": triple.id,
        "content": {"path": str(triple.content), "sha256": picture_sha256(picture)},
        "regions": regions,
        "settings": {"masker": masker.settings, "feather": feather},
    }
    atomic_write(output_dir / f"{triple.id}.json", (json.dumps(sidecar, indent=2) + "\n").encode())


def _overlay(picture: Image.Image, masks: Sequence[torch.Tensor]) -> Image.Image:
    """The picture, grayed where no mask reaches, each mask in a color of its own."""
    pixels = np.asarray(picture, np.float32)
    drawn = 0.6 * pixels.mean(-1, keepdims=True) + 70
    for mask, color in zip(masks, COLORS * len(masks), strict=False):
        share = mask.numpy()[..., None]
        drawn = drawn * (1 - share) + (0.6 * pixels + 0.4 * np.array(color, np.float32)) * share
    return Image.fromarray(drawn.clip(0, 255).round().astype(np.uint8))
