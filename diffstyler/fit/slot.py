"""A slot of the pack while its LoRA is being fitted: its data, its optimizer, its progress, its saved state."""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LRScheduler

from diffstyler.adapters import LoRAPack, lora_scale
from diffstyler.cuda import fetch
from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write
from diffstyler.fit.jobs import FitJob
from diffstyler.types import PromptEmbeds

log = logging.getLogger(__name__)


#: of the learning rate of a LoRA that was not finite, when it is tried again
RETRY_FACTOR = 0.3
#: of an AdamW's parameter group, by the names that the step itself has for them
ADAMW_NUMBERS = (
    "lr", "weight_decay", "eps", "amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused",
)  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """One step's rows of a slot, on the CPU: ``crops`` and ``timesteps`` (b,) int64, ``noise`` (b, C, h, w)."""

    crops: torch.Tensor
    timesteps: torch.Tensor
    noise: torch.Tensor

    def __getitem__(self, rows: slice) -> Draw:
        return Draw(self.crops[rows], self.timesteps[rows], self.noise[rows])


def clip_(gradients: torch.Tensor, scales: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Unscale each LoRA's gradient, a row of (N, P), and cut it to its bound, in place -> their L2 norms before (N,).

    ``scales`` and ``bounds`` (N,); a bound may be infinite. Nobody waits for the device.
    """
    gradients.div_(scales[:, None])
    norms = gradients.norm(dim=1)
    gradients.mul_((bounds / norms).clamp(max=1)[:, None])  # by 1, exactly, within the bound
    return norms


class NonFiniteLossError(DiffstylerError):
    """A LoRA's loss or gradient became NaN or infinite."""


@dataclass
class LossScale:
    """Dynamic loss scale of one LoRA for fp16 (Micikevicius et al. 2018); fixed at 1 in other precisions."""

    value: float = 1.0
    dynamic: bool = False
    good_steps: int = 0
    growth_interval: int = 200

    def update(self, finite: bool) -> None:
        """Halve after an overflow, double after ``growth_interval`` steps without.

        Raises:
            NonFiniteLossError: it overflows however small the scale.
        """
        if not finite:
            self.value, self.good_steps = self.value / 2, 0
            if not self.dynamic or self.value < 1:
                raise NonFiniteLossError("the gradient is not finite")
        elif self.dynamic:
            self.good_steps += 1
            if self.good_steps % self.growth_interval == 0:
                self.value *= 2


@dataclass
class Slot:
    """One LoRA in the making, in row ``index`` of the pack.

    Everything random is drawn from a generator per (seed, step), so that a LoRA depends neither on its neighbors nor
    on where it was interrupted.
    """

    job: FitJob
    index: int
    pack: LoRAPack
    latents: torch.Tensor  # (crops, C, h, w), clean
    prompt: PromptEmbeds  # one row
    optimizer: Optimizer
    scheduler: LRScheduler
    weights: torch.nn.Parameter  # (P,), the pack's row
    loss_scale: LossScale
    history: list[str] = field(default_factory=list)  # what happened on the way, for its record
    masks: torch.Tensor | None = None  # (crops, 1, h, w), the cells that are learned; None = all
    step: int = 0
    losses: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)  # losses on held-out noise, where it may stop early
    previews: dict[int, torch.Tensor] = field(default_factory=dict)  # by step (H, W, 3) uint8, where they are drawn

    @property
    def name(self) -> str:
        return self.job.identity.name

    @property
    def learning_rate(self) -> float:
        """Of its next step."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def done(self) -> bool:
        return self.step >= self.job.settings.steps or self.stopped

    @property
    def stopped(self) -> bool:
        """Whether it ends before its last step."""
        return self.job.settings.early_stop is not None and self.job.settings.early_stop.stops(self.held_out)

    @property
    def due(self) -> bool:
        """Whether it is time to look at the held-out loss."""
        return (
            self.job.settings.early_stop is not None
            and len(self.held_out) < self.step // self.job.settings.early_stop.every
        )

    def draw(self, batch_size: int, num_train_timesteps: int) -> Draw:
        """The rows of the present step: random crops, noise and timesteps."""
        generator = torch.Generator().manual_seed(_mix(self.job.settings.seed, self.step))
        crops = torch.randint(len(self.latents), (batch_size,), generator=generator)
        timesteps = torch.randint(num_train_timesteps, (batch_size,), generator=generator)
        return self._rows(crops, timesteps, generator)

    def draw_held_out(self, batch_size: int, num_train_timesteps: int) -> list[Draw]:
        """The rows of the held-out loss, always the same ones, in parts of ``batch_size``: a timestep in each of equal
        ranges of the noise levels."""
        assert self.job.settings.early_stop is not None
        parts = -(-self.job.settings.early_stop.rows // batch_size)
        generator = torch.Generator().manual_seed(_mix(self.job.settings.seed, "held out"))
        crops = torch.randint(len(self.latents), (parts * batch_size,), generator=generator)
        places = torch.arange(len(crops)) + torch.rand(len(crops), generator=generator)
        timesteps = (places * num_train_timesteps / len(crops)).long()
        rows = self._rows(crops, timesteps, generator)
        return [rows[part * batch_size : (part + 1) * batch_size] for part in range(parts)]

    def _rows(self, crops: torch.Tensor, timesteps: torch.Tensor, generator: torch.Generator) -> Draw:
        noise = torch.randn((len(crops), *self.latents.shape[1:]), generator=generator, dtype=torch.float32)
        return Draw(crops, timesteps, noise)

    @property
    def gradient(self) -> torch.Tensor:
        """Of this LoRA alone (P,): the pack's row."""
        assert self.pack.flat.grad is not None
        return self.pack.flat.grad[self.index]

    def saving(self) -> Callable[[Path], None]:
        """What writes, atomically, everything that the next step depends on, as it is now; it is on its way off the
        device, and nobody waits for it before it is written."""
        optimizer = self.optimizer.state_dict()
        state = {
            "key": self.job.identity.key,
            "scheduler": copy.deepcopy(self.scheduler.state_dict()),
            "loss_scale": [self.loss_scale.value, self.loss_scale.good_steps],
            "step": self.step,
            "losses": [*self.losses],
            "held_out": [*self.held_out],
            "history": [*self.history],
            "previews": {**self.previews},
        }
        groups, of_weights = copy.deepcopy(optimizer["param_groups"]), fetch(self.weights.detach())
        own = optimizer["state"].get(0, {})  # a slot has one parameter
        coming = {name: fetch(value) for name, value in own.items() if isinstance(value, torch.Tensor)}
        known = {name: copy.deepcopy(value) for name, value in own.items() if name not in coming}

        def write(path: Path) -> None:
            moments = {**known, **{name: wait() for name, wait in coming.items()}}
            state["optimizer"] = {"state": {0: moments} if moments else {}, "param_groups": groups}
            state["weights"] = of_weights().clone()  # of a row alone
            buffer = io.BytesIO()
            torch.save(state, buffer)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, buffer.getvalue())

        return write

    def restore(self, path: Path) -> None:
        """Go on where :meth:`saving` was called; a file that is not this LoRA's state is left aside, with a warning."""
        begun = copy.deepcopy((self.optimizer.state_dict(), self.scheduler.state_dict()))
        try:
            self._restore(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # pickles raise all kinds of errors on damaged files
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            log.warning("%s: the saved state of %s cannot be used (%s); it starts again", path, self.name, reason)
            self.optimizer.load_state_dict(begun[0])
            self.scheduler.load_state_dict(begun[1])

    def _restore(self, state: dict) -> None:
        if state.get("key", self.job.identity.key) != self.job.identity.key:  # older ones have none
            raise DiffstylerError("it is of another LoRA")
        if state["weights"].shape != self.weights.shape:
            raise DiffstylerError("it was saved in a pack of another rank")
        told = {name: state[name] for name in ("step", "losses", "held_out", "history")}
        told["previews"] = state.get("previews", {})  # older ones have none
        value, good_steps = state["loss_scale"]
        for saved, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            saved.update({name: own[name] for name in ("fused", "foreach") if name in own})  # as the device wants it
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.weights.data.copy_(state["weights"])
        self.loss_scale.value, self.loss_scale.good_steps = value, good_steps
        vars(self).update(told)

    def close(self) -> None:
        """Leave the row empty for the next LoRA."""
        self.weights.data.zero_()
        self.pack.scale[self.index] = 0


def open_slot(
    job: FitJob,
    index: int,
    pack: LoRAPack,
    latents: torch.Tensor,
    prompt: PromptEmbeds,
    *,
    loss_scale: LossScale,
    history: Sequence[str] = (),
    masks: torch.Tensor | None = None,
    initial: torch.Tensor | None = None,
) -> Slot:
    """Start a LoRA in row ``index`` of the pack, with an optimizer of its own on that row alone.

    ``initial`` are its first weights, where they were drawn before.

    Each failed try that ``history`` tells of lowers the learning rate by ``RETRY_FACTOR``.
    """
    scale, rank = lora_scale(job.settings.config), job.settings.rank
    pack.init_slot(index, seed=job.settings.seed, scale=scale, rank=rank, initial=initial)
    weights = torch.nn.Parameter(pack.flat.data[index])
    own = job.settings.optimizer([weights])
    for group in own.param_groups:
        if isinstance(own, torch.optim.AdamW) and weights.is_cuda:
            group.update(fused=True, foreach=False)  # one kernel in place of a dozen
        group["lr"] = (job.settings.learning_rate or group["lr"]) * RETRY_FACTOR ** len(history)
    return Slot(
        job,
        index,
        pack,
        latents,
        prompt,
        own,
        job.settings.lr_scheduler(own),
        weights,
        loss_scale,
        list(history),
        masks,
    )


def take_steps(slots: Sequence[Slot]) -> None:
    """One optimizer step of each LoRA on its gradient, which lies in the pack; nobody waits for the device.

    LoRAs under AdamW with equal numbers take theirs in one call over their rows (on CUDA, fused: a few kernels for
    all); each result is that of its own optimizer's step, to the last bit. Any other optimizer takes its step alone.
    """
    together: dict[tuple, list[Slot]] = {}
    for slot in slots:
        kind = _adamw_numbers(slot.optimizer, slot.weights)
        if kind is not None:
            together.setdefault(kind, []).append(slot)
        else:
            slot.weights.grad = slot.gradient
            slot.optimizer.step()
    for kind, alike in together.items():
        states = [slot.optimizer.state[slot.weights] for slot in alike]
        with torch.no_grad():
            adamw(
                [slot.weights for slot in alike],
                [slot.gradient for slot in alike],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [state["max_exp_avg_sq"] for state in states if "max_exp_avg_sq" in state],
                [state["step"] for state in states],
                **dict(kind),
            )
    for slot in slots:
        slot.scheduler.step()


def take_scaled_steps(slots: Sequence[Slot], gradient_norms: Sequence[float]) -> None:
    """The same with loss scales that follow the gradients' norms (by slot): a LoRA whose gradient overflows takes no
    step. One that does so however small the scale is left to whoever looks at the norms."""
    finite = []
    for slot in slots:
        norm = gradient_norms[slot.index]
        try:
            slot.loss_scale.update(math.isfinite(norm))
        except NonFiniteLossError:
            continue
        if math.isfinite(norm):
            finite.append(slot)
    take_steps(finite)


def _adamw_numbers(optimizer: Optimizer, weights: torch.nn.Parameter) -> tuple | None:
    """All that an AdamW's step depends on but its state, by the names that :func:`adamw` has for it; None where the
    optimizer is to take its step itself: its first, which makes its state, or another kind, or hooks wait for it."""
    if type(optimizer) is not torch.optim.AdamW or weights not in optimizer.state or len(optimizer.param_groups) != 1:
        return None
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return None
    group = optimizer.param_groups[0]
    numbers = {name: group[name] for name in ADAMW_NUMBERS}
    numbers["beta1"], numbers["beta2"] = group["betas"]
    if any(isinstance(number, torch.Tensor) for number in numbers.values()):
        return None
    return tuple(sorted(numbers.items()))


def _mix(seed: int, step: int | str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:8], "big") >> 1
