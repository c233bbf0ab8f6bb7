"""Rows of one step -> their noise predictions: all rows in as few UNet calls as allowed, each under its own adapter."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from diffstyler.adapters import LoRAPack, Rows
from diffstyler.backbones import Backbone
from diffstyler.cuda import Captured, send
from diffstyler.diffusion.injection import InjectionHooks, Rates, RowSources, inject
from diffstyler.errors import DiffstylerError
from diffstyler.types import NoiseLevel, PromptEmbeds

log = logging.getLogger(__name__)

#: rows of a recorded call: others are filled up with idle ones
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)
MOST_ROWS = WIDTHS[-1]
#: latent cells of a call that leave nothing of an H200 idle: 24 rows of 64 x 64; more gain nothing
FULL_CELLS = 24 * 64 * 64


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


@dataclass(frozen=True)
class _Call:
    """The inputs of one network call of R rows, on its device. ``sources`` is None where nothing is injected."""

    latents: torch.Tensor
    prompt: PromptEmbeds
    timesteps: torch.Tensor
    level: NoiseLevel
    adapters: Rows
    sources: RowSources | None

    @property
    def tensors(self) -> list[torch.Tensor]:
        a, s, level = self.adapters, self.sources, (self.level.signal, self.level.sigma)
        of_rows = [self.latents, self.timesteps, *level, a.slots, a.strength, self.prompt.tokens, self.prompt.pooled]
        of_rows += [s.source, s.features, s.attention] if s is not None else []
        return [tensor for tensor in of_rows if isinstance(tensor, torch.Tensor)]

    def of(self, tensors: Sequence[torch.Tensor]) -> _Call:
        """The same kind of call with other tensors."""
        latents, timesteps, signal, sigma, slots, strength, tokens, *more = tensors
        prompt = PromptEmbeds(tokens, more.pop(0) if self.prompt.pooled is not None else None)
        rows = Rows(slots, strength, self.adapters.without)
        return _Call(
            latents, prompt, timesteps, NoiseLevel(signal, sigma), rows, RowSources(*more) if self.sources else None
        )


class Denoiser:
    """ε for groups of rows. On CUDA each kind of call is recorded as a graph once: one denoiser should serve them all.

    Args:
        backbone: a loaded model.
        pack: its adapters, or None for the base model alone.
        rows_per_call: exactly so many rows in every UNet call, idle ones padded: a picture's numbers then do not
            depend on its neighbors; on a CPU bitwise, for which one thread computes. None: all rows in one call.
        max_rows: at most so many rows in a UNet call; None: all of them, on CUDA as many as fill the device. Where its
            memory ends, they are halved.
        plain_sites: adapters leave the self-attention at the injected sites alone.
        compiled: on CUDA, calls that are at least half full are filled up and run compiled, all as one kind.
        recorded: on CUDA, calls are recorded, which pays where there are many.

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
        compiled: bool = False,
        recorded: bool = True,
    ) -> None:
        if rows_per_call is not None and rows_per_call < 2:
            raise DiffstylerError(
                f"rows_per_call: expected at least 2 (a source row and a target), got {rows_per_call}"
            )
        self.backbone = backbone
        self.pack = pack
        self.rows_per_call = rows_per_call
        self.max_rows = max_rows
        self.compiled = compiled
        self.recorded = recorded
        self._captured = Captured(self._predict_of)
        self._kind: _Call | None = None
        self._hooks: InjectionHooks | None = None
        self._without: frozenset[str] = frozenset()
        if plain_sites and pack is not None:
            names = [target.name for target in pack.targets]
            self._without = frozenset(
                n for n in names if n.startswith(tuple(f"{s}." for s in backbone.sites.attention))
            )

    def close(self) -> None:
        """Give the memory of what was recorded back to the device."""
        self._captured.clear()

    @contextmanager
    def injecting(self) -> Iterator[None]:
        """Source rows act inside this context, the outermost one; the hooks are gone after it."""
        if self._hooks is not None:
            yield
            return
        try:
            with inject(self.backbone.network, self.backbone.sites) as self._hooks:
                yield
        finally:
            self._hooks = None

    def __call__(self, groups: Sequence[Group]) -> list[torch.Tensor]:
        """For each group, the ε of its targets: (targets, C, h, w) in float32."""
        while groups:
            limit = self._limit(groups[0].targets[0].latents)
            try:
                return self._noise_preds(groups, limit)
            except torch.cuda.OutOfMemoryError:
                rows = min(limit or MOST_ROWS, sum(map(len, _pieces(groups, limit))))
                if self.rows_per_call is not None or rows <= 2:
                    raise
                self.max_rows = rows // 2
                self._captured.clear()
                log.warning("the device's memory ends: at most %d rows a call from now on", self.max_rows)
        return []

    def _limit(self, latents: torch.Tensor) -> int | None:
        """Rows of a call."""
        if self.rows_per_call is not None or not latents.is_cuda:
            return self.rows_per_call or self.max_rows
        full = min(MOST_ROWS, FULL_CELLS // (latents.shape[-2] * latents.shape[-1]))
        return max(2, min(full, self.max_rows or full))

    def _noise_preds(self, groups: Sequence[Group], limit: int | None) -> list[torch.Tensor]:
        predictions: list[list[torch.Tensor]] = [[] for _ in groups]
        for pieces in self._calls(groups, limit):
            noise_pred = self._run([row for piece in pieces for row in _ordered(piece)], pieces, limit)
            start = 0
            for piece in pieces:
                predictions[piece.group].append(noise_pred[start : start + len(piece)][piece.source is not None :])
                start += len(piece)
        return [torch.cat(parts) for parts in predictions]

    def _calls(self, groups: Sequence[Group], limit: int | None) -> Iterator[list[_Piece]]:
        call: list[_Piece] = []
        for piece in _pieces(groups, limit):
            if limit is not None and sum(map(len, call)) + len(piece) > limit:
                yield call
                call = []
            call.append(piece)
        if call:
            yield call

    def _run(self, rows: list[Row], pieces: list[_Piece], limit: int | None) -> torch.Tensor:
        records = self.recorded and rows[0].latents.is_cuda
        compiled = self.compiled and self._hooks is not None and records and limit is not None and 2 * len(rows) > limit
        count = len(rows)
        if self.rows_per_call is not None or compiled:
            count = self.rows_per_call or limit or count
        elif records:
            count = width(count)
        call = self._assemble(rows, pieces, count, compiled)
        if records:
            self._kind = call
            kind = call.sources is None, call.prompt.pooled is None, compiled
            with self.backbone.compiled() if compiled else nullcontext():
                return self._captured(call.tensors, kind)[: len(rows)].clone()
        # several threads split a matrix product by its rows, and a row's last bits then depend on its place
        with one_thread() if self.rows_per_call is not None else nullcontext():
            return self._predict(call)

    def _predict_of(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        assert self._kind is not None
        return self._predict(self._kind.of(tensors))

    def _predict(self, call: _Call) -> torch.Tensor:
        if self._hooks is not None:
            self._hooks.rows = call.sources
        with self.pack.rows(call.adapters) if self.pack is not None else nullcontext():
            return self.backbone.predict_noise(call.latents, call.timesteps, call.prompt, call.level)

    def _assemble(self, rows: list[Row], pieces: list[_Piece], count: int, injects: bool) -> _Call:
        """Rows, and idle ones up to ``count``, as tensors: all whole numbers and all others in one transfer each.
        ``injects``: whether anything is injected or not."""
        source, features, attention = _row_sources(pieces)
        idle = count - len(rows)
        rows = rows + [Row(rows[0].latents, rows[0].timestep, rows[0].level, rows[0].prompt)] * idle
        source, features, attention = (
            source + list(range(count - idle, count)),
            features + [0.0] * idle,
            attention + [0.0] * idle,
        )
        device, exact = rows[0].latents.device, torch.promote_types(self.backbone.dtype, torch.float32)
        whole = [[row.timestep for row in rows], [0 if row.slot is None else row.slot for row in rows], source]
        levels = [[float(row.level.signal) for row in rows], [float(row.level.sigma) for row in rows]]
        strength = [0.0 if row.slot is None else row.strength for row in rows]
        timesteps, slots, sources = send(torch.tensor(whole), device)
        numbers = send(torch.tensor([*levels, strength, features, attention], dtype=torch.float64).to(exact), device)
        signal, sigma = (level.view(-1, 1, 1, 1) for level in numbers[:2])
        injects = injects or (self._hooks is not None and (any(features) or any(attention)))
        return _Call(
            torch.stack([row.latents for row in rows]),
            PromptEmbeds.cat([row.prompt for row in rows]),
            timesteps,
            NoiseLevel(signal, sigma),
            Rows(slots, numbers[2], self._without),
            RowSources(sources, numbers[3], numbers[4]) if injects else None,
        )


def width(rows: int) -> int:
    """The smallest of a few numbers of rows, each of which is recorded once, that is not less."""
    return next((width for width in WIDTHS if width >= rows), rows)


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


def _row_sources(pieces: list[_Piece]) -> tuple[list[int], list[float], list[float]]:
    """For each row of a call its source's index (its own if it has none) and its rates."""
    source: list[int] = []
    features: list[float] = []
    attention: list[float] = []
    for piece in pieces:
        start = len(source)
        for row in _ordered(piece):
            steered = piece.source is not None and row is not piece.source
            source.append(start if steered else len(source))
            features.append(row.rates.features if steered else 0.0)
            attention.append(row.rates.attention if steered else 0.0)
    return source, features, attention
