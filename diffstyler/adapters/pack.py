"""Many LoRAs on one frozen model: each row of a forward runs under its own adapter.

LoRA (Hu et al. 2021): y = W x + s B A x with s = alpha / rank. Here N adapters are the N rows of one matrix, and
every target module sees its slice of it as stacked ``A (N, r, in)`` and ``B (N, out, r)``, so that one batched matrix
product serves all adapters of a step. One row holds one whole adapter: its gradient norm, its optimizer and its
checkpoint never touch a neighbor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from torch.nn import functional

from diffstyler.adapters.dialects import without_text_model
from diffstyler.adapters.lora import LowRank
from diffstyler.cuda import fetch, send
from diffstyler.errors import DiffstylerError


@dataclass(frozen=True)
class Target:
    """A module that carries LoRA, and where its A and B lie in an adapter's row."""

    name: str
    module: nn.Linear | nn.Conv2d
    a_shape: tuple[int, int]
    b_shape: tuple[int, int]
    offset: int

    @property
    def a_end(self) -> int:
        return self.offset + math.prod(self.a_shape)

    @property
    def end(self) -> int:
        return self.a_end + math.prod(self.b_shape)


@dataclass(frozen=True)
class Rows:
    """Which adapter each row of the forward runs under.

    ``slots`` (R,) int64, or None for "the N slots in order, the same number of rows each"; ``strength`` (R,) scales
    the adapter of each row (0 = base model); modules named in ``without`` run without any adapter.
    """

    slots: torch.Tensor | None
    strength: torch.Tensor | None = None
    without: frozenset[str] = frozenset()


class LoRAPack:
    """N LoRA adapters of one configuration on ``model``.

    Args:
        model: the frozen model; it is left as it is, adapters act through forward hooks.
        config: peft's configuration: ``r``, ``target_modules``, ``use_rslora`` and so on.
        slots: N.
        device: where the adapters live; the model's device by default.
        dtype: of the adapters.
        compute_dtype: what they act in, the model's own as a rule; None = ``dtype``.

    Raises:
        DiffstylerError: no module matches ``target_modules``, or one is neither linear nor a plain convolution.
    """

    def __init__(
        self,
        model: nn.Module,
        config: LoraConfig,
        slots: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.config = config
        self.rank = config.r
        self.targets = find_targets(model, config)
        size = self.targets[-1].end
        device = device or next(model.parameters()).device
        self.flat = torch.zeros(slots, size, device=device, dtype=dtype)
        self.scale = torch.zeros(slots, device=device, dtype=torch.promote_types(dtype, torch.float32))
        self.compute_dtype = compute_dtype or dtype
        self._acting = _Acting()
        self._updates = [_Update() for _ in self.targets]
        self._bind(self.flat)
        self._handles = [
            target.module.register_forward_hook(_hook(update, self._acting))
            for target, update in zip(self.targets, self._updates, strict=True)
        ]

    @property
    def slots(self) -> int:
        return len(self.flat)

    def detach(self) -> None:
        """Take the hooks off: the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def rows(self, rows: Rows) -> Iterator[None]:
        """Forwards inside run under these adapters; outside, the pack does nothing. Not re-entrant."""
        assert self._acting.scale is None, "rows() inside rows()"
        learns = self.flat.requires_grad and torch.is_grad_enabled()
        if learns or self.compute_dtype != self.flat.dtype:  # one cast and one split: one concatenation backward
            self._bind((self.flat if learns else self.flat.detach()).to(self.compute_dtype))
        for target, update in zip(self.targets, self._updates, strict=True):
            update.on = target.name not in rows.without
        self._acting.slots, self._acting.scale = rows.slots, self._scale_of(rows).to(self.compute_dtype)
        try:
            yield
        finally:
            self._acting.slots = self._acting.scale = None
            if learns:
                self._bind(self.flat.detach())

    def _scale_of(self, rows: Rows) -> torch.Tensor:
        """s of each row (R, 1, 1), or of each slot (N, 1, 1) where all slots run in order."""
        scale = self.scale if rows.slots is None else self.scale[rows.slots]
        if rows.strength is not None:
            if rows.slots is None:
                raise DiffstylerError("strength is a row's; name the rows' slots")
            scale = scale * rows.strength
        return scale.view(-1, 1, 1)

    def train(self) -> None:
        """Let gradients reach the adapters: a backward pass inside :meth:`rows` leaves them in ``self.flat.grad``."""
        self.flat.requires_grad_(True)

    def initial(self, seed: int, rank: int | None = None) -> torch.Tensor:
        """A row of :attr:`flat` (P,) float32 on the CPU: A from peft's Kaiming-uniform initialization with this seed, B
        zero, so that the adapter does nothing yet.

        A ``rank`` below the pack's fills the first rows of A; the others are zero, as in B, and so are all their
        gradients.
        """
        generator = torch.Generator().manual_seed(seed)
        row = torch.zeros(self.flat.shape[1])
        for target in self.targets:
            bound = 1 / math.sqrt(target.a_shape[1])  # kaiming_uniform_(a=√5)
            shape = (rank or self.rank, target.a_shape[1])
            a = torch.rand(shape, generator=generator, dtype=torch.float32).mul_(2 * bound).sub_(bound)
            row[target.offset : target.offset + a.numel()] = a.flatten()
        return row

    def init_slot(
        self, slot: int, *, seed: int, scale: float, rank: int | None = None, initial: torch.Tensor | None = None
    ) -> None:
        """Begin an adapter; ``initial`` is :meth:`initial` of its seed and rank, where that was drawn before."""
        self.scale[slot] = scale
        row = self.initial(seed, rank) if initial is None else initial
        self.flat.data[slot].copy_(send(row, self.flat.device))

    def export(self, slot: int, rank: int | None = None) -> dict[str, LowRank]:
        """The adapter by the model's module names, on the CPU, float32; of its own ``rank``."""
        return self.exporting(slot, rank)()

    def exporting(self, slot: int, rank: int | None = None) -> Callable[[], dict[str, LowRank]]:
        """What :meth:`export` gives of the adapter as it is now, whatever becomes of the slot, when it is asked for."""
        row = fetch(self.flat.detach()[slot].to(torch.float32, copy=True))
        scale = fetch(self.scale[slot].clone())
        return lambda: self._modules(row(), scale().item(), rank or self.rank)

    def _modules(self, row: torch.Tensor, scale: float, rank: int) -> dict[str, LowRank]:
        modules = {}
        for target in self.targets:
            a = row[target.offset : target.a_end].view(target.a_shape)[:rank].clone()
            b = row[target.a_end : target.end].view(target.b_shape)[:, :rank].clone()
            if isinstance(target.module, nn.Conv2d):
                a = a.view(rank, -1, *target.module.kernel_size)
                b = b.view(-1, rank, 1, 1)
            modules[target.name] = LowRank(a, b, scale)
        return modules

    def load_slot(self, slot: int, modules: Mapping[str, LowRank]) -> None:
        """Put an adapter, by the model's module names, into a slot; ranks below the pack's are padded with zeros.

        Raises:
            DiffstylerError: a name is of no target of this pack, or a shape does not fit.
        """
        self.flat.data[slot].zero_()
        self.scale[slot] = scale = next((m.scale for m in modules.values() if m.scale), 1.0)
        targets = {target.name: target for target in self.targets}
        for name, module in modules.items():
            if name not in targets:
                raise DiffstylerError(
                    f"the LoRA has weights for {name}, which is not among the modules of this model's pack"
                )
            target, a, b = targets[name], module.down.flatten(1), module.up.flatten(1)
            if a.shape[1] != target.a_shape[1] or b.shape[0] != target.b_shape[0] or len(a) > self.rank:
                raise DiffstylerError(
                    f"the LoRA's {name} is {b.shape[0]} x {a.shape[1]} (rank {len(a)}); this model has "
                    f"{target.b_shape[0]} x {target.a_shape[1]}: it was made for another model"
                )
            row = self.flat.data[slot]
            row[target.offset : target.a_end].view(target.a_shape)[: len(a)] = a.to(row)
            row[target.a_end : target.end].view(target.b_shape)[:, : len(a)] = (b * (module.scale / scale)).to(row)

    def _bind(self, flat: torch.Tensor) -> None:
        """Give each target its A (N, r, in) and B (N, out, r), as views of ``flat``."""
        shapes = [shape for target in self.targets for shape in (target.a_shape, target.b_shape)]
        parts = flat.split([math.prod(shape) for shape in shapes], dim=1)
        views = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
        for update, a, b in zip(self._updates, views[::2], views[1::2], strict=True):
            update.a, update.b = a, b


class _Acting:
    """What acts in a forward, of all targets: the adapter of each row, and its scale; no scale, no adapter."""

    slots: torch.Tensor | None = None
    scale: torch.Tensor | None = None


class _Update:
    """The matrices of one target. Its hook reads no number that differs from target to target: a compiler that has
    seen one layer has seen all that are like it."""

    a: torch.Tensor
    b: torch.Tensor
    on: bool = True


def _hook(update: _Update, acting: _Acting) -> Callable:
    def add_lora(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
        if acting.scale is None or not update.on:
            return None
        if isinstance(module, nn.Linear):
            return _add_low_rank(output, args[0], update.a, update.b, acting.slots, acting.scale)
        zeros = output.new_zeros(()).expand(len(output), output[0, 0].numel(), output.shape[1])
        added = _add_low_rank(zeros, _unfold(args[0], module), update.a, update.b, acting.slots, acting.scale)
        return output + added.mT.reshape(output.shape)

    return add_lora


def _add_low_rank(
    output: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    slots: torch.Tensor | None,
    scale: torch.Tensor,
) -> torch.Tensor:
    """``output`` + s B A x for x (R, …, in) and output (R, …, out); s acts where the tensor is smallest, on A x.

    ``slots``: the adapter of each row, or None for the N adapters in order; ``scale`` (R, 1, 1) or (N, 1, 1).
    """
    if slots is not None:
        a, b = a[slots], b[slots]
    n = len(a)
    down = torch.bmm(x.reshape(n, -1, x.shape[-1]), a.mT.to(x.dtype)) * scale.to(x.dtype)
    flat = output.reshape(n, -1, output.shape[-1])
    return torch.baddbmm(flat, down.to(flat.dtype), b.mT.to(flat.dtype)).view(output.shape)


def find_targets(model: nn.Module, config: LoraConfig) -> list[Target]:
    """The modules that peft would wrap for this configuration, in the model's order."""
    targets, offset = [], 0
    for name, module in model.named_modules():
        if not name or not check_target_module_exists(config, name):
            continue
        if not isinstance(module, nn.Linear) and not (isinstance(module, nn.Conv2d) and module.groups == 1):
            raise DiffstylerError(
                f"target_modules matches {name}, a {type(module).__name__}; LoRA goes on linear or convolution"
            )
        out_features, in_features = _sizes(module)
        target = Target(name, module, (config.r, in_features), (out_features, config.r), offset)
        targets.append(target)
        offset = target.end
    if not targets:
        raise DiffstylerError(f"target_modules {config.target_modules!r} matches no module of the model")
    return targets


def pack_of_parts(
    models: Mapping[str, nn.Module],
    configs: Mapping[str, LoraConfig],
    slots: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    compute_dtype: torch.dtype | None = None,
) -> LoRAPack:
    """A pack over several models: one row holds an adapter's weights for all, by names that begin with the part.

    Raises:
        DiffstylerError: as for :class:`LoRAPack`, of each part.
    """
    names = [f"{part}.{t.name}" for part, config in configs.items() for t in find_targets(models[part], config)]
    config = replace(next(iter(configs.values())), target_modules=names)
    return LoRAPack(nn.ModuleDict(dict(models)), config, slots, device=device, dtype=dtype, compute_dtype=compute_dtype)


def by_part(modules: Mapping[str, LowRank]) -> dict[str, dict[str, LowRank]]:
    """What a pack of parts exports, by part and by the names that LoRA files have for the modules."""
    parts: dict[str, dict[str, LowRank]] = {}
    for key, module in modules.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[without_text_model(name)] = module
    return parts


def match_modules(model: nn.Module, modules: Mapping[str, LowRank]) -> dict[str, str]:
    """{a LoRA's module: the model's name of it}, of those that the model has in the LoRA's sizes.

    Some text encoders keep their layers one level down, in ``text_model``; a LoRA's names are without it.
    """
    known = {without_text_model(name): name for name, _ in model.named_modules()}
    return {
        name: known[name]
        for name, module in modules.items()
        if name in known and _fits(model.get_submodule(known[name]), module)
    }


def _fits(module: nn.Module, update: LowRank) -> bool:
    if not isinstance(module, nn.Linear) and not (isinstance(module, nn.Conv2d) and module.groups == 1):
        return False
    return (len(update.up), update.down.flatten(1).shape[1]) == _sizes(module)


def _sizes(module: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    """(out, in) of the matrix that acts; a convolution's patches count as its input."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels * math.prod(module.kernel_size)


def _unfold(x: torch.Tensor, conv: nn.Module) -> torch.Tensor:
    """(R, C, H, W) -> (R, H' W', C k k): a convolution's patches, so that A acts as a matrix."""
    assert isinstance(conv, nn.Conv2d)
    if conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding in {(0, 0), "valid"}:
        return x.flatten(2).mT
    patches = functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
    return patches.mT
