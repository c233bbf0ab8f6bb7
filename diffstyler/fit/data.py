"""Manifests and pictures -> the LoRAs to fit."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import lightning

from diffstyler import storage
from diffstyler.errors import DiffstylerError, RowsError, check_placeholders, told_lines
from diffstyler.fit.bench import FitBatch, FitBench
from diffstyler.fit.crops import Crops
from diffstyler.fit.jobs import FitPicture
from diffstyler.images import ImageError, check_aspect, is_picture, load_image, picture_sha256
from diffstyler.manifests.lora_jobs import ROLES, read_lora_jobs
from diffstyler.manifests.pictures import read_manifest
from diffstyler.masking import check_prompt
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.types import OnError, RowProblem, Triple


class FitData(lightning.LightningDataModule):
    """The distinct pictures that get a LoRA.

    Args:
        manifest: CSV, JSON Lines or Parquet with a row for each picture to make; its style (or content) pictures.
        jobs: CSV, JSON Lines or Parquet with a row for each LoRA, in place of a manifest or beside it: ``picture`` and,
            where they differ from the run's, ``role``, ``prompt``, ``seed``, ``steps``, ``learning_rate``, ``rank``,
            ``alpha``, ``gradient_clip``, ``mask``, ``resolution``, ``crop_size``.
        pictures: a picture, several, or a folder of them, in place of a manifest or beside it.
        role: "style" or "content": which pictures of the manifest.
        prompt: describes the picture; ``{content_prompt}`` stands for that column.
        seed: fixes crops, noise, timesteps and the initial LoRA.
        crops: how training crops are taken.
        pack_size: LoRAs fitted at once; "auto" = as many as the free memory holds.
        together: the name of one LoRA that all pictures make together, in place of one LoRA for each.
        on_error: what wrong rows and pictures mean: "stop" = all are told and nothing is fitted, "skip" = the others
            are fitted, and the wrong ones told at the end.
    """

    def __init__(
        self,
        manifest: Path | None = None,
        *,
        jobs: Path | None = None,
        pictures: Sequence[Path] | Path = (),
        role: str = "style",
        prompt: str = "painting of <sss>",
        seed: int = 0,
        crops: Crops | None = None,
        pack_size: int | Literal["auto"] = 4,
        together: str | None = None,
        on_error: OnError = "stop",
    ) -> None:
        super().__init__()
        if role not in ROLES:
            raise DiffstylerError(f"data.role: expected 'style' or 'content', got '{role}'")
        check_placeholders(prompt, ("content_prompt",), "data.prompt: ")
        if pack_size != "auto" and pack_size < 1:
            raise DiffstylerError(f"data.pack_size: expected at least 1 or 'auto', got {pack_size}")
        if together is not None and (jobs is not None or not together):
            raise DiffstylerError(
                "data.together: expected a name, and no data.jobs, each row of which is a LoRA of its own"
            )
        if manifest is None and jobs is None and not pictures:
            raise DiffstylerError("nothing to fit: expected data.manifest, data.jobs or data.pictures")
        self.manifest = storage.local(manifest) if manifest is not None else None
        self.jobs = storage.local(jobs) if jobs is not None else None
        self.paths = [path for named in _listed(pictures) for path in _pictures_at(storage.fetch(storage.local(named)))]
        self.role = role
        self.prompt = prompt
        self.seed = seed
        self.crops = crops if crops is not None else Crops()
        self.pack_size: int | Literal["auto"] = pack_size
        self.together = together
        self.on_error: OnError = on_error
        self.looked_at_elsewhere = False  #: ``pictures`` are there, from the process that leads the farm
        self.pictures: Sequence[FitPicture] = ()
        self.problems: list[RowProblem] = []  #: of rows that are skipped

    def setup(self, stage: str) -> None:
        """Read the manifest, look at every picture and find the distinct ones, by their pixels.

        Raises:
            RowsError: rows or pictures that cannot be used, and on_error is "stop" or nothing else is left.
        """
        if self.looked_at_elsewhere:
            return
        problems: list[RowProblem] = []
        named = [Named(path, {"prompt": self.run_prompt, "mask": "everything"}, "data.pictures") for path in self.paths]
        if self.manifest is not None:
            named += [one for triple in read_manifest(self.manifest, problems) for one in self._of(triple)]
        rows = read_lora_jobs(self.jobs, problems) if self.jobs is not None else ()
        listed = [Named(row.picture, row.given, row.origin, "picture") for row in rows]
        looked_at = functools.cache(_look)
        distinct: dict[object, FitPicture] = {}
        for one in [*named, *listed]:
            found = looked_at(one.path, str(one.given.get("mask", "everything")))
            if isinstance(found, DiffstylerError):
                problems.append(RowProblem(one.id, one.origin, one.column, str(found)))
                continue
            which = one.origin if one.column == "picture" else (found, one.given["mask"])  # each job is a LoRA
            distinct.setdefault(which, FitPicture((one.path,), found, one.path.stem, one.given))
        if problems and (self.on_error == "stop" or self.together is not None or not distinct):
            raise RowsError(told_lines(problems))
        self.problems = problems
        self.pictures = list(distinct.values())
        if self.together is not None:
            self.pictures = [self._set_of(self.pictures, self.together)]

    @property
    def run_prompt(self) -> str:
        """Of a picture without a content prompt."""
        return self._prompt("")

    def _set_of(self, pictures: Sequence[FitPicture], name: str) -> FitPicture:
        """All pictures as those of one LoRA, whatever their order."""
        for picture in pictures:
            if picture.given["mask"] != "everything":
                raise DiffstylerError(
                    f"data.together: a LoRA of several pictures learns all of each; {picture.paths[0]} has a mask"
                )
        pictures = sorted(pictures, key=lambda picture: picture.sha256)
        sha256 = pictures[0].sha256
        if len(pictures) > 1:
            sha256 = hashlib.sha256("".join(picture.sha256 for picture in pictures).encode()).hexdigest()
        return FitPicture(tuple(path for picture in pictures for path in picture.paths), sha256, name)

    def _prompt(self, content_prompt: str) -> str:
        return self.prompt.replace("{content_prompt}", content_prompt).strip(" ,")

    def _of(self, triple: Triple) -> list[Named]:
        """Each picture of a row, and what its LoRA has of its own: the prompt, and the part that is to be learned."""
        prompt = self._prompt(triple.content_prompt)
        if self.role == "content":
            given = {"prompt": prompt, "mask": "everything"}
            return [Named(triple.content, given, triple.origin, "content", triple.id)]
        return [
            Named(r.style, {"prompt": prompt, "mask": r.style_mask}, r.origin or triple.origin, "style", triple.id)
            for r in triple.regions
            if is_picture(r.style)
        ]

    def train_dataloader(self) -> Draws:
        return Draws(self.trainer.lightning_module)  # type: ignore[union-attr, arg-type]


@dataclass(frozen=True)
class Named:
    """A picture that something names: the settings of its LoRA, and where it stands."""

    path: Path
    given: Mapping[str, object]
    origin: str
    column: str = ""
    id: str = ""


def _look(path: Path, mask: str) -> str | DiffstylerError:
    """``picture_sha256`` of a picture, or what is wrong with it, or with the mask on it."""
    try:
        image = load_image(path)
        check_aspect(image.size)
        check_prompt(parse_mask_prompt(mask), path)
    except ImageError as error:
        told = str(error)
        return error if told.startswith(str(path)) else ImageError(f"{path}: {told}")
    except DiffstylerError as error:
        return error
    return picture_sha256(image)


_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"}


def _listed(pictures: Sequence[Path] | Path) -> Sequence[Path]:
    return [pictures] if isinstance(pictures, (str, Path)) else pictures


def _pictures_at(path: Path) -> list[Path]:
    """The picture, or those of a folder, by name."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not found:
        raise DiffstylerError(f"data.pictures: no pictures in the folder {path}")
    return found


class HasBench(Protocol):
    bench: FitBench | None


class Draws:
    """The batches of a fit, each drawn when the step before it is done."""

    def __init__(self, finetuner: HasBench) -> None:
        self.finetuner = finetuner

    def __iter__(self) -> Iterator[FitBatch]:
        bench = self.finetuner.bench
        while bench is not None and bench.refill():
            yield bench.draw()

    def __len__(self) -> int:
        """No one knows; but of data without a length Lightning takes a batch before the step that it depends on."""
        return sys.maxsize
