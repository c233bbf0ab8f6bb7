"""Points and boxes in a picture -> masks, by SAM, SlimSAM or SAM 2 of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY

import torch
from PIL import Image
from pydantic.dataclasses import dataclass

from diffstyler.backbones import Backbone
from diffstyler.errors import DiffstylerError
from diffstyler.masking.base import Masker, checked_options
from diffstyler.masking.pretrained import SAM, Kept, Pretrained

MASK_GENERATION = "AutoModelForMaskGeneration"


class Segmenter:
    """Cuts what points or boxes mean; the image encoder runs once for all prompts of a picture.

    Args:
        model: of the SAM family.
    """

    def __init__(self, model: Pretrained) -> None:
        self.model = model
        self._embeddings = Kept(self._embed)

    def points(
        self, picture: Image.Image, positive: Sequence[tuple[float, float]], negative: Sequence[tuple[float, float]]
    ) -> torch.Tensor:
        """(H, W) float32. Of the answers to a single point the one is taken that the model is surest of."""
        points = [[float(x), float(y)] for x, y in (*positive, *negative)]
        labels = [1] * len(positive) + [0] * len(negative)
        masks, scores = self._cut(picture, len(points) == 1, input_points=[[points]], input_labels=[[labels]])
        return masks[0, scores[0].argmax()].float()

    def boxes(self, picture: Image.Image, boxes: Sequence[Sequence[float]]) -> torch.Tensor:
        """What several boxes hold, in one call: (N, H, W) float32."""
        masks, _ = self._cut(picture, False, input_boxes=[[[float(value) for value in box] for box in boxes]])
        return masks[:, 0].float()

    @torch.no_grad()
    def _cut(self, picture: Image.Image, several: bool, **prompt: list) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks (things, answers, H, W) bool and the model's own scores (things, answers), on the CPU."""
        model, processor = self.model.loaded
        inputs = processor(images=picture, return_tensors="pt", **prompt)
        known = {name: inputs[name].to(model.device) for name in prompt}
        known = {name: value.float() if value.is_floating_point() else value for name, value in known.items()}
        with torch.autocast(model.device.type, enabled=False):
            found = model(image_embeddings=self._embeddings(picture), multimask_output=several, **known)
        sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        (masks,) = processor.post_process_masks(found.pred_masks.cpu(), *sizes)
        return masks, found.iou_scores[0].cpu()

    @torch.no_grad()
    def _embed(self, picture: Image.Image) -> object:
        """The image encoder's answer."""
        model, processor = self.model.loaded
        pixels = processor(images=picture, return_tensors="pt").pixel_values.to(model.device)
        with torch.autocast(model.device.type, enabled=False):
            return model.get_image_embeddings(pixels)


@checked_options
@dataclass(eq=False)
class SAMMasker(Masker):
    """Points and boxes by Segment Anything (Kirillov et al. 2023, Ravi et al. 2024); it knows no words.

    Several points, positive and negative, mean one thing.

    Args:
        model: folder or hub id of a SAM, SlimSAM or SAM 2 model (``diffstyler fetch-masker SAMMasker`` fetches the
            default).
        device: by default the base model's.

    Raises:
        DiffstylerError: the model is not here.
    """

    model: str = SAM
    _: KW_ONLY
    device: str | None = None

    def __post_init__(self) -> None:
        self._sam = Segmenter(Pretrained("masker.model", self.model, MASK_GENERATION, self.device))

    def setup(self, backbone: Backbone) -> None:
        self._sam.model.setup(backbone)

    @property
    def settings(self) -> dict:
        return {"class": type(self).__name__, "model": self.model, "model_sha256": self._sam.model.sha256}

    def find_text(self, picture: Image.Image, phrase: str) -> torch.Tensor:
        raise DiffstylerError(
            f"mask '{phrase}': SAMMasker knows no words, only point: and box:; GroundedSAMMasker, CLIPSegMasker and "
            "FastSAMMasker do"
        )

    def find_points(
        self, picture: Image.Image, positive: list[tuple[float, float]], negative: list[tuple[float, float]]
    ) -> torch.Tensor:
        return self._sam.points(picture, positive, negative)

    def find_box(self, picture: Image.Image, box: tuple[float, float, float, float]) -> torch.Tensor:
        return self._sam.boxes(picture, [box])[0]
