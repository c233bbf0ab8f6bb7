"""The settings of a fit and a picture in; out comes its job: what the LoRA is, and what is done for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace

import torch
from peft import LoraConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffstyler.adapters import LoRAIdentity
from diffstyler.files import file_sha256
from diffstyler.fit.crops import Crops, FitPicture
from diffstyler.fit.early_stop import EarlyStop
from diffstyler.fit.losses import DiffusionLoss
from diffstyler.masking import Masker
from diffstyler.masking.prompt import Everything, File
from diffstyler.masking.prompt_parser import parse_mask_prompt

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], Optimizer]


SchedulerFactory = Callable[[Optimizer], LRScheduler]


@dataclass(frozen=True)
class FitJob:
    """One LoRA to fit: which picture, under which identity, for how many steps, with which settings of its own.

    ``learning_rate`` None is the optimizer's own; ``gradient_clip`` None means no bound, ``early_stop`` None all steps.
    """

    picture: FitPicture
    identity: LoRAIdentity
    steps: int
    config: LoraConfig = field(default_factory=LoraConfig)
    learning_rate: float | None = None
    gradient_clip: float | None = None
    crops: Crops = field(default_factory=Crops)
    early_stop: EarlyStop | None = None


@dataclass(frozen=True)
class Recipe:
    """What determines a LoRA besides its picture; a picture's own settings go before it.

    ``model`` is the frozen model's sha256, ``model_settings`` what else changes its numbers; the rest is named as in
    the finetuner, the data module and the Trainer.
    """

    model: str
    model_settings: dict[str, str]
    precision: str
    max_steps: int
    crops: Crops
    lora_config: LoraConfig
    text_encoder_targets: tuple[str, ...]
    alpha: int | None
    batch_size: int
    loss: DiffusionLoss
    optimizer: OptimizerFactory
    lr_scheduler: SchedulerFactory
    gradient_clip: float | None
    early_stop: EarlyStop | None
    masker: Masker

    def job(self, picture: FitPicture) -> FitJob:
        """What is done for this picture.

        Raises:
            ValueError: neither the picture nor the run says how many steps.
        """
        if not picture.steps and self.max_steps < 1:
            raise ValueError(f"trainer.max_steps: expected the steps of each LoRA, such as 200; got {self.max_steps}")
        return FitJob(
            picture,
            LoRAIdentity(picture.role, picture.label, picture.sha256, self.model, self._settings(picture)),
            self._steps(picture),
            self._config(picture),
            picture.learning_rate,
            picture.gradient_clip or self.gradient_clip,
            self._crops(picture),
            self.early_stop,
        )

    def _settings(self, picture: FitPicture) -> dict:
        """All that the LoRA depends on besides picture and model, as plain values."""
        config = self._config(picture)
        return {
            "prompt": picture.prompt,
            "seed": picture.seed,
            "steps": self._steps(picture),
            "batch_size": self.batch_size,
            "rank": config.r,
            "alpha": config.lora_alpha,
            "target_modules": sorted(config.target_modules or ()),
            **({"text_encoder_targets": sorted(self.text_encoder_targets)} if self.text_encoder_targets else {}),
            "crops": asdict(self._crops(picture)),
            "loss": _describe(self.loss),
            **self._optimizer_settings(picture.learning_rate),
            "gradient_clip": picture.gradient_clip or self.gradient_clip,
            **self._mask_settings(picture),
            **({"early_stop": asdict(self.early_stop)} if self.early_stop else {}),
            **({"pictures": len(picture.paths)} if picture.others else {}),
            "precision": self.precision,
            **self.model_settings,
        }

    def _steps(self, picture: FitPicture) -> int:
        return picture.steps or self.max_steps

    def _crops(self, picture: FitPicture) -> Crops:
        return picture.own_crops(self.crops).settled(self._steps(picture) * self.batch_size)

    def _config(self, picture: FitPicture) -> LoraConfig:
        rank = picture.rank or self.lora_config.r
        return replace(self.lora_config, r=rank, lora_alpha=picture.alpha or self.alpha or rank)

    def _mask_settings(self, picture: FitPicture) -> dict:
        """Which part of the picture is learned; nothing where all of it is."""
        prompt = parse_mask_prompt(picture.mask)
        if isinstance(prompt, Everything):
            return {}
        files = [file_sha256(node.path) for node in prompt.walk() if isinstance(node, File)]
        return {"mask": picture.mask, "mask_files": files, "masker": self.masker.settings}

    def _optimizer_settings(self, learning_rate: float | None) -> dict:
        """The optimizer and schedule as plain values, read off a pair made for a parameter that does not matter."""
        optimizer = self.optimizer([torch.nn.Parameter(torch.zeros(1))])
        defaults = {
            key: value for key, value in optimizer.defaults.items() if isinstance(value, (int, float, str, bool))
        }
        if learning_rate is not None:
            defaults["lr"] = learning_rate
        scheduler = self.lr_scheduler(optimizer)
        return {"optimizer": {"class": type(optimizer).__name__, **defaults}, "lr_scheduler": _describe(scheduler)}


def _describe(setting: object) -> dict:
    """A strategy object as plain values: its class and its simple attributes."""
    simple = {
        k: v for k, v in vars(setting).items() if isinstance(v, (int, float, str, bool)) and not k.startswith("_")
    }
    return {"class": type(setting).__name__, **simple}
