"""Where a model's weights are: a name in, checked files on this machine, their hash and diffusers' parts out."""

# diffusers annotates few of its return types
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import nn

from diffstyler.errors import DiffstylerError
from diffstyler.files import file_sha256

EMBEDDED = Path(__file__).parent / "embedded"
SAFE = ".safetensors"
PICKLES = frozenset({".ckpt", ".bin", ".pt", ".pth"})
#: what a single-file checkpoint of a pipeline holds, by a key that no other pipeline's has
SINGLE_FILE_MARKS = {
    "StableDiffusionXLPipeline": "conditioner.embedders.",
    "StableDiffusionPipeline": "cond_stage_model.",
}
VAE_MARKS = ("first_stage_model.", "encoder.")


@dataclass(frozen=True)
class ModelSource:
    """A model by name.

    Args:
        model: ``embedded``, a diffusers directory, a single ``.safetensors`` or ``.ckpt`` file, or a hub id.
        revision: branch, tag or commit of a hub id.
        variant: file variant of a directory or hub id, such as ``fp16``.
        config: for a single file: a diffusers directory or hub id with the configurations (and tokenizers) of its kind;
            None = the public model that the file's shapes tell, from the hub or its cache.
        allow_pickle: also open formats that can run code when they are opened.

    Raises:
        DiffstylerError: a local path is not there, or is a pickle without consent.
    """

    model: str
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        local = Path(self.model).expanduser()
        if self.model == "embedded" or local.is_dir():
            return
        if local.is_file():
            if local.suffix not in {SAFE, *PICKLES}:
                raise DiffstylerError(
                    f"model '{self.model}': expected a .safetensors or .ckpt file, got '{local.suffix}'"
                )
            self._consent(local)
        elif self.model.startswith((".", "/", "~")) or self.model.count("/") != 1 or local.suffix in {SAFE, *PICKLES}:
            raise DiffstylerError(
                f"model '{self.model}': no such directory or file; expected 'embedded', a diffusers directory "
                "(with model_index.json), a .safetensors or .ckpt file, or a hub id like 'owner/name'"
            )

    @property
    def path(self) -> Path:
        """The directory or the single file, fetched from the hub if it is not here.

        Raises:
            DiffstylerError: the hub does not give it.
        """
        if self.model == "embedded":
            return EMBEDDED
        local = Path(self.model).expanduser()
        return local if local.exists() else _download(self.model, self.revision, self.variant)

    @property
    def commit(self) -> str | None:
        """The commit of the hub's repository that the files are of; None for local files."""
        is_hub = self.model != "embedded" and not Path(self.model).expanduser().exists()
        return self.path.name if is_hub and self.path.parent.name == "snapshots" else None

    def sha256(self) -> str:
        """Of the weight and configuration files (hex), known without loading them."""
        return _hash(self.path)

    def check(self, pipeline: str) -> None:
        """Whether this can be loaded as ``pipeline`` (the name of diffusers' class); reads no weights.

        Raises:
            DiffstylerError: another family, files missing or cut off, or only pickles without consent.
        """
        path = self.path
        kind = _kind_of_file(path) if path.is_file() else self._index(path)["_class_name"]
        if kind != pipeline:
            raise DiffstylerError(
                f"model '{self.model}' is a {kind}; expected a {pipeline}: choose another model.backbone"
            )
        if path.is_dir():
            self._check_parts(path)

    def parameter_count(self) -> int:
        """Of all parts together, from the headers of their files; 0 for pickles."""
        path = self.path
        files = [path] if path.is_file() else [f for f in path.rglob(f"*{SAFE}") if _variant_of(f) == self.variant]
        return sum(_parameters(file) for file in files if file.suffix == SAFE)

    def load(self, pipeline: type[DiffusionPipeline], dtype: torch.dtype, vae: nn.Module) -> DiffusionPipeline:
        """diffusers' ``pipeline`` of these files, around this ``vae``.

        Raises:
            DiffstylerError: files are missing or do not fit the configuration.
        """
        path = self.path
        known = inspect.signature(pipeline.__init__).parameters
        more = {name: None for name in ("safety_checker", "feature_extractor", "image_encoder") if name in known}
        with _quietly(), self._explained():
            if path.is_file():
                return pipeline.from_single_file(str(path), config=self.config, dtype=dtype, vae=vae, **more)
            more |= {"variant": self.variant, "use_safetensors": not self.allow_pickle or None}
            return pipeline.from_pretrained(path, dtype=dtype, local_files_only=True, vae=vae, **more)

    @property
    def configurations(self) -> str | None:
        """The diffusers model whose configurations this one has: itself, or what was named for a single file."""
        return str(self.path) if self.path.is_dir() else self.config

    def vae(self, dtype: torch.dtype, config: str | None) -> AutoencoderKL:
        """The autoencoder: of a model, or a file or directory that holds nothing else.

        Args:
            dtype: of its weights.
            config: for a single file, the diffusers model whose autoencoder is built like it.

        Raises:
            DiffstylerError: it is not there, or does not fit its configuration.
        """
        path = self.path
        with _quietly(), self._explained():
            if path.is_file():
                if not any(key.startswith(VAE_MARKS) for key in _keys(path)):
                    raise DiffstylerError(f"model '{self.model}': holds no autoencoder (keys like {VAE_MARKS[0]}…)")
                subfolder = {} if config is None else {"subfolder": "vae"}
                return AutoencoderKL.from_single_file(str(path), config=config, dtype=dtype, **subfolder)
            inner = {"subfolder": "vae"} if (path / "vae").is_dir() else {}
            return AutoencoderKL.from_pretrained(
                path, dtype=dtype, variant=self.variant, use_safetensors=not self.allow_pickle or None, **inner
            )

    def scheduler(self) -> SchedulerMixin | None:
        """Of a directory; a single file tells its own only when it is loaded.

        Raises:
            DiffstylerError: it is not there, or diffusers does not know it.
        """
        if not self.path.is_dir():
            return None
        name = self._index(self.path).get("scheduler", [None, ""])[1]
        kind = getattr(diffusers, str(name), None)
        if not (inspect.isclass(kind) and issubclass(kind, SchedulerMixin)):
            raise DiffstylerError(f"model '{self.model}': expected a scheduler that diffusers knows, got {name!r}")
        with _quietly(), self._explained():
            return kind.from_pretrained(self.path, subfolder="scheduler", local_files_only=True)

    def _check_parts(self, folder: Path) -> None:
        for part in ("unet", "vae", *(name for name in self._index(folder) if name.startswith("text_encoder"))):
            files = [f for f in (folder / part).glob("*") if f.suffix in {SAFE, *PICKLES}]
            mine = [f for f in files if _variant_of(f) == self.variant]
            if not mine:
                others = sorted({str(_variant_of(f)) for f in files})
                hint = f"; there is variant {' and '.join(others)}: set model.backbone.variant" if files else ""
                wanted = f"weights of variant '{self.variant}'" if self.variant else "weights"
                raise DiffstylerError(f"model '{self.model}': no {wanted} in {folder / part}{hint}")
            for file in [f for f in mine if f.suffix == SAFE] or mine:
                self._consent(file)
                _check_whole(file)

    @staticmethod
    def _index(folder: Path) -> dict:
        index = folder / "model_index.json"
        if not index.is_file():
            raise DiffstylerError(f"model '{folder}': {index} is missing; expected a diffusers directory")
        return json.loads(index.read_text())

    def _consent(self, file: Path) -> None:
        if file.suffix in PICKLES and not self.allow_pickle:
            raise DiffstylerError(
                f"{file} is a pickle, which can run code when it is opened; convert it to .safetensors, or set "
                "model.backbone.allow_pickle true if you trust where it is from"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """diffusers' errors about files, as one line that names the model."""
        try:
            yield
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            hint = ""
            if self.config is None and self.path.is_file():
                hint = "; a single file needs its kind's configurations: set model.backbone.config to a diffusers model"
            raise DiffstylerError(
                f"model '{self.model}' cannot be loaded: {str(error).strip().splitlines()[0]}{hint}"
            ) from error


def _kind_of_file(file: Path) -> str:
    keys = _keys(file)
    for kind, mark in SINGLE_FILE_MARKS.items():
        if any(key.startswith(mark) for key in keys):
            return kind
    expected = f"a whole checkpoint, with keys like {' or '.join(f'{mark}…' for mark in SINGLE_FILE_MARKS.values())}"
    raise DiffstylerError(f"model '{file}': expected {expected}; its {len(keys)} keys have none of them")


@lru_cache
def _keys(file: Path) -> tuple[str, ...]:
    """The names of a single file's tensors; a pickle is only opened with consent, checked before."""
    if file.suffix == SAFE:
        _check_whole(file)
        with safe_open(file, "pt") as opened:
            return tuple(opened.keys())
    content = torch.load(file, map_location="meta", weights_only=True)
    return tuple(content.get("state_dict", content))


def _parameters(file: Path) -> int:
    with safe_open(file, "pt") as opened:
        return sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118


def _check_whole(file: Path) -> None:
    if file.suffix != SAFE:
        return
    try:
        with safe_open(file, "pt"):
            pass
    except SafetensorError as error:
        raise DiffstylerError(
            f"{file}: not a whole safetensors file ({error}); was it cut off? Fetch it again"
        ) from error


def _variant_of(file: Path) -> str | None:
    """``model.fp16.safetensors`` and ``model.fp16-00001-of-00002.safetensors`` -> fp16."""
    words = file.name.split("-0")[0].removesuffix(file.suffix).split(".")
    return words[1] if len(words) > 1 else None


@lru_cache
def _download(model: str, revision: str | None, variant: str | None) -> Path:
    try:
        return Path(DiffusionPipeline.download(model, revision=revision, variant=variant))
    except OSError as error:
        raise DiffstylerError(
            f"model '{model}': not a directory or file here, and the hub did not give it "
            f"({str(error).strip().splitlines()[0]}); expected 'embedded', a diffusers directory, a .safetensors file, "
            "or a reachable hub id (a gated one needs `hf auth login`; HF_HUB_OFFLINE allows only what is cached)"
        ) from error


@lru_cache
def _hash(path: Path) -> str:
    """sha256 of a file, or over the configurations and weights in a directory, by name and content."""
    if path.is_file():
        return file_sha256(path)
    total = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.suffix in {".json", SAFE, ".bin", ".txt"}):
        total.update(f"{file.relative_to(path).as_posix()} {file_sha256(file)}\n".encode())
    return total.hexdigest()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without diffusers' bar over the parts of a pipeline."""
    shown = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            diffusers_logging.enable_progress_bar()
