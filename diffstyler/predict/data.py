"""Manifests -> the pictures to make, those of this process by its farm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
from torch.utils.data import DataLoader, DistributedSampler

from diffstyler import storage
from diffstyler.errors import DiffstylerError
from diffstyler.farm import Farm, Job, RankFarm
from diffstyler.manifests.pictures import read_manifest
from diffstyler.types import OnError, RowProblem, Triple

#: batches whose rows are claimed at once, so that what is computed for one row serves the next ones
PIECE = 8


class PredictData(lightning.LightningDataModule):
    """The pictures to make.

    Args:
        manifest: CSV, JSON Lines or Parquet, see the README for its columns.
        triples: rows, in place of a manifest.
        batch_size: pictures made together; "auto" = on a GPU as many as fill it, else one.
        on_error: what wrong rows mean: "stop" = all are told and nothing is made, "skip" = the others are made, and
            the wrong ones told at the end.
    """

    def __init__(
        self,
        manifest: Path | None = None,
        *,
        triples: Sequence[Triple] = (),
        batch_size: int | Literal["auto"] = "auto",
        on_error: OnError = "stop",
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        if batch_size != "auto" and batch_size < 1:
            raise DiffstylerError(f"data.batch_size: expected at least 1, got {batch_size}")
        if manifest is None and not triples:
            raise DiffstylerError("nothing to predict: expected data.manifest")
        self.manifest = storage.local(manifest) if manifest is not None else None
        self.triples: Sequence[Triple] = triples
        self.batch_size: int | Literal["auto"] = batch_size
        self.on_error: OnError = on_error
        self.problems: list[RowProblem] = []  #: of rows whose cells are wrong; the others are in ``triples``

    def setup(self, stage: str) -> None:
        if self.manifest is not None:
            self.problems = []
            self.triples = read_manifest(self.manifest, self.problems)

    def predict_dataloader(self) -> DataLoader:
        """This process's rows."""
        model: Any = self.trainer.lightning_module if self.trainer is not None else None
        rows = list(self.triples)
        together = self.batch_size
        if together == "auto":
            together = model.pictures_at_once if model is not None else 1
        share = Share(rows, model.farm if model is not None else RankFarm(), together)
        return Ahead(rows, batch_size=together, sampler=share, collate_fn=Batch)  # type: ignore[arg-type]


class Batch:
    """Rows whose pictures are made together; no sequence, in which Lightning would look for tensors to convert."""

    def __init__(self, triples: Iterable[Triple]) -> None:
        self._triples = tuple(triples)
        self.next: Batch | None = None  #: what comes after it, to be read while it is made
        self.left = 0  #: rows after it

    def __iter__(self) -> Iterator[Triple]:
        return iter(self._triples)

    def __len__(self) -> int:
        return len(self._triples)


class Ahead(DataLoader):
    """Batches that know the next one, and how much is left."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        left = len(self.batch_sampler.sampler)  # type: ignore[union-attr]
        batches = super().__iter__()
        batch = next(batches, None)
        while batch is not None:
            batch.next = next(batches, None)
            batch.left = left = left - len(batch)
            yield batch
            batch = batch.next


class Share(DistributedSampler):
    """One process's rows of a manifest, which may be none, as its farm gives them.

    The rows are ordered by content, then by style: what was computed for one row, such as the content's inversion,
    serves the next ones. Lightning keeps a sampler of this kind as it is; its own refuses fewer rows than ranks.

    Args:
        triples: all rows.
        farm: shares them out.
        together: so many are made at once.
    """

    def __init__(self, triples: Sequence[Triple], farm: Farm, together: int = 1) -> None:
        super().__init__(triples, num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type]
        self.farm, self.together = farm, together
        self._places = {triple.id: place for place, triple in enumerate(triples)}
        farm.offer([Job(triple.id) for triple in ordered(triples)])

    @property
    def rows(self) -> list[int]:
        """Those that may come."""
        return [self._places[id] for id in self.farm.left()]

    def __iter__(self) -> Iterator[int]:
        while claimed := self.farm.claim(most=PIECE * self.together):
            yield from (self._places[id] for id in claimed)

    def __len__(self) -> int:
        return self.farm.count_left()


def ordered(triples: Sequence[Triple]) -> list[Triple]:
    """By content, then by style."""
    return sorted(triples, key=_same_work)


def _same_work(triple: Triple) -> tuple[str, list[str]]:
    return str(triple.content), [str(region.style) for region in triple.regions]
