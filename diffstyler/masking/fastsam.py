"""FastSAM's candidates in a picture -> the masks of words, points and boxes.

Needs ``pip install "diffstyler[fastsam]"``: ultralytics, under the AGPL-3.0. FastSAM (Zhao et al. 2023) cuts a picture
into candidates; which of them a prompt means is decided here. Its weights come by path, or by :func:`fetch_weights`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch._tensor_str import printoptions as torch_printoptions
from torch.nn import functional
from torchvision.ops import box_iou, masks_to_boxes

from diffstyler.chatter import redirect_ultralytics
from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write, file_sha256
from diffstyler.images import picture_sha256
from diffstyler.masking.base import Masker, NothingFoundError, Share, checked_options

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor

    from diffstyler.backbones import Backbone

RELEASE = "https://github.com/ultralytics/assets/releases/download/v8.2.0"

WEIGHTS = {  # SHA-256 of the release's files, as several public projects that pin them record it
    "FastSAM-s.pt": "c9f78716a81c7aff0d608ccc73e1b82ab3aaad86005049f6a92106a0be6d0844",
    "FastSAM-x.pt": "752cadc2828edb1cd4bc4f9eb587100631af06ea2108f4c9ed56df4755701e76",
}

BOX_MINIMUM = 0.5  # IoU of a candidate's box with the prompt's
TEMPLATE = "a photo of {}"
NEUTRAL = ("background", "something else")  # what a candidate may show instead of the phrase
TIE = 0.5  # candidates with this share of the best one's softmax are found beside it
MARGIN = 0.1  # around a candidate's box, of its longer side
GRAY = (122, 116, 104)  # CLIP's mean color
PICTURES_KEPT = 3


@checked_options
@dataclass(eq=False)
class FastSAMMasker(Masker):
    """Points, boxes and words by FastSAM's candidates; words are matched to them by CLIP.

    Points: the smallest candidate with all positive points and no negative one; if there is none, the union of the
    smallest ones for each positive point. Box: the candidate whose own box has the best IoU with it, at least 0.5.
    Words: CLIP compares every candidate, alone on gray, with the phrase and with "background" and "something else".
    Those that the phrase wins with a softmax of at least ``threshold`` match, so that nothing may match; of these, a
    softmax over candidates finds the best one and those with at least half its share (a second cat).

    Candidates are cut at ``image_size`` pixels at most, FastSAM sees no more; masks are scaled to the picture's size.

    Args:
        weights: FastSAM-s.pt or FastSAM-x.pt. A pickle: only what belongs to ultralytics and torch is read from it.
        clip: folder or hub id of a CLIP model for words; of a hub id, transformers fetches what its cache lacks.
        threshold: 0 … 1, see above. Not calibrated: look at ``diffstyler masks``.
        confidence: of a candidate, 0 … 1.
        iou: candidates that overlap more than this are one.
        image_size: long side in pixels that FastSAM works at.
        device: by default the base model's.

    Raises:
        DiffstylerError: no such file, no ultralytics, or a setting out of range.
    """

    weights: Path
    clip: str | None = None
    _: KW_ONLY
    threshold: Share = 0.5
    confidence: Share = 0.4
    iou: Share = 0.9
    image_size: Annotated[int, Field(ge=32, multiple_of=32, strict=True)] = 1024
    device: str | None = None

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ultralytics") is None:
            raise DiffstylerError('FastSAMMasker needs ultralytics (AGPL-3.0): pip install "diffstyler[fastsam]"')
        if not self.weights.is_file():
            raise DiffstylerError(
                f"masker.weights: expected FastSAM's weights, found no file {self.weights}; nothing is downloaded by "
                f"itself: `diffstyler fetch-fastsam` fetches {' or '.join(WEIGHTS)} from {RELEASE}"
            )
        path = str(self.weights.resolve())
        if self.weights.suffix != ".pt" or "'" in path:  # ultralytics drops apostrophes, then downloads
            expected = "a .pt file in a path without apostrophes"
            raise DiffstylerError(f"masker.weights: expected {expected}, got {self.weights}")
        self._backbone: Backbone | None = None
        self._masks: dict[str, torch.Tensor] = {}
        self._embeds: dict[str, torch.Tensor] = {}

    def setup(self, backbone: Backbone) -> None:
        self._backbone = backbone

    @cached_property
    def _hashes(self) -> dict:
        files = sorted(Path(self.clip).glob("*.safetensors")) if self.clip is not None else []
        shards = "".join(file_sha256(file) for file in files)
        clip = hashlib.sha256(shards.encode()).hexdigest() if len(files) > 1 else shards or None
        return {"weights_sha256": file_sha256(self.weights), "clip_sha256": clip}

    @property
    def settings(self) -> dict:
        names = ("clip", "threshold", "confidence", "iou", "image_size")
        return {"class": type(self).__name__, **{name: getattr(self, name) for name in names}, **self._hashes}

    def find_points(
        self, picture: Image.Image, positive: list[tuple[float, float]], negative: list[tuple[float, float]]
    ) -> torch.Tensor:
        masks = self._candidates(picture)
        allowed = masks[~torch.stack([_at(masks, picture, point) for point in negative]).any(0)] if negative else masks
        holds = torch.stack([_at(allowed, picture, point) for point in positive])  # (points, candidates)
        if holds.all(0).any():
            return _whole(_smallest(allowed[holds.all(0)]), picture)
        for point, hits in zip(positive, holds, strict=True):
            if not hits.any():
                x, y = point
                without = " without a negative point" if negative else ""
                raise NothingFoundError(f"FastSAM found no candidate{without} at {x:g},{y:g}, {len(masks)} in all")
        return _whole(torch.stack([_smallest(allowed[hits]) for hits in holds]).any(0), picture)

    def find_box(self, picture: Image.Image, box: tuple[float, float, float, float]) -> torch.Tensor:
        masks = self._candidates(picture)
        x_scale, y_scale = picture.width / masks.shape[2], picture.height / masks.shape[1]
        boxes = (masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])) * torch.tensor([x_scale, y_scale] * 2)
        overlap = box_iou(torch.tensor([box]), boxes)[0]
        if overlap.max() < BOX_MINIMUM:
            raise NothingFoundError(
                f"no candidate of FastSAM fits the box: the best IoU is {overlap.max():.2f}, the least {BOX_MINIMUM}"
            )
        return _whole(masks[overlap.argmax()], picture)

    def find_text(self, picture: Image.Image, phrase: str) -> torch.Tensor:
        return torch.stack(self.find_objects(picture, phrase)).amax(0)

    def find_objects(self, picture: Image.Image, phrase: str) -> list[torch.Tensor]:
        if self.clip is None:
            raise DiffstylerError(
                f"mask '{phrase}': FastSAMMasker needs masker.clip for words, a folder or a hub id such as "
                "openai/clip-vit-base-patch32; points and boxes need none"
            )
        logits = self._logits(picture, phrase)
        scores = logits.softmax(1)[:, 0]
        if scores.max() < self.threshold:
            raise NothingFoundError(
                f"nothing in the picture matches '{phrase}': the best of {len(scores)} candidates scores "
                f"{scores.max():.3f}, masker.threshold is {self.threshold}"
            )
        shares = logits[:, 0].masked_fill(scores < self.threshold, -torch.inf).softmax(0)
        masks = self._candidates(picture)
        best = shares.argsort(descending=True, stable=True)
        return [_whole(masks[index], picture) for index in best if shares[index] >= TIE * shares.max()]

    # ---- FastSAM

    def _candidates(self, picture: Image.Image) -> torch.Tensor:
        """(N, h, w) bool, in the picture's aspect, N > 0; those of the last few pictures are kept."""
        masks = _kept(self._masks, picture, self._segment)
        if not len(masks):
            raise NothingFoundError(f"FastSAM found nothing in the picture at masker.confidence {self.confidence}")
        return masks

    def _segment(self, picture: Image.Image) -> torch.Tensor:
        """(N, h, w) bool on the CPU."""
        working = picture.copy()
        working.thumbnail((self.image_size, self.image_size), Image.Resampling.LANCZOS)
        model = self._model
        with _as_it_was(), torch.autocast(self._device.type, enabled=False):
            (result,) = model.predict(
                np.ascontiguousarray(np.asarray(working)[:, :, ::-1]),  # BGR
                retina_masks=True,
                imgsz=self.image_size,
                conf=self.confidence,
                iou=self.iou,
                device=str(self._device),
                verbose=False,
            )
        if result.masks is None:
            return torch.zeros(0, working.height, working.width, dtype=torch.bool)
        return torch.as_tensor(result.masks.data).cpu() > 0

    @cached_property
    def _model(self) -> Any:
        """ultralytics' FastSAM, loaded by the first picture. Twice: first where any pickled code is refused.

        Its class is not named above: jsonargparse runs imports under TYPE_CHECKING, and would import ultralytics.
        """
        path = str(self.weights.resolve())
        with _as_it_was():
            _import_quietly()
            from ultralytics import FastSAM
            from ultralytics.nn.tasks import SegmentationModel, torch_safe_load

            try:
                torch_safe_load(path, safe_only=True)
                model = FastSAM(path)
            except Exception as error:
                got = f"reading it failed ({str(error).splitlines()[0]})"
                raise DiffstylerError(f"masker.weights: expected FastSAM's weights in {path}, but {got}") from error
            if not isinstance(model.model, SegmentationModel):
                got = type(model.model).__name__
                raise DiffstylerError(f"masker.weights: expected a SegmentationModel in {path}, got a {got}")
        return model

    @property
    def _device(self) -> torch.device:
        if self.device is None and self._backbone is not None:
            return next(self._backbone.network.parameters()).device
        return torch.device(self.device or "cpu")

    # ---- CLIP

    @torch.no_grad()
    def _logits(self, picture: Image.Image, phrase: str) -> torch.Tensor:
        """CLIP's, of every candidate with the phrase and what else it may show: (N, 1 + neutral) on the CPU."""
        crops = _kept(self._embeds, picture, self._embed)
        model, processor = self._clip
        texts = [TEMPLATE.format(words) for words in (phrase, *NEUTRAL)]
        tokens = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self._device)
        with torch.autocast(self._device.type, enabled=False):
            pooled = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
            embeds = functional.normalize(model.text_projection(pooled), dim=1)
            return (model.logit_scale.exp() * crops @ embeds.T).float().cpu()

    @torch.no_grad()
    def _embed(self, picture: Image.Image) -> torch.Tensor:
        """CLIP's image embeddings of the candidates, (N, D), of length 1."""
        masks = self._candidates(picture)
        working = picture.resize((masks.shape[2], masks.shape[1]), Image.Resampling.LANCZOS)
        model, processor = self._clip
        embeds = []
        with torch.autocast(self._device.type, enabled=False):
            for some in masks.split(32):
                crops = [_crop(working, mask) for mask in some]
                pixels = processor.image_processor(crops, return_tensors="pt").pixel_values.to(self._device)
                embeds.append(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output))
        return functional.normalize(torch.cat(embeds), dim=1)

    @cached_property
    def _clip(self) -> tuple[CLIPModel, CLIPProcessor]:
        from transformers import CLIPModel, CLIPProcessor

        assert self.clip is not None
        try:
            model = CLIPModel.from_pretrained(self.clip, use_safetensors=True)
            processor = CLIPProcessor.from_pretrained(self.clip)
        except OSError as error:
            got = f"reading '{self.clip}' failed ({str(error).splitlines()[0]})"
            raise DiffstylerError(f"masker.clip: expected a CLIP model with its processor, but {got}") from error
        return model.eval().to(self._device), processor  # type: ignore[arg-type]


def fetch_weights(name: str, folder: Path) -> Path:
    """Download FastSAM's weights (AGPL-3.0) into ``folder`` -> their path; a file that is there already is checked.

    Args:
        name: FastSAM-s.pt (23 MB) or FastSAM-x.pt (138 MB, better masks).
        folder: made if it is missing.

    Raises:
        DiffstylerError: an unknown name, no connection, or bytes that are not the known ones.
    """
    if name not in WEIGHTS:
        raise DiffstylerError(f"expected {' or '.join(WEIGHTS)}, got '{name}'")
    path, url = folder / name, f"{RELEASE}/{name}"
    if path.is_file():
        data, source = path.read_bytes(), str(path)
    else:
        source = url
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                data = response.read()
        except OSError as error:
            raise DiffstylerError(
                f"could not fetch {url} ({error}); fetch it elsewhere and copy it to {path}"
            ) from error
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != WEIGHTS[name]:
        raise DiffstylerError(f"expected SHA-256 {WEIGHTS[name]} of {source}, got {sha256}; nothing was written")
    if source == url:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)
    return path


def _kept(
    kept: dict[str, torch.Tensor], picture: Image.Image, make: Callable[[Image.Image], torch.Tensor]
) -> torch.Tensor:
    """What was made of the picture before, if it was one of the last few."""
    key = picture_sha256(picture)
    if key not in kept:
        kept[key] = make(picture)
        if len(kept) > PICTURES_KEPT:
            del kept[next(iter(kept))]
    return kept[key]


def _at(masks: torch.Tensor, picture: Image.Image, point: tuple[float, float]) -> torch.Tensor:
    """Which masks (N, h, w) hold a point of the picture, (N,)."""
    h, w = masks.shape[1:]
    return masks[:, min(int(point[1] / picture.height * h), h - 1), min(int(point[0] / picture.width * w), w - 1)]


def _smallest(masks: torch.Tensor) -> torch.Tensor:
    return masks[masks.sum((1, 2)).argmin()]


def _whole(mask: torch.Tensor, picture: Image.Image) -> torch.Tensor:
    """(h, w) bool -> (H, W) float32 at the picture's size."""
    size = (picture.height, picture.width)
    if mask.shape == size:
        return mask.float()
    return (functional.interpolate(mask[None, None].float(), size, mode="bilinear")[0, 0] >= 0.5).float()


def _crop(picture: Image.Image, mask: torch.Tensor) -> Image.Image:
    """The candidate alone on gray, in the middle of a square: CLIP's processor would cut what is not square."""
    x0, y0, x1, y1 = (int(value) for value in masks_to_boxes(mask[None])[0])
    box = (x0, y0, x1 + 1, y1 + 1)
    width, height = box[2] - x0, box[3] - y0
    side = max(width, height) + 2 * max(1, round(MARGIN * max(width, height)))
    square = Image.new("RGB", (side, side), GRAY)
    stencil = Image.fromarray(mask.numpy().astype(np.uint8) * 255).crop(box)
    square.paste(picture.crop(box), ((side - width) // 2, (side - height) // 2), stencil)
    return square


def _import_quietly() -> None:
    """Import ultralytics so that it fetches, installs, reports and says nothing; inside :func:`_as_it_was`.

    Its settings file goes to a temporary folder. Who imported it before has chosen these things: they stay.
    """
    if "ultralytics" in sys.modules:
        return
    redirect_ultralytics()
    import ultralytics

    ultralytics.settings.update({"sync": False})


@contextmanager
def _as_it_was() -> Iterator[None]:
    """What ultralytics changes inside is put back: environment, patched functions, threads, printing, trusted types."""
    with warnings.catch_warnings(), np.printoptions(), torch_printoptions(), mock.patch.dict(os.environ):
        import cv2

        warnings.simplefilter("ignore")
        save, opener, trusted = torch.save, Image.open, torch.serialization.get_safe_globals()
        threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
        try:
            yield
        finally:
            torch.save, Image.open = save, opener
            torch.set_num_threads(threads)
            cv2.setNumThreads(cv2_threads)
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(trusted)
