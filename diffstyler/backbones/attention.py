"""Which program works out attention: torch's own, or xformers', each tried on the device before it is trusted."""

# diffusers annotates few of its attributes
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, XFormersAttnProcessor
from torch import nn

from diffstyler.errors import DiffstylerError

#: positions of the probe
POSITIONS = 256


class AttentionBackend(ABC):
    """How the attention of a UNet is computed; queries and keys pass through ``to_q`` and ``to_k`` whichever it is."""

    @abstractmethod
    def apply(self, unet: nn.Module, device: torch.device) -> str:
        """Give the UNet, which is on ``device``, this attention -> the name of what runs.

        Raises:
            DiffstylerError: it cannot run there; the text says why.
        """


class SDPAttention(AttentionBackend):
    """torch's ``scaled_dot_product_attention``: flash or memory-efficient kernels on a GPU, blocked ones on a CPU."""

    def apply(self, unet: nn.Module, device: torch.device) -> str:
        unet.set_attn_processor(AttnProcessor2_0())
        return "sdpa"


class XFormersAttention(AttentionBackend):
    """xformers' ``memory_efficient_attention`` (extra ``xformers``)."""

    def apply(self, unet: nn.Module, device: torch.device) -> str:
        try:
            processor = XFormersAttnProcessor()
            _probe(unet, processor, device)
        except Exception as error:  # a kernel may fail in any way
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DiffstylerError(
                f"attention XFormersAttention does not run on {device.type} here ({reason}); use SDPAttention, or "
                "AutoAttention, which takes what runs"
            ) from error
        unet.set_attn_processor(processor)
        return "xformers"


class AutoAttention(AttentionBackend):
    """xformers where it runs and is the faster one on this device, else torch's own.

    Args:
        gain: xformers must be faster by this share, so that chance does not choose.
    """

    def __init__(self, gain: float = 0.05) -> None:
        if not 0 <= gain < 1:
            raise DiffstylerError(f"attention.gain: expected a share in 0 … 1, got {gain}")
        self.gain = gain

    def apply(self, unet: nn.Module, device: torch.device) -> str:
        try:
            XFormersAttention().apply(unet, device)
        except ValueError:
            return SDPAttention().apply(unet, device)
        seconds = [
            _seconds(lambda processor=processor: _probe(unet, processor, device))
            for processor in (XFormersAttnProcessor(), AttnProcessor2_0())
        ]
        chosen = XFormersAttention() if seconds[0] < (1 - self.gain) * seconds[1] else SDPAttention()
        return chosen.apply(unet, device)


def _probe(unet: nn.Module, processor: object, device: torch.device) -> None:
    """The UNet's first self-attention forward and backward under a processor; it is left as it was."""
    layer = next(module for name, module in unet.named_modules() if name.endswith(".attn1"))
    before = layer.processor
    layer.set_processor(processor)
    try:
        x = torch.randn(2, POSITIONS, layer.query_dim, device=device, dtype=unet.dtype, requires_grad=True)
        with torch.enable_grad():
            layer(x).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    finally:
        layer.set_processor(before)


def _seconds(work: Callable[[], None]) -> float:
    """Of the fastest of ten runs, the first one not counted."""
    work()
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
