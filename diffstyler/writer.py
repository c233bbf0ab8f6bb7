"""Finished pictures -> files: the picture, its sidecar, and a list of what failed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import BasePredictionWriter
from torchvision.transforms.functional import to_pil_image

from diffstyler.images import atomic_write, save_image, to_image
from diffstyler.sheet import write_sheet
from diffstyler.types import Failed, Stylized

log = logging.getLogger(__name__)

FAILURES_NAME = "failures.jsonl"


class PredictError(RuntimeError):
    """Some pictures could not be made; the text names each and says why. The others are written."""


def request_key(request: dict) -> str:
    """sha256 of everything that determines a picture."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class StylizationWriter(BasePredictionWriter):
    """Writes ``<id>.png`` and ``<id>.json`` as soon as a batch is done, and the contact sheet at the end.

    Args:
        output_dir: the folder; made if it is not there.
    """

    def __init__(self, output_dir: Path) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = output_dir
        self.failures: list[Failed] = []

    def is_done(self, id: str, key: str) -> bool:
        """Whether this very picture lies in the folder already."""
        sidecar = self.output_dir / f"{id}.json"
        if not sidecar.is_file() or not (self.output_dir / f"{id}.png").is_file():
            return False
        try:
            return json.loads(sidecar.read_text(encoding="utf-8")).get("key") == key
        except json.JSONDecodeError:
            return False

    def write_on_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        prediction: Sequence[Stylized | Failed],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for outcome in prediction:
            if isinstance(outcome, Failed):
                self.failures.append(outcome)
            else:
                self.write(outcome)

    def write(self, stylized: Stylized) -> None:
        """Masks and picture first, then the sidecar: a sidecar says that its picture is complete."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for name, mask in stylized.masks.items():
            path = self.output_dir / name
            path.parent.mkdir(exist_ok=True)
            save_image(to_pil_image(mask), path)
        save_image(to_image(stylized.pixels), self.output_dir / f"{stylized.id}.png")
        text = json.dumps(stylized.provenance, indent=2, sort_keys=True, ensure_ascii=False)
        atomic_write(self.output_dir / f"{stylized.id}.json", (text + "\n").encode())

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if trainer.is_global_zero:
            write_sheet(self.output_dir)
        report = self.output_dir / FAILURES_NAME
        if not self.failures:
            report.unlink(missing_ok=True)
            return
        lines = [json.dumps({"id": f.id, "origin": f.origin, "reason": f.reason}) for f in self.failures]
        atomic_write(report, ("\n".join(lines) + "\n").encode())
        named = "\n".join(f"  {f.origin or f.id}: {f.reason}" for f in self.failures)
        raise PredictError(f"{len(self.failures)} pictures could not be made (see {report}):\n{named}")
