"""Rows of one step -> their noise predictions: all rows in as few UNet calls as allowed, each under its own adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from diffstyler.adapters import LoRAPack, Rows
from diffstyler.backbones import Backbone
from diffstyler.diffusion.injection import InjectionHooks, Rates, RowSources, inject
from diffstyler.errors import DiffstylerError
from diffstyler.types import NoiseLevel, PromptEmbeds


@dataclass(frozen=True)
class Row:
    """One row of the UNet's batch.

    ``latents`` (C, h, w) at the noise ``level``; ``prompt`` holds one row; ``slot`` is the adapter's place
    in the pack, None for the base model; ``rates`` say how much the group's source row is injected here.
    """

    latents: torch.Tensor
    timestep: int
    level: NoiseLevel
    prompt: PromptEmbeds
    slot: int | None = None
    strength: float = 1.0
    rates: Rates = field(default_factory=Rates)


@dataclass(frozen=True)
class Group:
    """Target rows and the source row that steers them; ``source`` may be None when no target is injected."""

    source: Row | None
    targets: tuple[Row, ...]


@dataclass(frozen=True)
class _Piece:
    """A part of a group that fits in one call, and where its predictions belong."""

    group: int
    source: Row | None
    targets: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.targets) + (self.source is not None)


class Denoiser:
    """ε for groups of rows.

    Args:
        backbone: a loaded model.
        pack: its adapters, or None for the base model alone.
        rows_per_call: exactly so many rows in every UNet call, idle ones padded: a picture's numbers then do not
            depend on its neighbors; on a CPU bitwise, for which one thread computes. None: all rows in one call.
        max_rows: at most so many rows in a UNet call; None: all of them.
        plain_sites: adapters leave the self-attention at the injected sites alone.

    Raises:
        DiffstylerError: ``rows_per_call`` is too small for a source row and a target.
    """

    def __init__(
        self,
        backbone: Backbone,
        pack: LoRAPack | None = None,
        *,
        rows_per_call: int | None = None,
        max_rows: int | None = None,
        plain_sites: bool = False,
    ) -> None:
        if rows_per_call is not None and rows_per_call < 2:
            raise DiffstylerError(
                f"rows_per_call: expected at least 2 (a source row and a target), got {rows_per_call}"
            )
        self.backbone = backbone
        self.pack = pack
        self.rows_per_call = rows_per_call
        self.max_rows = max_rows
        self._hooks: InjectionHooks | None = None
        self._without: frozenset[str] = frozenset()
        if plain_sites and pack is not None:
            names = [target.name for target in pack.targets]
            self._without = frozenset(
                n for n in names if n.startswith(tuple(f"{s}." for s in backbone.sites.attention))
            )

    @contextmanager
    def injecting(self) -> Iterator[None]:
        """Source rows act inside this context; the hooks are gone after it."""
        try:
            with inject(self.backbone.network, self.backbone.sites) as self._hooks:
                yield
        finally:
            self._hooks = None

    def __call__(self, groups: Sequence[Group]) -> list[torch.Tensor]:
        """For each group, the ε of its targets: (targets, C, h, w) in float32."""
        predictions: list[list[torch.Tensor]] = [[] for _ in groups]
        for call in self._calls(groups):
            rows = [row for piece in call for row in _ordered(piece)]
            noise_pred = self._run(rows, call)
            start = 0
            for piece in call:
                predictions[piece.group].append(noise_pred[start : start + len(piece)][piece.source is not None :])
                start += len(piece)
        return [torch.cat(parts) for parts in predictions]

    def _calls(self, groups: Sequence[Group]) -> Iterator[list[_Piece]]:
        limit = self.rows_per_call or self.max_rows
        call: list[_Piece] = []
        for piece in _pieces(groups, limit):
            if limit is not None and sum(map(len, call)) + len(piece) > limit:
                yield call
                call = []
            call.append(piece)
        if call:
            yield call

    def _run(self, rows: list[Row], call: list[_Piece]) -> torch.Tensor:
        sources = _row_sources(call)
        padding = 0 if self.rows_per_call is None else self.rows_per_call - len(rows)
        rows = rows + [Row(rows[0].latents, rows[0].timestep, rows[0].level, rows[0].prompt)] * padding
        device = rows[0].latents.device
        latents = torch.stack([row.latents for row in rows])
        timesteps = torch.tensor([row.timestep for row in rows], device=device)
        level = NoiseLevel(*(_column([getattr(row.level, name) for row in rows]) for name in ("signal", "sigma")))
        prompt = PromptEmbeds.cat([row.prompt for row in rows])
        if self._hooks is not None:
            self._hooks.rows = _pad(sources, padding, device) if sources is not None else None
        adapters = self.pack.rows(self._adapters(rows, device)) if self.pack is not None else nullcontext()
        # several threads split a matrix product by its rows, and a row's last bits then depend on its place
        exact = self.rows_per_call is not None and device.type == "cpu"
        with adapters, one_thread() if exact else nullcontext():
            return self.backbone.predict_noise(latents, timesteps, prompt, level)

    def _adapters(self, rows: list[Row], device: torch.device) -> Rows:
        slots = torch.tensor([0 if row.slot is None else row.slot for row in rows], device=device)
        strength = torch.tensor([0.0 if row.slot is None else row.strength for row in rows], device=device)
        return Rows(slots, strength, self._without)


def _column(values: list[float]) -> torch.Tensor:
    """(R, 1, 1, 1) on the CPU: some devices have no float64."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pieces(groups: Sequence[Group], limit: int | None) -> Iterator[_Piece]:
    for index, group in enumerate(groups):
        room = len(group.targets) if limit is None else limit - (group.source is not None)
        for start in range(0, len(group.targets), room):
            yield _Piece(index, group.source, group.targets[start : start + room])


def _ordered(piece: _Piece) -> tuple[Row, ...]:
    return piece.targets if piece.source is None else (piece.source, *piece.targets)


def _row_sources(call: list[_Piece]) -> tuple[list[int], list[float], list[float]] | None:
    """For each row of a call its source's index (its own if it has none) and its rates; None if nothing is injected."""
    source: list[int] = []
    features: list[float] = []
    attention: list[float] = []
    for piece in call:
        start = len(source)
        for row in _ordered(piece):
            steered = piece.source is not None and row is not piece.source
            source.append(start if steered else len(source))
            features.append(row.rates.features if steered else 0.0)
            attention.append(row.rates.attention if steered else 0.0)
    return (source, features, attention) if any(features) or any(attention) else None


def _pad(sources: tuple[list[int], list[float], list[float]], padding: int, device: torch.device) -> RowSources:
    source, features, attention = sources
    source = source + list(range(len(source), len(source) + padding))
    idle = [0.0] * padding
    return RowSources(
        torch.tensor(source, device=device),
        torch.tensor(features + idle, device=device),
        torch.tensor(attention + idle, device=device),
    )
