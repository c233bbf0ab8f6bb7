"""Low-rank updates by peft's key names and back, at random, and on a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import LoraConfig
from torch import nn

from diffstyler.adapters import LoRAPack, LowRank, largest_rank, lora_scale


def by_peft(modules: Mapping[str, LowRank]) -> dict[str, torch.Tensor]:
    """`<module>.lora_A.weight` and `<module>.lora_B.weight`."""
    return {
        f"{name}.lora_{side}.weight": tensor
        for name, module in modules.items()
        for side, tensor in {"A": module.down, "B": module.up}.items()
    }


def from_peft(state: Mapping[str, torch.Tensor], scale: float = 1.0) -> dict[str, LowRank]:
    names = dict.fromkeys(key.rsplit(".lora_", 1)[0] for key in state)
    return {name: LowRank(*(state[f"{name}.lora_{side}.weight"] for side in "AB"), scale) for name in names}


def random_modules(model: nn.Module, config: LoraConfig, *, seed: int = 0, size: float = 0.1) -> dict[str, LowRank]:
    """What this configuration would adapt, at random."""
    pack = LoRAPack(model, config, 1)
    pack.flat.normal_(0, size, generator=torch.Generator().manual_seed(seed))
    pack.scale.fill_(lora_scale(config))
    pack.detach()
    return pack.export(0)


def filled_pack(model: nn.Module, *adapters: Mapping[str, LowRank]) -> LoRAPack:
    """A pack that holds these adapters, one a slot: the union of their modules, the largest rank."""
    names = sorted(set().union(*adapters))
    config = LoraConfig(r=max(map(largest_rank, adapters)), target_modules=names)
    pack = LoRAPack(model, config, len(adapters))
    for slot, modules in enumerate(adapters):
        pack.load_slot(slot, modules)
    return pack
