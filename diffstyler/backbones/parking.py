"""Frozen parts that leave the accelerator while they are idle, and come back."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary


class Parking:
    """Moves modules between the CPU and an accelerator; what CUDA got from the CPU is not copied back.

    Frozen weights that were sent to CUDA stay in page-locked memory of the CPU too, until their module is gone: the
    way there takes milliseconds, the way back nothing.
    """

    def __init__(self) -> None:
        self._kept: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()  # by parameter or buffer

    def move(self, module: nn.Module, device: torch.device | str) -> None:
        """All of ``module`` to ``device``, without waiting for it."""
        device = torch.device(device)
        tensors = [*module.parameters(), *module.buffers()]
        if device.type not in ("cpu", "cuda") or any(tensor.device.type not in ("cpu", "cuda") for tensor in tensors):
            module.to(device)
            return
        for tensor in tensors:
            if device.type == "cpu" and tensor.is_cuda:
                kept = None if tensor.requires_grad else self._kept.get(tensor)
                same = kept is not None and (kept.shape, kept.dtype) == (tensor.shape, tensor.dtype)
                tensor.data = kept if kept is not None and same else tensor.data.cpu()
            elif device.type == "cuda" and not tensor.is_cuda:
                self._kept[tensor] = tensor.data if tensor.is_pinned() else tensor.data.pin_memory()
                tensor.data = self._kept[tensor].to(device, non_blocking=True)
