"""What both trainings need: a budget of wall clock, several ranks, compilation, and lines that tell how it goes."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

BEGAN = time.monotonic()


def report(line: str) -> None:
    """Print with the seconds since the start, on the first rank alone."""
    if os.environ.get("RANK", "0") == "0":
        print(f"[{time.monotonic() - BEGAN:5.0f} s] {line}", flush=True)


@dataclass(frozen=True)
class Ranks:
    """The processes that train one network together, as torchrun starts them; one where it did not."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def join(cls, device: str, seed: int) -> "Ranks":
        rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        chosen = (
            torch.device(device, int(os.environ.get("LOCAL_RANK", "0"))) if device == "cuda" else torch.device(device)
        )
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if count > 1:
            distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        torch.manual_seed(seed + rank)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        return cls(rank, count, chosen)

    def share(self, module: nn.Module) -> None:
        """Give all ranks the first one's weights."""
        if self.count > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                distributed.broadcast(tensor.detach(), 0)

    def average(self, gradients: Tensor) -> None:
        """Replace `gradients` by their mean over the ranks."""
        if self.count > 1:
            distributed.all_reduce(gradients)
            gradients /= self.count

    def agree(self, value: float) -> float:
        """The first rank's value, on all."""
        if self.count == 1:
            return value
        told = torch.tensor(value, device=self.device, dtype=torch.float32)
        distributed.broadcast(told, 0)
        return told.item()


class Clock:
    """Wall-clock budget of the whole program; `progress` runs from 0 to 1 over what is left of it for training.

    All ranks go by the first one's clock, read every few steps.
    """

    def __init__(self, minutes: float, ranks: Ranks) -> None:
        self.deadline = BEGAN + 60 * minutes
        self.ranks, self.read, self.told = ranks, 0, 0.0
        self.start = self.reported = self.saved = time.monotonic()

    def begin(self, reserve: float) -> None:
        """Start the training; keep `reserve` seconds for what follows it."""
        self.start, self.deadline = time.monotonic(), self.deadline - reserve

    def progress(self) -> float:
        if self.read % (16 if self.ranks.device.type == "cuda" else 1) == 0:
            share = (time.monotonic() - self.start) / max(self.deadline - self.start, 1e-3)
            self.told = self.ranks.agree(min(1.0, share))
        self.read += 1
        return self.told

    def time_to_report(self, every: float = 20.0) -> bool:
        due = time.monotonic() - self.reported > every
        if due:
            self.reported = time.monotonic()
        return due

    def time_to_save(self, every: float = 120.0) -> bool:
        due = time.monotonic() - self.saved > every
        if due:
            self.saved = time.monotonic()
        return due


def compile_if_possible(network: nn.Module, trial: Callable[[nn.Module], object], wanted: bool) -> nn.Module:
    """Compile `network` and make a `trial` step with it; where that fails, go on without."""
    if not wanted:
        return network
    compiled = torch.compile(network, dynamic=False)
    try:
        trial(compiled)  # type: ignore[arg-type]
    except Exception as error:  # any failure of the compiler means the same: run eagerly
        report(f"not compiled ({type(error).__name__}: {str(error)[:300]})")
        return network
    report("compiled")
    return compiled  # type: ignore[return-value]


def flat_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Zeros that hold the gradients of all `parameters`, in one row; each `grad` becomes a view of it."""
    parameters = list(parameters)
    flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        if p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last):
            rows, channels, height, width = p.shape
            p.grad = part.view(rows, height, width, channels).permute(0, 3, 1, 2)
        else:
            p.grad = part.view_as(p)
    return flat


def clip(gradients: Tensor, norm: float) -> None:
    """Scale `gradients` to at most `norm`; make them zero where they are not finite."""
    length = gradients.norm()
    scaled = gradients * (norm / (length + 1e-6)).clamp(max=1)
    torch.where(length.isfinite(), scaled, torch.zeros_like(scaled), out=gradients)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, step: int, most: float = 0.9995) -> None:
    """Move the averaged weights toward the network's, slowly once many steps are done."""
    ours: Sequence[Tensor] = list(average.parameters())
    torch._foreach_lerp_(ours, list(network.parameters()), 1 - min(most, (1 + step) / (10 + step)))
