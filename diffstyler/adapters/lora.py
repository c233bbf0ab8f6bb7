"""What a LoRA is, whatever file it came from: a low-rank update for each module that it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, eq=False)
class LowRank:
    """The update s B A of one module's weights (Hu et al. 2021), r its rank.

    ``down`` A (r, in), or (r, in, k, k) of a convolution; ``up`` B (out, r) or (out, r, 1, 1); ``scale`` s.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def update(self) -> torch.Tensor:
        """s B A (out, in); a convolution's patches count as its input."""
        return self.scale * self.up.flatten(1) @ self.down.flatten(1)

    @property
    def outline(self) -> LowRank:
        """The sizes without the weights."""
        return LowRank(self.down.to("meta"), self.up.to("meta"), self.scale)


@dataclass(frozen=True)
class LoRA:
    """One adapter as read from ``path``: float32 on the CPU, by part of the model ("unet", "text_encoder",
    "text_encoder_2") and dotted module name in it.

    ``unmatched``: the keys of the file that no dialect knows.
    """

    parts: Mapping[str, Mapping[str, LowRank]]
    path: Path
    unmatched: tuple[str, ...] = ()


def largest_rank(modules: Mapping[str, LowRank]) -> int:
    return max(module.rank for module in modules.values())
