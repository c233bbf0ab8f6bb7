"""Words -> boxes by Grounding DINO or OWLv2, boxes and points -> masks by SAM 2, all of transformers."""

from __future__ import annotations

from dataclasses import KW_ONLY

import torch
from PIL import Image
from pydantic.dataclasses import dataclass
from torchvision.ops import nms

from diffstyler.backbones import Backbone
from diffstyler.masking.base import Masker, NothingFoundError, Share, checked_options
from diffstyler.masking.pretrained import DINO, SAM2, Pretrained
from diffstyler.masking.sam import MASK_GENERATION, Segmenter


@checked_options
@dataclass(eq=False)
class GroundedSAMMasker(Masker):
    """Words by an open-vocabulary detector whose boxes SAM cuts (Ren et al. 2024), points and boxes by SAM alone.

    All objects of a word that reach ``threshold`` are found, the surest first; ``[1]``, ``[largest]`` or ``[left]``
    in the mask prompt takes one of them.

    Args:
        detector: folder or hub id of a Grounding DINO, MM Grounding DINO, OWL-ViT or OWLv2 model.
        segmenter: folder or hub id of a SAM 2, SAM or SlimSAM model (``diffstyler fetch-masker GroundedSAMMasker``
            fetches both defaults).
        threshold: least confidence of a box, 0 … 1. Detectors differ: about 0.3 for Grounding DINO, 0.15 for OWLv2.
        overlap: of two boxes with a larger IoU the surer one stays.
        device: by default the base model's.

    Raises:
        DiffstylerError: a model is not here, or a setting out of range.
    """

    detector: str = DINO
    segmenter: str = SAM2
    _: KW_ONLY
    threshold: Share = 0.3
    overlap: Share = 0.7
    device: str | None = None

    def __post_init__(self) -> None:
        kind = "AutoModelForZeroShotObjectDetection"
        self._detector = Pretrained("masker.detector", self.detector, kind, self.device)
        self._sam = Segmenter(Pretrained("masker.segmenter", self.segmenter, MASK_GENERATION, self.device))

    def setup(self, backbone: Backbone) -> None:
        self._detector.setup(backbone)
        self._sam.model.setup(backbone)

    @property
    def settings(self) -> dict:
        names = ("detector", "segmenter", "threshold", "overlap")
        hashes = {"detector_sha256": self._detector.sha256, "segmenter_sha256": self._sam.model.sha256}
        return {"class": type(self).__name__, **{name: getattr(self, name) for name in names}, **hashes}

    def find_text(self, picture: Image.Image, phrase: str) -> torch.Tensor:
        return torch.stack(self.find_objects(picture, phrase)).amax(0)

    def find_objects(self, picture: Image.Image, phrase: str) -> list[torch.Tensor]:
        return list(self._sam.boxes(picture, self._boxes(picture, phrase).tolist()))

    def find_points(
        self, picture: Image.Image, positive: list[tuple[float, float]], negative: list[tuple[float, float]]
    ) -> torch.Tensor:
        return self._sam.points(picture, positive, negative)

    def find_box(self, picture: Image.Image, box: tuple[float, float, float, float]) -> torch.Tensor:
        return self._sam.boxes(picture, [box])[0]

    @torch.no_grad()
    def _boxes(self, picture: Image.Image, phrase: str) -> torch.Tensor:
        """(N, 4) in pixels, N > 0, the surest first."""
        model, processor = self._detector.loaded
        inputs = processor(images=picture, text=[[phrase.lower()]], return_tensors="pt").to(model.device)
        with torch.autocast(model.device.type, enabled=False):
            found = model(**inputs)
        sizes = [(picture.height, picture.width)]
        (told,) = processor.post_process_grounded_object_detection(found, threshold=0.0, target_sizes=sizes)
        limits = torch.tensor([picture.width, picture.height] * 2)
        boxes, scores = told["boxes"].float().cpu().clamp(min=0).minimum(limits), told["scores"].float().cpu()
        there = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= 1  # OWLv2 also looks at what it pads the picture with
        boxes, scores = boxes[there], scores[there]
        if not len(scores) or scores.max() < self.threshold:
            best = f"{scores.max():.3f}" if len(scores) else "none"
            raise NothingFoundError(
                f"nothing in the picture matches '{phrase}': the surest box has {best}, masker.threshold is "
                f"{self.threshold}"
            )
        boxes, scores = boxes[scores >= self.threshold], scores[scores >= self.threshold]
        return boxes[nms(boxes, scores, self.overlap)]  # by falling scores
