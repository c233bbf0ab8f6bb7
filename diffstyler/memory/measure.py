"""How many LoRAs fit side by side: what one costs in memory, and what the device has left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

log = logging.getLogger(__name__)
#: of the free memory that a pack may fill; the rest is for what a step needs for a moment, and for others
SHARE = 0.85
#: widths of a pack, so that a little more or less free memory does not change it; wider ones gain nothing
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
#: a control group's limit and use, where it has a limit
_CGROUP = Path("/sys/fs/cgroup")


def widest_pack(slot: int, free: int, at_most: int) -> int:
    """The largest of ``WIDTHS``, or ``at_most``, whose slots of ``slot`` bytes fit in ``free`` bytes; at least 1."""
    fitting = [width for width in {*WIDTHS, at_most} if width <= min(at_most, WIDTHS[-1]) and width * slot <= free]
    width = max(fitting, default=1)
    level = logging.INFO if fitting else logging.WARNING
    log.log(level, "pack of %d: %.1f of %.1f GiB", width, width * slot / 2**30, free / 2**30)
    return width


def free_memory(device: torch.device, processes: int) -> int:
    """Bytes of the device's memory, or of the machine's for a CPU, that one of ``processes`` on it may fill."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(SHARE * (torch.cuda.mem_get_info(device)[0] + unused))
    available = psutil.virtual_memory().available
    limit, used = (_read_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        available = min(available, limit - used)
    return int(SHARE * available / processes)


def step_memory(forward: Callable[[], torch.Tensor], frozen: Iterable[torch.Tensor], device: torch.device) -> int:
    """Bytes that a training step, forward -> loss, holds on to at its peak.

    On a CUDA device it is measured; elsewhere it is what the backward pass needs of the forward's tensors, without the
    ``frozen`` ones, and a quarter more for what lives only for a moment.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        forward().backward()
        return torch.cuda.max_memory_allocated(device) - before
    known = {tensor.untyped_storage().data_ptr() for tensor in frozen}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    loss.backward()
    return int(1.25 * sum(saved.values()))


def optimizer_memory(optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer], row: torch.Tensor) -> int:
    """Bytes of a LoRA's weights ``row``, its gradient, and its optimizer's state."""
    parameter = torch.nn.Parameter(torch.zeros_like(row))
    parameter.grad = torch.zeros_like(row)
    own = optimizer([parameter])
    own.step()
    state = [value for values in own.state.values() for value in values.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.untyped_storage().nbytes() for tensor in (parameter, parameter.grad, *state))


def _read_number(path: Path) -> int | None:
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None
