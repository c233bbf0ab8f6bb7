"""Work for a CUDA device that nobody waits for: recorded as graphs, sent, and fetched when it is there."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

log = logging.getLogger(__name__)

#: runs before a recording, in which libraries choose their kernels and compilers compile
WARM_UPS = 1

Made = TypeVar("Made")


@dataclass
class _Recording(Generic[Made]):
    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    output: Made


class Captured(Generic[Made]):
    """``function`` (its input tensors in a list -> what it makes), recorded once for each kind of input, then replayed.

    The function must do the same for equal kinds: it may neither wait for the device nor choose by the values of its
    inputs, and what else it reads must keep its place in memory. What it returns is overwritten by the next call.

    Args:
        function: runs on the current CUDA device.
    """

    def __init__(self, function: Callable[[Sequence[torch.Tensor]], Made]) -> None:
        self.function = function
        self._recordings: dict[Hashable, _Recording[Made]] = {}
        self._pool: Any = None  # recordings are replayed one after the other: one memory for all

    def __call__(self, inputs: Sequence[torch.Tensor], kind: Hashable = None) -> Made:
        """``kind``: what else decides what the function does."""
        key = (kind, tuple((tensor.shape, tensor.dtype) for tensor in inputs))
        recording = self._recordings.get(key)
        if recording is None:
            recording = self._recordings[key] = self._record(inputs)
        else:
            for old, new in zip(recording.inputs, inputs, strict=True):
                old.copy_(new)
        recording.graph.replay()
        return recording.output

    def clear(self) -> None:
        """Forget all recordings and give their memory back to the card; what was made by them is gone."""
        self._recordings, self._pool = {}, None
        if torch.cuda.is_initialized():  # else there is nothing to give back, and to look for garbage takes a while
            gc.collect()
            torch.cuda.empty_cache()

    def _record(self, inputs: Sequence[torch.Tensor]) -> _Recording[Made]:
        own = [tensor.clone() for tensor in inputs]
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self.function(own)
        torch.cuda.current_stream().wait_stream(beside)
        torch.cuda.empty_cache()  # a recording has memory of its own
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = self.function(own)
        return _Recording(graph, own, output)


class Pace:
    """Whether compiling pays, by the time that the work so far took.

    Args:
        cost: seconds to compile.
        gain: the share of the time, as it is now, that compiling saves.
        units: of work that are timed, after the first ones.
    """

    def __init__(self, *, cost: float, gain: float, units: int) -> None:
        self.cost, self.gain, self.units = cost, gain, units
        self._began: tuple[int, float] | None = None
        self._done = 0

    def pays(self, done: int, left: float) -> bool | None:
        """After so many more units, with so many to go; None = not known yet."""
        self._done += done
        if self._began is None:
            self._began = self._done, time.perf_counter()
            return None
        timed = self._done - self._began[0]
        if timed < self.units:
            return None
        seconds = (time.perf_counter() - self._began[1]) / timed * left
        pays = seconds * self.gain > self.cost
        log.info("%.0f s of work to go: compiling %s", seconds, "pays" if pays else "does not pay")
        return pays


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device, without waiting for what runs there."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """On its way to the CPU -> what waits for it there."""
    if not tensor.is_cuda:
        return lambda: tensor
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    there.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> torch.Tensor:
        arrived.synchronize()
        return there

    return wait
