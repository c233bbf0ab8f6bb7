"""Manifests and pictures -> the LoRAs to fit."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import lightning

from diffstyler.fit.crops import Crops, FitPicture
from diffstyler.images import is_picture, load_image, picture_sha256
from diffstyler.manifests.lora_jobs import ROLES, LoRAJobRow, read_lora_jobs
from diffstyler.manifests.pictures import read_manifest
from diffstyler.masking import check_prompt
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.types import Triple


class FitData(lightning.LightningDataModule):
    """The distinct pictures that get a LoRA.

    Args:
        manifest: CSV, JSON Lines or Parquet with a row for each picture to make; its style (or content) pictures.
        jobs: the same with a row for each LoRA, in place of a manifest or beside it: ``picture`` and, where they differ
            from the run's, ``role``, ``prompt``, ``seed``, ``steps``, ``learning_rate``, ``rank``, ``alpha``,
            ``gradient_clip``, ``mask``, ``resolution``, ``crop_size``.
        pictures: pictures named one by one, in place of a manifest or beside it.
        role: "style" or "content": which pictures of the manifest.
        prompt: describes the picture; ``{content_prompt}`` stands for that column.
        seed: fixes crops, noise, timesteps and the initial LoRA.
        crops: how training crops are taken.
        pack_size: LoRAs fitted at once; "auto" = as many as the free memory holds.
        together: the name of one LoRA that all pictures make together, in place of one LoRA for each.
    """

    def __init__(
        self,
        manifest: Path | None = None,
        *,
        jobs: Path | None = None,
        pictures: Sequence[Path] = (),
        role: str = "style",
        prompt: str = "painting of <sss>",
        seed: int = 0,
        crops: Crops | None = None,
        pack_size: int | Literal["auto"] = 4,
        together: str | None = None,
    ) -> None:
        super().__init__()
        if role not in ROLES:
            raise ValueError(f"data.role: expected 'style' or 'content', got '{role}'")
        if pack_size != "auto" and pack_size < 1:
            raise ValueError(f"data.pack_size: expected at least 1 or 'auto', got {pack_size}")
        if together is not None and (jobs is not None or not together):
            raise ValueError("data.together: expected a name, and no data.jobs, each row of which is a LoRA of its own")
        if manifest is None and jobs is None and not pictures:
            raise ValueError("nothing to fit: expected data.manifest, data.jobs or data.pictures")
        self.manifest = manifest
        self.jobs = jobs
        self.paths = pictures
        self.role = role
        self.prompt = prompt
        self.seed = seed
        self.crops = crops if crops is not None else Crops()
        self.pack_size: int | Literal["auto"] = pack_size
        self.together = together
        self.pictures: Sequence[FitPicture] = ()

    def setup(self, stage: str) -> None:
        """Read the manifest and find the distinct pictures, by their pixels."""
        named = [(path, "", "everything") for path in self.paths]
        if self.manifest is not None:
            named += [pair for triple in read_manifest(self.manifest) for pair in self._of(triple)]
        distinct: dict[tuple[str, str], FitPicture] = {}
        seen: set[tuple[Path, str]] = set()
        for path, content_prompt, mask in named:
            if (path.resolve(), mask) in seen:
                continue
            seen.add((path.resolve(), mask))
            check_prompt(parse_mask_prompt(mask), path)
            sha256 = picture_sha256(load_image(path))
            prompt = self._prompt(content_prompt)
            distinct.setdefault((sha256, mask), FitPicture(path, sha256, prompt, self.seed, self.role, mask=mask))
        rows = read_lora_jobs(self.jobs) if self.jobs is not None else ()
        self.pictures = [*distinct.values(), *map(self._of_row, rows)]
        if self.together is not None:
            self.pictures = [self._set_of(self.pictures, self.together)]

    def _set_of(self, pictures: Sequence[FitPicture], name: str) -> FitPicture:
        """All pictures as those of one LoRA, whatever their order."""
        for picture in pictures:
            if picture.mask != "everything":
                raise ValueError(
                    f"data.together: a LoRA of several pictures learns all of each; {picture.path} has a mask"
                )
        first, *others = sorted(pictures, key=lambda picture: picture.sha256)
        if not others:
            return replace(first, name=name, prompt=self._prompt(""))
        sha256 = hashlib.sha256("".join(picture.sha256 for picture in (first, *others)).encode()).hexdigest()
        paths = tuple(picture.path for picture in others)
        return FitPicture(first.path, sha256, self._prompt(""), self.seed, self.role, name=name, others=paths)

    def _prompt(self, content_prompt: str) -> str:
        return self.prompt.replace("{content_prompt}", content_prompt).strip(" ,")

    def _of_row(self, row: LoRAJobRow) -> FitPicture:
        run = {"prompt": self._prompt(""), "seed": self.seed, "role": self.role}
        return FitPicture(row.picture, picture_sha256(load_image(row.picture)), **{**run, **row.given})  # type: ignore

    def train_dataloader(self) -> UntilDone:
        """Step numbers for as long as a LoRA is under way; each LoRA draws its own rows."""
        return UntilDone(self.trainer.lightning_module)  # type: ignore[union-attr]

    def _of(self, triple: Triple) -> list[tuple[Path, str, str]]:
        """Each picture of a row with the content's prompt, and the part of the picture that is to be learned."""
        if self.role == "content":
            return [(triple.content, triple.content_prompt, "everything")]
        styles = [region for region in triple.regions if is_picture(region.style)]
        return [(region.style, triple.content_prompt, region.style_mask) for region in styles]


class Worker(Protocol):
    """Something that knows whether it has more to do."""

    @property
    def has_work(self) -> bool: ...


class UntilDone:
    """A data loader of step numbers that ends when the worker has nothing left to do."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def __iter__(self) -> Iterator[int]:
        return itertools.takewhile(lambda _: self.worker.has_work, itertools.count())
