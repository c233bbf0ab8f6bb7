"""A frozen base in 4 or 8 bits, for small cards: its linear layers hold bitsandbytes' weights in place of their own."""

# bitsandbytes is an optional extra without annotations
# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from diffstyler.errors import DiffstylerError

Quantization = Literal["nf4", "int8"]
#: nf4 scales blocks of so many weights together
BLOCK = 64


def quantize(model: nn.Module, kind: Quantization, dtype: torch.dtype) -> int:
    """Replace the linear layers inside the attention blocks of ``model`` -> how many.

    LoRA, injection and everything else see linear layers as before. The weights are quantized where they lie; layers
    whose width is no multiple of 64 stay.

    Args:
        model: on the CPU or a GPU.
        kind: "nf4": 4 bits, normal-float (Dettmers et al. 2023, QLoRA); "int8": LLM.int8() (Dettmers et al. 2022).
        dtype: what products are computed in.

    Raises:
        DiffstylerError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes.nn as bnb
    except ImportError as error:
        raise DiffstylerError(
            f"quantization {kind} needs bitsandbytes: install diffstyler[bitsandbytes], or leave it out"
        ) from error

    class Linear8bit(bnb.Linear8bitLt):
        """Its weights and their scales stay together wherever a model that holds it is moved."""

        def _apply(self, fn: Callable, recurse: bool = True) -> Linear8bit:
            super()._apply(fn, recurse)
            for holder in (self.weight, self.state):
                if holder.CB is not None:
                    holder.CB, holder.SCB = self.weight.data, holder.SCB.to(self.weight.device)
            return self

    def nf4(layer: nn.Linear) -> nn.Linear:
        weight = bnb.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        return _with(bnb.Linear4bit(1, 1, compute_dtype=dtype, quant_type="nf4"), layer, weight)

    def int8(layer: nn.Linear) -> nn.Linear:
        weight = bnb.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        return _with(Linear8bit(1, 1, has_fp16_weights=False), layer, weight)

    make: Callable[[nn.Linear], nn.Linear] = {"nf4": nf4, "int8": int8}[kind]
    layers = quantizable(model)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(layer))
    return len(layers)


def quantizable(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that :func:`quantize` replaces, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if ".attentions." in name and type(module) is nn.Linear and module.in_features % BLOCK == 0
    }


def _with(new: nn.Linear, old: nn.Linear, weight: nn.Parameter) -> nn.Linear:
    """The new layer with the old one's shape, weight and bias, quantized by being moved to where the old one is."""
    new.in_features, new.out_features = old.in_features, old.out_features
    new.weight, new.bias = weight, old.bias  # type: ignore[assignment]
    return new.to(old.weight.device).requires_grad_(False).train(old.training)
