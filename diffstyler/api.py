"""fit, stylize and masks for notebooks: one picture each, through the same modules as the command."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import lightning
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from diffstyler.adapters import FittedLoRA
from diffstyler.chatter import quiet
from diffstyler.errors import DiffstylerError
from diffstyler.fit.data import FitData
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.images import load_image, to_image
from diffstyler.masking import find_masks
from diffstyler.masking.prompt import with_files_from
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.predict.data import PredictData
from diffstyler.predict.stylizer import Stylizer
from diffstyler.predict.writer import PredictError
from diffstyler.types import Failed, StyleRegion, Stylized, Triple

Picture = str | Path | Image.Image
Style = str | Path | FittedLoRA
#: a mask prompt, or a picture of the content's size: white = stylize
Mask = str | Image.Image
#: is called with what is done and all there is to do
Progress = Callable[[int, int], None]
Outcomes = Sequence[Future[Stylized | Failed]]


def fit(
    picture: str | Path,
    finetuner: LoRAFinetuner | None = None,
    *,
    steps: int = 200,
    data: FitData | None = None,
    precision: str = "32-true",
    progress: Progress | None = None,
) -> FittedLoRA:
    """Fit a LoRA to one picture, or find it in the library if it is there.

    Args:
        picture: the style (or content) picture.
        finetuner: model, library and settings.
        steps: optimizer steps.
        data: how the picture is used (``role``, ``prompt``, ``crops``, ``seed``); its pictures are replaced.
        precision: Lightning's.
        progress: is told the steps done and all steps, as the bar is.
    """
    finetuner = finetuner if finetuner is not None else LoRAFinetuner()
    data = data if data is not None else FitData(pictures=[Path(picture)])
    data.manifest, data.jobs, data.paths = None, None, [Path(picture)]
    finetuner.progress.report = progress
    with quiet():
        trainer = _trainer(max_steps=steps, precision=precision)
        trainer.fit(finetuner, datamodule=data)
    return finetuner.finished[0]


def stylize(
    content: Picture,
    style: Style | None = None,
    stylizer: Stylizer | None = None,
    *,
    regions: Sequence[tuple[Mask, Style] | StyleRegion] = (),
    content_prompt: str = "",
    strength: float = 1.0,
    precision: str = "32-true",
    progress: Progress | None = None,
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
        precision: Lightning's.
        progress: is told the steps done and all steps, as the bar is.

    Raises:
        DiffstylerError: both a style and regions, or neither.
        RowsError: the content, a style, its LoRA or a mask prompt cannot be used.
        PredictError: the picture could not be made, such as where a mask finds nothing.
    """
    if (style is None) == (not regions):
        raise DiffstylerError("expected a style, or regions=[(mask prompt, style), …], and not both")
    if style is not None:
        regions = [("everything", style)]
    keep = _Keep()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        path = _on_disk(content, Path(folder) / "picture.png")
        parts = tuple(
            _region(part, strength, Path(folder) / f"mask-{number}.png") for number, part in enumerate(regions)
        )
        names = "+".join(dict.fromkeys(part.style.stem for part in parts))
        triple = Triple(f"{path.stem}-{names}", path, parts, content_prompt=content_prompt)
        stylizer = stylizer if stylizer is not None else Stylizer(output_dir=None)
        stylizer.progress.report = progress
        trainer = _trainer(precision=precision, callbacks=[keep])
        trainer.predict(stylizer, datamodule=PredictData(triples=[triple]), return_predictions=False)
    for outcome in (future.result() for future in keep.outcomes):
        if isinstance(outcome, Failed):
            raise PredictError(outcome.reason)
        return to_image(outcome.pixels)
    assert stylizer.writer is not None  # it was there already
    return load_image(stylizer.writer.output_dir / f"{triple.id}.png")


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
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **options,  # type: ignore[arg-type]
    )
