"""A phrase -> a mask by CLIPSeg of transformers: small and quick, its borders are coarse."""

from __future__ import annotations

from dataclasses import KW_ONLY

import torch
from PIL import Image
from pydantic.dataclasses import dataclass
from torch.nn import functional

from diffstyler.backbones import Backbone
from diffstyler.masking.base import Masker, NothingFoundError, Share, checked_options
from diffstyler.masking.pretrained import CLIPSEG, Kept, Pretrained


@checked_options
@dataclass(eq=False)
class CLIPSegMasker(Masker):
    """Words by CLIPSeg (Lüddecke and Ecker 2022), points by color and edges, boxes as they are.

    Args:
        model: folder or hub id of a CLIPSeg model (``diffstyler fetch-masker CLIPSegMasker`` fetches the default).
        threshold: a pixel is in where the model's probability reaches it, 0 … 1; where none does, nothing is found.
        device: by default the base model's.

    Raises:
        DiffstylerError: the model is not here, or a setting out of range.
    """

    model: str = CLIPSEG
    _: KW_ONLY
    threshold: Share = 0.4
    device: str | None = None

    def __post_init__(self) -> None:
        self._clipseg = Pretrained("masker.model", self.model, "CLIPSegForImageSegmentation", self.device)
        self._pixels = Kept(self._prepare)

    def setup(self, backbone: Backbone) -> None:
        self._clipseg.setup(backbone)

    @property
    def settings(self) -> dict:
        own = {"model": self.model, "threshold": self.threshold, "model_sha256": self._clipseg.sha256}
        return {"class": type(self).__name__, **own}

    @torch.no_grad()
    def find_text(self, picture: Image.Image, phrase: str) -> torch.Tensor:
        model, processor = self._clipseg.loaded
        words = processor.tokenizer([phrase], padding=True, truncation=True, return_tensors="pt").to(model.device)
        with torch.autocast(model.device.type, enabled=False):
            logits = model(**words, pixel_values=self._pixels(picture)).logits
        side = logits.shape[-1]
        found = logits.float().sigmoid().view(1, 1, side, side).cpu()
        if (peak := found.max().item()) < self.threshold:
            raise NothingFoundError(
                f"nothing in the picture matches '{phrase}': its highest probability is {peak:.3f}, masker.threshold "
                f"is {self.threshold}"
            )
        full = functional.interpolate(found, (picture.height, picture.width), mode="bilinear")[0, 0]
        return (full >= self.threshold).float()

    def _prepare(self, picture: Image.Image) -> torch.Tensor:
        """The picture as the model sees it, (1, 3, h, w)."""
        model, processor = self._clipseg.loaded
        return processor.image_processor(picture, return_tensors="pt").pixel_values.to(model.device)
