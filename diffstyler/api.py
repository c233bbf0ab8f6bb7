"""fit, stylize and masks for notebooks and pages: a few pictures, through the same modules as the commands."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import lightning
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from diffstyler.adapters import (
    WEIGHTS_NAME,
    FittedLoRA,
    LoRAIdentity,
    LoRALibrary,
    inspect_lora,
    read_lora,
)
from diffstyler.backbones import Backbone, StableDiffusion
from diffstyler.chatter import quiet
from diffstyler.errors import DiffstylerError
from diffstyler.files import file_sha256
from diffstyler.fit.data import FitData
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.images import load_image, picture_sha256, save_image, to_image
from diffstyler.masking import find_masks
from diffstyler.masking.prompt import with_files_from
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.predict.adapter_cache import ForeignLoRAError
from diffstyler.predict.data import PredictData
from diffstyler.predict.row_check import foreign_loras
from diffstyler.predict.stylizer import Stylizer
from diffstyler.predict.writer import PredictError
from diffstyler.types import Failed, StyleRegion, Stylized, Triple

Picture = str | Path | Image.Image
Style = str | Path | FittedLoRA
#: a mask prompt, or a picture of the content's size: white = stylize
Mask = str | Image.Image
#: is called with what is done and all there is to do; what it raises (no ValueError, RuntimeError or OSError, which are
#: told as faults of the picture) ends the run, which leaves the model as it was and keeps what a fit has under way
Progress = Callable[[int, int], None]
Outcomes = Sequence[Future[Stylized | Failed]]


def fit(
    picture: str | Path,
    finetuner: LoRAFinetuner | None = None,
    *,
    steps: int = 200,
    data: FitData | None = None,
    precision: str = "32-true",
    accelerator: str = "auto",
    progress: Progress | None = None,
    loss: Callable[[Path, int, float], None] | None = None,
    preview: Callable[[Path, int, Image.Image], None] | None = None,
) -> FittedLoRA:
    """Fit a LoRA to one picture, or find it in the library if it is there.

    Args:
        picture: the style (or content) picture.
        finetuner: model, library and settings.
        steps: optimizer steps.
        data: how the picture is used (``role``, ``prompt``, ``crops``, ``seed``); its pictures are replaced.
        precision: Lightning's.
        accelerator: Lightning's.
        progress: is told the steps done and all steps, as the bar is.
        loss: is told the picture, the steps done, and the loss of the last one.
        preview: is shown what the LoRA draws: every ``preview_every`` steps of the finetuner, and when it is done.

    Raises:
        RowsError: the picture cannot be used.
        FitError: the LoRA could not be fitted, such as where its loss is not finite.
    """
    told = {"progress": progress, "loss": loss, "preview": preview}
    more = {"steps": steps, "data": data, "precision": precision, "accelerator": accelerator}
    return fit_all([picture], finetuner, **more, **told)[0]  # type: ignore[arg-type]


def fit_all(
    pictures: Sequence[str | Path],
    finetuner: LoRAFinetuner | None = None,
    *,
    steps: int = 200,
    data: FitData | None = None,
    precision: str = "32-true",
    accelerator: str = "auto",
    progress: Progress | None = None,
    loss: Callable[[Path, int, float], None] | None = None,
    preview: Callable[[Path, int, Image.Image], None] | None = None,
) -> list[FittedLoRA]:
    """Fit a LoRA to each of several pictures, ``data.pack_size`` of them at once; arguments as of :func:`fit`.

    Returns:
        The LoRAs, in the order of the pictures; equal pictures have one.

    Raises:
        RowsError: a picture cannot be used; none was fitted.
        FitError: some could not be fitted; its ``reasons`` say why, and the others are in the library.
    """
    finetuner = finetuner if finetuner is not None else LoRAFinetuner()
    paths = [Path(picture) for picture in pictures]
    data = data if data is not None else FitData(pictures=paths)
    data.manifest, data.jobs, data.paths = None, None, paths
    watch = finetuner.progress
    watch.report, watch.loss, watch.preview = progress, loss, preview
    with quiet():
        trainer = _trainer(max_steps=steps, precision=precision, accelerator=accelerator)
        trainer.fit(finetuner, datamodule=data)
    return finetuner.finished


def stylize(
    content: Picture,
    style: Style | None = None,
    stylizer: Stylizer | None = None,
    *,
    regions: Sequence[tuple[Mask, Style] | StyleRegion] = (),
    content_prompt: str = "",
    strength: float = 1.0,
    seed: int = 0,
    precision: str = "32-true",
    accelerator: str = "auto",
    progress: Progress | None = None,
    preview: Callable[[Image.Image], None] | None = None,
    preview_every: int = 5,
) -> Image.Image:
    """Bring one picture, or parts of it, into styles: ``stylize(photo, regions=[("the sky", "impasto.jpg")])``.

    Args:
        content: the picture.
        style: what :func:`fit` returned, a LoRA file or folder, or a picture whose LoRA is in the library.
        regions: in place of ``style``, a mask (a prompt or a picture) and a style for each part, later ones on top; a
            :class:`StyleRegion` where more is to be said.
        stylizer: model and settings; its ``output_dir``, where it has one, gets picture and sidecar too.
        content_prompt: what the picture shows.
        strength: of the styles, 0 … 2; a :class:`StyleRegion` has its own.
        seed: of what is random where the denoising starts.
        precision: Lightning's.
        accelerator: Lightning's.
        progress: is told the steps done and all steps, as the bar is.
        preview: is shown the picture, at working size, as it is on the way.
        preview_every: steps from one look to the next.

    Raises:
        DiffstylerError: both a style and regions, or neither.
        RowsError: the content, a style, its LoRA or a mask prompt cannot be used.
        PredictError: the picture could not be made, such as where a mask finds nothing.
    """
    if (style is None) == (not regions):
        raise DiffstylerError("expected a style, or regions=[(mask prompt, style), …], and not both")
    if style is not None:
        regions = [("everything", style)]
    with tempfile.TemporaryDirectory() as folder:
        path = _on_disk(content, Path(folder) / "picture.png")
        parts = tuple(
            _region(part, strength, Path(folder) / f"mask-{number}.png") for number, part in enumerate(regions)
        )
        names = "+".join(dict.fromkeys(part.style.stem for part in parts))
        row = Triple(f"{path.stem}-{names}", path, parts, content_prompt=content_prompt, seed=seed)
        told = {"progress": progress, "preview": preview, "preview_every": preview_every}
        return stylize_row(row, stylizer, precision=precision, accelerator=accelerator, **told)  # type: ignore[arg-type]


def stylize_row(
    row: Triple,
    stylizer: Stylizer | None = None,
    *,
    precision: str = "32-true",
    accelerator: str = "auto",
    progress: Progress | None = None,
    preview: Callable[[Image.Image], None] | None = None,
    preview_every: int = 5,
) -> Image.Image:
    """The picture that a row of a manifest asks for, such as one that :func:`read_manifest` read.

    What the stylizer's ``output_dir``, where it has one, gets is called by the row's id. Arguments and errors as of
    :func:`stylize`.
    """
    keep = _Keep()
    stylizer = stylizer if stylizer is not None else Stylizer(output_dir=None)
    watch = stylizer.progress
    watch.report, watch.preview, watch.preview_every = progress, preview, preview_every
    with quiet():
        trainer = _trainer(precision=precision, accelerator=accelerator, callbacks=[keep])
        trainer.predict(stylizer, datamodule=PredictData(triples=[row]), return_predictions=False)
    for outcome in (future.result() for future in keep.outcomes):
        if isinstance(outcome, Failed):
            raise PredictError(outcome.reason)
        return to_image(outcome.pixels)
    assert stylizer.writer is not None  # it was there already
    return load_image(stylizer.writer.output_dir / f"{row.id}.png")


def masks(content: Picture, prompts: Sequence[str], stylizer: Stylizer | None = None) -> list[Image.Image]:
    """What mask prompts find in a picture, as pictures of its size: white = in.

    Args:
        content: the picture.
        prompts: of all regions; ``background`` is what the others leave.
        stylizer: whose model, masker and feather find them.

    Raises:
        DiffstylerError: a prompt is wrong.
        NothingFoundError: the picture does not show what a prompt asks for.
    """
    parsed = [with_files_from(parse_mask_prompt(prompt), Path()) for prompt in prompts]
    with quiet(), torch.no_grad():
        stylizer = stylizer if stylizer is not None else Stylizer(output_dir=None)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if not stylizer.backbone.is_loaded:
            stylizer.backbone.load()
        stylizer.backbone.to(device).prepare(device)
        stylizer.masker.setup(stylizer.backbone)
        picture = content if isinstance(content, Image.Image) else load_image(Path(content))
        found = find_masks(
            stylizer.masker, picture.convert("RGB"), parsed, feather=stylizer.feather * min(picture.size)
        )
    return [to_pil_image(mask) for mask in found]


def add_lora(
    file: str | Path,
    lora_dir: str | Path = "loras",
    *,
    name: str = "",
    picture: str | Path | None = None,
    backbone: Backbone | None = None,
) -> FittedLoRA:
    """Put a LoRA of another tool into a library, after the checks that every LoRA passes before it is used.

    Args:
        file: a ``.safetensors`` file of any dialect.
        lora_dir: the library.
        name: in the library; by default the file's.
        picture: the style picture that it was made from: it becomes the thumbnail, what a start with the style's
            statistics is taken from, and what the LoRA is found by.
        backbone: the model that it is for.

    Raises:
        LoRAFileError: it is no readable LoRA.
        ForeignLoRAError: it was made for another model.
        ImageError: the picture cannot be used.
    """
    path, backbone = Path(file), backbone if backbone is not None else StableDiffusion()
    lora = read_lora(path)
    if faults := foreign_loras({path: lora}, backbone, allow_partial=False):
        raise ForeignLoRAError(faults[path])
    image = load_image(Path(picture)) if picture is not None else None
    settings = {"imported": file_sha256(path), "prompt": str(inspect_lora(path)["prompt"] or "")}
    sha256 = picture_sha256(image) if image is not None else ""
    identity = LoRAIdentity("style", name or path.stem, sha256, backbone.fingerprint(), settings)

    def write(folder: Path) -> None:
        shutil.copyfile(path, folder / WEIGHTS_NAME)
        if image is not None:
            save_image(image, folder / "thumbnail.png")

    return LoRALibrary(Path(lora_dir)).publish(identity, write)


def _on_disk(picture: Picture, path: Path) -> Path:
    """Where a picture lies; one in memory is written to ``path``."""
    if not isinstance(picture, Image.Image):
        return Path(picture)
    picture.save(path)
    return path


def _region(part: tuple[Mask, Style] | StyleRegion, strength: float, path: Path) -> StyleRegion:
    """``path`` is where the mask goes, if it is a picture."""
    if isinstance(part, StyleRegion):
        return part
    mask, style = part
    prompt = mask if isinstance(mask, str) else f"file: {_on_disk(mask.convert('L'), path)}"
    folder = style.folder if isinstance(style, FittedLoRA) else Path(style)
    return StyleRegion(folder, mask=str(with_files_from(parse_mask_prompt(prompt), Path())), strength=strength)


class _Keep(lightning.Callback):
    """What the last batch gave; Lightning's own keeping cannot hold frozen dataclasses."""

    outcomes: Outcomes = ()

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Outcomes, *_: object
    ) -> None:
        self.outcomes = outputs


def _trainer(**options: object) -> lightning.Trainer:
    return lightning.Trainer(
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **options,  # type: ignore[arg-type]
    )
