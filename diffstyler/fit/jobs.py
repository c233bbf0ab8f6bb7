"""The settings of a run and a picture in; out comes the job: which LoRA it is, and what is done for it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from peft import LoraConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffstyler.adapters import LoRAIdentity
from diffstyler.errors import DiffstylerError
from diffstyler.files import file_sha256
from diffstyler.fit.crops import Crops
from diffstyler.fit.early_stop import EarlyStop
from diffstyler.fit.losses import DiffusionLoss, NoiseLoss
from diffstyler.masking import AttentionMasker, Masker
from diffstyler.masking.prompt import Everything, File
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.provenance import InexpressibleError, describe

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def adamw(params: Iterable[torch.nn.Parameter]) -> Optimizer:
    """The method's (METHOD, Fit)."""
    return torch.optim.AdamW(params, lr=2e-4, weight_decay=1e-2)


def constant(optimizer: Optimizer) -> LRScheduler:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


@dataclass(frozen=True)
class FitPicture:
    """The pictures of one LoRA, called ``name``.

    ``sha256`` is of their pixels together; ``given`` are the settings (fields of FitSettings, or of its crops) in which
    this LoRA differs from the run.
    """

    paths: tuple[Path, ...]
    sha256: str
    name: str
    given: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class FitSettings:
    """What determines a LoRA besides its pictures and the frozen model.

    A run has one; a LoRA's own is :meth:`but`. Fields are named as in manifests, the finetuner and the data module.

    Args:
        role: "style" or "content".
        prompt: describes the picture.
        seed: fixes crops, noise, timesteps and the initial LoRA.
        steps: optimizer steps.
        batch_size: training rows in a step.
        rank: r.
        alpha: the LoRA acts with alpha / rank; None = ``rank``.
        target_modules: names (endings) of the modules that carry LoRA.
        text_encoder_targets: the same for the text encoders; none = they stay as they are.
        learning_rate: None = the optimizer's own.
        gradient_clip: bound of the L2 norm of the gradient; None = no bound.
        mask: a mask prompt: the part of the picture that is learned.
        crops: how training crops are taken.
        loss: what is minimized.
        optimizer: makes the optimizer from the LoRA's parameters.
        lr_scheduler: makes the learning-rate schedule from the optimizer.
        early_stop: ends the LoRA when it learns nothing more; None = never.
        masker: finds ``mask``.
        precision: the Trainer's.
    """

    role: str = "style"
    prompt: str = ""
    seed: int = 0
    steps: int = 0
    batch_size: int = 1
    rank: int = 16
    alpha: int | None = None
    target_modules: tuple[str, ...] = ATTENTION
    text_encoder_targets: tuple[str, ...] = ()
    learning_rate: float | None = None
    gradient_clip: float | None = None
    mask: str = "everything"
    crops: Crops = field(default_factory=Crops)
    loss: DiffusionLoss = field(default_factory=NoiseLoss)
    optimizer: OptimizerFactory = adamw
    lr_scheduler: SchedulerFactory = constant
    early_stop: EarlyStop | None = None
    masker: Masker = field(default_factory=AttentionMasker)
    precision: str = "32-true"

    def but(self, given: Mapping[str, object]) -> FitSettings:
        """The same with what a row of a manifest gives."""
        crops = {name: value for name, value in given.items() if name in ("resolution", "crop_size")}
        rest = {name: value for name, value in given.items() if name not in crops}
        changed = replace(self, crops=replace(self.crops, **crops), **rest)  # type: ignore[arg-type]
        return replace(changed, crops=changed.crops.settled(changed.steps * changed.batch_size))

    @property
    def config(self) -> LoraConfig:
        """peft's, of the denoiser."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.rank if self.alpha is None else self.alpha,
            target_modules=list(self.target_modules),
        )

    @property
    def text_config(self) -> LoraConfig:
        """peft's, of the text encoders."""
        return replace(self.config, target_modules=list(self.text_encoder_targets))  # type: ignore[arg-type]

    def record(self, *, whole: bool = True) -> dict[str, object]:
        """All of it as plain values.

        Args:
            whole: False = as diffstyler recorded it before it told optimizer settings that are no scalars.

        Raises:
            DiffstylerError: a part cannot be told by plain values.
        """
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "rank": self.rank,
            "alpha": self.config.lora_alpha,
            "target_modules": sorted(self.target_modules),
            **({"text_encoder_targets": sorted(self.text_encoder_targets)} if self.text_encoder_targets else {}),
            "crops": asdict(self.crops),
            "loss": describe(self.loss),
            **self._record_of_optimizer(whole),
            "gradient_clip": self.gradient_clip,
            **self._record_of_mask(),
            **({"early_stop": asdict(self.early_stop)} if self.early_stop else {}),
            "precision": self.precision,
        }

    def _record_of_mask(self) -> dict[str, object]:
        """Which part of the picture is learned; nothing where all of it is."""
        prompt = parse_mask_prompt(self.mask)
        if isinstance(prompt, Everything):
            return {}
        files = [file_sha256(node.path) for node in prompt.walk() if isinstance(node, File)]
        return {"mask": self.mask, "mask_files": files, "masker": self.masker.settings}

    def _record_of_optimizer(self, whole: bool) -> dict[str, object]:
        """Read off a pair made for a parameter that does not matter.

        Raises:
            DiffstylerError: one of them cannot be made, or the schedule makes no step.
        """
        with _fault_of("model.optimizer"):
            optimizer = self.optimizer([torch.nn.Parameter(torch.zeros(1))])
        own = {} if whole else _scalars(optimizer.defaults)
        if self.learning_rate is not None:
            own["lr"] = optimizer.param_groups[0]["lr"] = self.learning_rate
        if whole:
            own = _settings_of_optimizer(optimizer)
        before = {**optimizer.param_groups[0], "initial_lr": optimizer.param_groups[0]["lr"]}
        with _fault_of("model.lr_scheduler"):
            scheduler = self.lr_scheduler(optimizer)
        schedule = _record_of_scheduler(scheduler, whole)
        if whole:  # some schedules keep their settings with the optimizer
            group = optimizer.param_groups[0].items()
            changed = {
                name: value for name, value in group if name not in ("params", "lr") and value != before.get(name)
            }
            schedule |= {name: describe(value) for name, value in changed.items()}
        with _fault_of("model.lr_scheduler"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch misses the optimizer's own step
            scheduler.step()
        return {
            "optimizer": {"class": type(optimizer).__name__, **own},
            "lr_scheduler": schedule,
        }


@dataclass(frozen=True)
class FitJob:
    """One LoRA to fit: of which pictures, with which settings, under which identity.

    ``former``: the identity that it had before optimizer settings were told in full, where that is another.
    """

    picture: FitPicture
    settings: FitSettings
    identity: LoRAIdentity
    former: LoRAIdentity | None = None


def fit_job(picture: FitPicture, run: FitSettings, model: str, model_settings: Mapping[str, str]) -> FitJob:
    """What is done for this picture.

    Args:
        picture: and what it wants otherwise than the run.
        run: the settings of all.
        model: sha256 of the frozen model.
        model_settings: what else changes its numbers.

    Raises:
        DiffstylerError: neither the picture nor the run says how many steps, or a setting cannot be recorded.
    """
    settings = run.but(picture.given)
    if settings.steps < 1:
        raise DiffstylerError(f"trainer.max_steps: expected the steps of each LoRA, such as 200; got {settings.steps}")
    more = {**({"pictures": len(picture.paths)} if len(picture.paths) > 1 else {}), **model_settings}

    def identity(whole: bool) -> LoRAIdentity:
        record = {**settings.record(whole=whole), **more}
        return LoRAIdentity(settings.role, picture.name, picture.sha256, model, record)

    now, former = identity(whole=True), identity(whole=False)
    return FitJob(picture, settings, now, former if former.key != now.key else None)


@contextmanager
def _fault_of(where: str) -> Iterator[None]:
    """What a class says of its arguments, as ours: torch's raise all kinds of errors on them."""
    try:
        yield
    except DiffstylerError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise DiffstylerError(
            f"{where}: expected a class and init_args that it can work with, but it fails ({told}); mend its init_args"
        ) from error


def _scalars(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if isinstance(value, (int, float, str, bool))}


def _settings_of_optimizer(optimizer: Optimizer) -> dict[str, object]:
    """Plain ones as they are, others where its class does not have them so by itself; a parameter group's own win."""
    by_itself = {name: p.default for name, p in inspect.signature(type(optimizer).__init__).parameters.items()}
    settings = {**optimizer.defaults, **optimizer.param_groups[0]}
    if isinstance(settings.get("lr"), torch.Tensor):
        settings["lr"] = settings["lr"].item()
    # bitsandbytes keeps some apart, in `args`
    apart = {**getattr(vars(optimizer).get("args"), "__dict__", {}), **vars(optimizer)}
    for name in (by_itself.keys() & apart.keys()) - settings.keys() - {"args", "defaults"}:
        if apart[name] != by_itself[name]:
            settings[name] = apart[name]
    own = _scalars(settings)
    for name in settings.keys() - own.keys() - {"params"}:
        if name not in by_itself or by_itself[name] != settings[name]:
            own[name] = _told(f"model.optimizer: {name}", settings[name])
    return own


def _record_of_scheduler(scheduler: LRScheduler, whole: bool) -> dict[str, object]:
    """Its settings and its place; what every schedule keeps of its optimizer is left out."""
    own = {name: value for name, value in _scalars(vars(scheduler)).items() if not name.startswith("_")}
    if whole:
        for name in vars(scheduler).keys() - own.keys() - _kept_by_every_schedule():
            value = vars(scheduler)[name]
            if isinstance(value, (list, tuple)) and value and all(isinstance(one, LRScheduler) for one in value):
                own[name] = [_record_of_scheduler(one, whole) for one in value]
            elif value is not None and not _is_torchs_own(value):
                own[name] = _told(f"model.lr_scheduler: {name.strip('_')}", value)
    return {"class": type(scheduler).__name__, **own}


def _kept_by_every_schedule() -> set[str]:
    schedule = constant(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    return vars(schedule).keys() - {"factor", "total_iters"}


def _is_torchs_own(value: object) -> bool:
    """A function that a schedule chose by one of its plain settings."""
    function = getattr(value, "func", value)
    return callable(function) and str(getattr(function, "__module__", "")).startswith("torch.")


def _told(where: str, value: object) -> object:
    try:
        return describe(value)
    except InexpressibleError as error:
        raise DiffstylerError(
            f"{where} cannot be recorded, so that another fit could not be told from this one ({error}); write a class "
            "that keeps its arguments, or choose one of torch's"
        ) from error
