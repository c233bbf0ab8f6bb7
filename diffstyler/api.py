"""fit and stylize for notebooks: one picture each, through the same modules as the command."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import lightning
from PIL import Image

from diffstyler.adapters import FittedLoRA
from diffstyler.chatter import LIBRARY_CHATTER
from diffstyler.errors import DiffstylerError
from diffstyler.fit.data import FitData
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.images import load_image, to_image
from diffstyler.masking.prompt import with_files_from
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.predict.data import PredictData
from diffstyler.predict.stylizer import Stylizer
from diffstyler.predict.writer import PredictError
from diffstyler.types import Failed, StyleRegion, Stylized, Triple

Style = str | Path | FittedLoRA
Outcomes = Sequence[Future[Stylized | Failed]]


def fit(
    picture: str | Path,
    finetuner: LoRAFinetuner | None = None,
    *,
    steps: int = 200,
    data: FitData | None = None,
    precision: str = "32-true",
) -> FittedLoRA:
    """Fit a LoRA to one picture, or find it in the library if it is there.

    Args:
        picture: the style (or content) picture.
        finetuner: model, library and settings.
        steps: optimizer steps.
        data: how the picture is used (``role``, ``prompt``, ``crops``, ``seed``); its pictures are replaced.
        precision: Lightning's.
    """
    finetuner = finetuner if finetuner is not None else LoRAFinetuner()
    data = data if data is not None else FitData(pictures=[Path(picture)])
    data.manifest, data.jobs, data.paths = None, None, [Path(picture)]
    with _quiet():
        trainer = _trainer(max_steps=steps, precision=precision)
        trainer.fit(finetuner, datamodule=data)
    return finetuner.finished[0]


def stylize(
    content: str | Path,
    style: Style | None = None,
    stylizer: Stylizer | None = None,
    *,
    regions: Sequence[tuple[str, Style] | StyleRegion] = (),
    content_prompt: str = "",
    strength: float = 1.0,
    precision: str = "32-true",
) -> Image.Image:
    """Bring one picture, or parts of it, into styles: ``stylize(photo, regions=[("the sky", "impasto.jpg")])``.

    Args:
        content: the picture.
        style: what :func:`fit` returned, a LoRA file or folder, or a picture whose LoRA is in the library.
        regions: in place of ``style``, a mask prompt and a style for each part, later ones on top; a
            :class:`StyleRegion` where more is to be said.
        stylizer: model and settings; its ``output_dir``, where it has one, gets picture and sidecar too.
        content_prompt: what the picture shows.
        strength: of the styles, 0 … 2; a :class:`StyleRegion` has its own.
        precision: Lightning's.

    Raises:
        DiffstylerError: both a style and regions, or neither.
        RowsError: the content, a style, its LoRA or a mask prompt cannot be used.
        PredictError: the picture could not be made, such as where a mask finds nothing.
    """
    if (style is None) == (not regions):
        raise DiffstylerError("expected a style, or regions=[(mask prompt, style), …], and not both")
    parts = tuple(_region(part, strength) for part in (regions or [("everything", style)]))  # type: ignore[list-item]
    names = "+".join(dict.fromkeys(part.style.stem for part in parts))
    with _quiet():
        stylizer = stylizer if stylizer is not None else Stylizer(output_dir=None)
        triple = Triple(f"{Path(content).stem}-{names}", Path(content), parts, content_prompt=content_prompt)
        keep = _Keep()
        trainer = _trainer(precision=precision, callbacks=[keep])
        trainer.predict(stylizer, datamodule=PredictData(triples=[triple]), return_predictions=False)
    for outcome in (future.result() for future in keep.outcomes):
        if isinstance(outcome, Failed):
            raise PredictError(outcome.reason)
        return to_image(outcome.pixels)
    assert stylizer.writer is not None  # it was there already
    return load_image(stylizer.writer.output_dir / f"{triple.id}.png")


def _region(part: tuple[str, Style] | StyleRegion, strength: float) -> StyleRegion:
    if isinstance(part, StyleRegion):
        return part
    mask, style = part
    path = style.folder if isinstance(style, FittedLoRA) else Path(style)
    return StyleRegion(path, mask=str(with_files_from(parse_mask_prompt(mask), Path())), strength=strength)


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's remarks on choices that are ours, away from the notebook."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in LIBRARY_CHATTER:
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            logger.setLevel(level)
