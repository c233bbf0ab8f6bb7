"""Cross-LoRA injection: features, queries and keys of the content branch steer the style branch.

A strategy says how strongly at each step; :func:`inject` owns the hooks that write the source rows' values into the
target rows of the same forward, and leaves the model as it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import nn

from diffstyler.backbones import InjectionSites
from diffstyler.errors import DiffstylerError
from diffstyler.types import Schedule, Step


@dataclass(frozen=True)
class Rates:
    """How much of a target row's value comes from its source row at one step, 0 … 1."""

    features: float = 0.0
    attention: float = 0.0

    @property
    def active(self) -> bool:
        return self.features > 0 or self.attention > 0


class Injection(ABC):
    """How content steers style at each step."""

    #: the source row runs under the content adapter or the base (False), or under the target's style adapter (True)
    source_under_style: bool = False
    #: style adapters leave the self-attention at the injected sites alone
    plain_self_attention_at_sites: bool = False

    @abstractmethod
    def rates(self, step: Step) -> Rates:
        """The rates of one step."""

    def without_effect(self, schedule: Schedule) -> set[str]:
        """Settings, other than as they are by default, that change nothing on this grid."""
        return set()

    def scheduled(self, features: float | None, attention: float | None) -> Injection:
        """The same with other fractions of the steps, None = as it is.

        Raises:
            DiffstylerError: this injection has no such fractions.
        """
        if features is None and attention is None:
            return self
        raise DiffstylerError(
            f"{type(self).__name__} has no schedule that inject_features or inject_attention could change"
        )


@dataclass(frozen=True)
class CrossLoRAInjection(Injection):
    """DiffStyler's injection (v1: fixed, v3: adaptive attention fusion; both: features are replaced).

    Its authors replace features in 60 % of the steps and blend queries and keys in half of them; with a matching, which
    brings the style in by itself, the content holds in all of them.

    Args:
        features: fraction of the steps, from the first, in which features are replaced.
        attention: fraction of the steps in which self-attention queries and keys are blended.
        adaptive: blend queries and keys with r(t) = min(1, 2t / 1000) (v3) in place of 1 (v1).
        source_under_style: run the source row under the style adapter, as the authors' code does.
        plain_self_attention_at_sites: style adapters skip attn1 of the injected layers, as in the authors' code.
    """

    features: float = 1.0
    attention: float = 1.0
    _: KW_ONLY
    adaptive: bool = False
    source_under_style: bool = False
    plain_self_attention_at_sites: bool = False

    def __post_init__(self) -> None:
        for name, value in {"features": self.features, "attention": self.attention}.items():
            if not 0 <= value <= 1:
                raise DiffstylerError(f"injection {name}: expected a fraction of the steps in 0 … 1, got {value}")

    def scheduled(self, features: float | None, attention: float | None) -> CrossLoRAInjection:
        given = {"features": features, "attention": attention}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def without_effect(self, schedule: Schedule) -> set[str]:
        rates = [self.rates(step) for step in schedule]
        fixed = [replace(self, adaptive=False).rates(step) for step in schedule] == rates
        idle = not any(rate.active for rate in rates)
        effects = {"adaptive": fixed and self.adaptive, "source_under_style": idle and self.source_under_style}
        return {name for name, nothing in effects.items() if nothing}

    def rates(self, step: Step) -> Rates:
        rate = min(1.0, 2 * step.time) if self.adaptive else 1.0
        return Rates(
            features=float(step.index < round(self.features * step.count)),
            attention=rate * (step.index < round(self.attention * step.count)),
        )


@dataclass(frozen=True)
class NoInjection(Injection):
    """No source row: the style LoRA and the starting latents alone."""

    def rates(self, step: Step) -> Rates:
        return Rates(0.0, 0.0)


@dataclass(frozen=True)
class RowSources:
    """For each of R rows: the row it takes values from (R,) int64 (itself = untouched), and its rates (R,)."""

    source: torch.Tensor
    features: torch.Tensor
    attention: torch.Tensor


class InjectionHooks:
    """The switch of the hooks that :func:`inject` registers: set ``rows`` before a forward, None = do nothing."""

    def __init__(self) -> None:
        self.rows: RowSources | None = None


@contextmanager
def inject(model: nn.Module, sites: InjectionSites) -> Iterator[InjectionHooks]:
    """Hooks on ``conv2``, ``to_q`` and ``to_k`` at the sites; removed on exit, the model then equals itself.

    Enter it after all adapters are attached: hooks run in the order in which they were registered, and the injected
    value must be the one with the adapter's share in it.

    Raises:
        DiffstylerError: a site has fused projections, whose queries and keys no hook can see.
    """
    hooks = InjectionHooks()
    handles = []
    try:
        for path in sites.features:
            handles.append(model.get_submodule(path).register_forward_hook(_blend(hooks, "features")))
        for path in sites.attention:
            attention = model.get_submodule(path)
            if getattr(attention, "fused_projections", False):
                raise DiffstylerError(
                    f"{path} has fused q, k, v projections, which hide q and k: call unfuse_qkv_projections()"
                )
            for projection in (attention.to_q, attention.to_k):  # type: ignore[union-attr]
                handles.append(projection.register_forward_hook(_blend(hooks, "attention")))  # type: ignore[union-attr]
        yield hooks
    finally:
        for handle in handles:
            handle.remove()


def _blend(hooks: InjectionHooks, kind: str) -> Callable:
    """value ← r · value[source] + (1 − r) · value, row by row; exact at r = 0 and r = 1."""

    def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        rows = hooks.rows
        if rows is None:
            return None
        rate: torch.Tensor = getattr(rows, kind)
        return torch.lerp(output, output[rows.source], rate.to(output.dtype).view(-1, *[1] * (output.dim() - 1)))

    return hook
