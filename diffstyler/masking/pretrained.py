"""A folder or a hub id in; a model of transformers with its processor out. Nothing is downloaded unless fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from PIL import Image

from diffstyler.errors import DiffstylerError
from diffstyler.files import file_sha256
from diffstyler.images import picture_sha256

if TYPE_CHECKING:
    from diffstyler.backbones import Backbone

DINO, SAM2 = "IDEA-Research/grounding-dino-tiny", "facebook/sam2.1-hiera-tiny"
CLIPSEG, SAM = "CIDAS/clipseg-rd64-refined", "Zigeng/SlimSAM-uniform-77"
#: what `fetch-masker` downloads for a masker with its default weights
DEFAULTS = {"GroundedSAMMasker": (DINO, SAM2), "CLIPSegMasker": (CLIPSEG,), "SAMMasker": (SAM,)}
FILES = ("*.json", "*.txt", "*.safetensors")
PICTURES_KEPT = 3

T = TypeVar("T")


class Pretrained:
    """A model that an option of a masker names, on the base model's device unless another is asked for.

    Args:
        option: for error messages, such as ``masker.model``.
        name: its folder, or a hub id whose files the local cache holds.
        kind: the class of transformers that loads it.
        device: None = the base model's.

    Raises:
        DiffstylerError: it is not here.
    """

    def __init__(self, option: str, name: str, kind: str, device: str | None) -> None:
        self.option, self.name, self.kind = option, name, kind
        self._device = device
        self._backbone: Backbone | None = None
        self.folder = _folder(option, name)

    def setup(self, backbone: Backbone) -> None:
        self._backbone = backbone

    @property
    def device(self) -> torch.device:
        if self._device is None and self._backbone is not None:
            return next(self._backbone.network.parameters()).device
        return torch.device(self._device or "cpu")

    @cached_property
    def sha256(self) -> str:
        """Of its weights."""
        files = sorted(self.folder.glob("*.safetensors"))
        return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and processor, by the first picture.

        Raises:
            DiffstylerError: the folder holds something else.
        """
        import transformers

        try:
            processor = transformers.AutoProcessor.from_pretrained(self.folder, local_files_only=True)
            model, told = getattr(transformers, self.kind).from_pretrained(
                self.folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            got = f"reading '{self.name}' failed ({str(error).splitlines()[0]})"
            raise DiffstylerError(f"{self.option}: expected a model for {self.kind}, but {got}") from error
        if missing := sorted(told["missing_keys"]):
            some = ", ".join(missing[:3])
            raise DiffstylerError(
                f"{self.option}: the weights of '{self.name}' lack {len(missing)} tensors ({some}, …)"
            )
        return model.eval().to(self.device), processor


class Kept(Generic[T]):
    """What was made of the last few pictures."""

    def __init__(self, make: Callable[[Image.Image], T]) -> None:
        self._make = make
        self._kept: dict[str, T] = {}

    def __call__(self, picture: Image.Image) -> T:
        key = picture_sha256(picture)
        if key not in self._kept:
            self._kept[key] = self._make(picture)
            if len(self._kept) > PICTURES_KEPT:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]


def fetch_masker(name: str) -> list[Path]:
    """Download what a masker needs into the hub's cache -> the folders.

    Args:
        name: a masker's class, for its default weights, or a hub id.

    Raises:
        DiffstylerError: an unknown name, or no connection.
    """
    from huggingface_hub import snapshot_download

    if name not in DEFAULTS and name.count("/") != 1:
        raise DiffstylerError(f"expected {', '.join(DEFAULTS)}, or a hub id such as {SAM2}, got '{name}'")
    folders = []
    for model in DEFAULTS.get(name, (name,)):
        try:
            folders.append(Path(snapshot_download(model, allow_patterns=list(FILES))))
        except (OSError, ValueError) as error:
            raise DiffstylerError(f"could not fetch {model}: {str(error).splitlines()[0]}") from error
    return folders


def _folder(option: str, name: str) -> Path:
    """Where the files of a folder or a hub id are on this machine."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES), local_files_only=True))
    except (OSError, ValueError) as error:
        raise DiffstylerError(
            f"{option}: '{name}' is neither a folder nor a hub id whose files are here; nothing is downloaded by "
            f"itself: `diffstyler fetch-masker {name}` does it"
        ) from error
