"""Pictures -> LoRAs: fine-tuning of style and content adapters alike (the method), several at once."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import lightning
import torch
from lightning.pytorch.callbacks import Timer

from diffstyler.adapters import FittedLoRA, LoRALibrary
from diffstyler.backbones import Backbone, StableDiffusion
from diffstyler.cuda import Pace
from diffstyler.distributed import Team, ended_by_sigterm, exit_codes, part
from diffstyler.errors import DiffstylerError, told_lines
from diffstyler.farm import Farm
from diffstyler.files import check_writable
from diffstyler.fit.bench import FitBatch, FitBench, crop_side, open_pack
from diffstyler.fit.crops import Crops
from diffstyler.fit.early_stop import EarlyStop
from diffstyler.fit.job_queue import Failure, JobQueue
from diffstyler.fit.jobs import (
    ATTENTION,
    FitPicture,
    FitSettings,
    OptimizerFactory,
    SchedulerFactory,
    adamw,
    constant,
    fit_job,
)
from diffstyler.fit.losses import DiffusionLoss, NoiseLoss
from diffstyler.fit.progress import FitProgress
from diffstyler.fit.sizing import Sizing
from diffstyler.masking import AttentionMasker, Masker
from diffstyler.types import RowProblem

log = logging.getLogger(__name__)

#: steps between two looks at the losses where looking means waiting
LOOK_EVERY = 16

#: seconds to compile the layers, the share of a recorded step's time that it saves, and the steps that are timed:
#: SD 1.5, 16 LoRAs at once, on an H200
COMPILING, COMPILED, TIMED_STEPS = 100.0, 0.13, 48
#: flags of the Trainer that mean nothing here, and what they are when nobody sets them
NO_FLAGS = {
    "fast_dev_run": (False,),
    "overfit_batches": (0.0,),
    "limit_train_batches": (1.0, None),  # those above set it
    "accumulate_grad_batches": (1,),
    "gradient_clip_val": (None,),
    "gradient_clip_algorithm": (None,),
    "max_epochs": (None, -1, 1, 1000),
    "min_epochs": (None, 0, 1),
    "min_steps": (None,),
    "reload_dataloaders_every_n_epochs": (0,),
}
CURES = {
    "gradient_clip_val": "trainer.gradient_clip_val: each LoRA has a gradient of its own; set model.gradient_clip",
    "gradient_clip_algorithm": "trainer.gradient_clip_algorithm: model.gradient_clip bounds each LoRA's norm",
    "accumulate_grad_batches": "trainer.accumulate_grad_batches: set model.batch_size",
}


class FitError(DiffstylerError):
    """Some LoRAs could not be fitted; the text names each and says why. The others are done.

    ``reasons``: of those that were given up, by the path of the picture.
    """

    def __init__(self, text: str, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.reasons = dict(reasons or {})


class PicturesToFit(Protocol):
    """What the finetuner reads from the data module."""

    pictures: Sequence[FitPicture]
    role: str
    run_prompt: str
    seed: int
    crops: Crops
    pack_size: int | Literal["auto"]
    together: str | None
    problems: Sequence[RowProblem]


class CloseBench(lightning.Callback):
    """Whatever ends a fit: what is under way is kept, and the model is left as it was."""

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: LoRAFinetuner,  # type: ignore[override]
        exception: BaseException,
    ) -> None:
        pl_module.close()
        pl_module.queue.failures.end()


class LoRAFinetuner(lightning.LightningModule):
    """Fits one LoRA for each picture of the data module, ``trainer.max_steps`` steps each, and keeps them in a library.

    ``pack_size`` LoRAs are fitted at once on one frozen base; a slot whose LoRA is done takes the next picture with
    crops of the same size. A LoRA whose loss is not finite is given up and reported at the end, its neighbors go on.
    Run again, it goes on where it was stopped. Ranks share the LoRAs; where all pictures make one LoRA together, they
    share the rows of each step.

    Args:
        backbone: the frozen model.
        lora_dir: the library's folder.
        rank: r of the LoRA.
        alpha: the LoRA acts with alpha / rank; None = ``rank``, that is a scale of 1.
        target_modules: names (endings) of the modules that carry LoRA: linear layers or convolutions.
        text_encoder_targets: the same for the text encoders, such as ``q_proj``, ``v_proj``; none = they stay as they
            are. Prompts are then encoded in every step, under their LoRAs.
        batch_size: training rows of each LoRA in a step, in all ranks together.
        loss: what is minimized.
        optimizer: makes the optimizer of one LoRA from its parameters.
        lr_scheduler: makes the learning-rate schedule of one LoRA from its optimizer.
        gradient_clip: bound of the L2 norm of a LoRA's gradient; None = no bound.
        early_stop: ends a LoRA before its last step when it learns nothing more; None = never.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        compile: compile the UNet's layers with their adapters once; slots then change without compiling again. "auto":
            on CUDA, where the time of the first steps says that it pays.
        max_memory: GiB of the device that a step may take by forecast: the pack is no wider than fits, and where not
            even one LoRA does, activations are recomputed. None = no bound.
        checkpoint_every: steps between saved states; a killed run repeats at most so many.
        masker: finds the part of a picture that is to be learned, where one is asked for.
        preview_steps: DDIM steps, without guidance, of the picture drawn from the prompt when a LoRA is done; 0 = no
            preview; None = 8, and no preview of a LoRA of fewer than 50 steps.
        preview_every: steps between pictures drawn on the way, for the logger and, side by side, for
            ``previews.png`` in the LoRA's folder; None = none.
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        *,
        lora_dir: Path = Path("loras"),
        rank: int = 16,
        alpha: int | None = None,
        target_modules: Sequence[str] = ATTENTION,
        text_encoder_targets: Sequence[str] = (),
        batch_size: int = 1,
        loss: DiffusionLoss | None = None,
        optimizer: OptimizerFactory = adamw,
        lr_scheduler: SchedulerFactory = constant,
        gradient_clip: float | None = 1.0,
        early_stop: EarlyStop | None = None,
        gradient_checkpointing: bool = False,
        compile: bool | Literal["auto"] = "auto",
        max_memory: float | None = None,
        checkpoint_every: int = 50,
        masker: Masker | None = None,
        preview_steps: int | None = None,
        preview_every: int | None = None,
    ) -> None:
        super().__init__()
        counts = {"rank": rank, "alpha": alpha, "batch_size": batch_size, "checkpoint_every": checkpoint_every}
        for name, value in {**counts, "preview_every": preview_every}.items():
            if value is not None and not 1 <= value < math.inf:
                raise DiffstylerError(f"model.{name}: expected at least 1, got {value}")
        if preview_every is not None and preview_steps == 0:
            raise DiffstylerError("model.preview_every: model.preview_steps 0 draws no pictures; set one of them")
        for name, value in {"gradient_clip": gradient_clip, "max_memory": max_memory}.items():
            if value is not None and not 0 < value < math.inf:
                raise DiffstylerError(f"model.{name}: expected a number above 0, or null, got {value}")
        if preview_steps is not None and not 0 <= preview_steps < math.inf:
            raise DiffstylerError(f"model.preview_steps: expected at least 0, or null, got {preview_steps}")
        self.automatic_optimization = False  # each LoRA has an optimizer of its own
        self.backbone = backbone if backbone is not None else StableDiffusion()
        self.library = LoRALibrary(Path(lora_dir))  # notebooks give text
        self.run = FitSettings(
            batch_size=batch_size,
            rank=rank,
            alpha=alpha,
            target_modules=tuple(target_modules),
            text_encoder_targets=tuple(text_encoder_targets),
            gradient_clip=gradient_clip,
            loss=loss if loss is not None else NoiseLoss(),
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            early_stop=early_stop,
            masker=masker if masker is not None else AttentionMasker(),
        )
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_network: bool | Literal["auto"] = compile
        self.max_memory = max_memory
        self.most_slots: float = math.inf
        self.checkpoint_every = checkpoint_every
        self.preview_steps = preview_steps
        self.preview_every = preview_every
        # DistributedDataParallel refuses a module without trainable parameters; LoRAs are jobs, not shared parameters
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.farm: Farm | None = None  #: whose LoRAs these are; None = those of the library's folder
        self.queue = JobQueue(self.library, [])
        self.bench: FitBench | None = None
        self.progress = FitProgress()

    # ---- the method

    def training_step(self, batch: FitBatch, batch_idx: int) -> None:
        """One step of every LoRA of the pack: each descends on its own loss (the method)."""
        assert self.bench is not None
        with ended_by_sigterm():
            losses = self.bench.gradients(batch)
        self.bench.update(losses)

    def losses(self, batch: FitBatch) -> torch.Tensor:
        """‖ε − ε(z_t, t, prompt; A)‖² of each row (R,), z_t = √ᾱ z_0 + √(1−ᾱ) ε, or what ``loss`` makes of it."""
        assert self.bench is not None
        output = self.backbone.predict(batch.noised.latents, batch.timesteps, self.bench.prompts(batch))
        return self.run.loss(output.to(batch.noised.clean.dtype), batch.noised)

    # ---- before and after

    def setup(self, stage: str) -> None:
        """Find out which LoRAs are to be fitted, and which are there.

        Raises:
            DiffstylerError: a setting cannot be honored or recorded, or nothing can be written to lora_dir.
        """
        check_writable(self.library.lora_dir)
        data, model = self._data, self.backbone.fingerprint()
        self.run = replace(
            self.run,
            role=data.role,
            prompt=data.run_prompt,
            seed=data.seed,
            crops=data.crops,
            steps=max(self.trainer.max_steps, 0),
            precision=str(self.trainer.precision),
        )
        jobs = [fit_job(picture, self.run, model, self.backbone.settings) for picture in data.pictures]
        self.queue = JobQueue(self.library, jobs, self.farm)
        for job in self.queue.waiting:
            if job.former and (there := self.library.get(job.former)):
                log.warning(
                    "%s was made when its record did not tell all settings of the optimizer; it is fitted again",
                    there.folder,
                )

    def configure_model(self) -> None:
        if self.trainer.training and not self.backbone.is_loaded and self.queue.waiting:
            if self.max_memory is not None:
                plan = self.sizing.plan(self.max_memory)
                self.gradient_checkpointing |= plan.checkpointing
                self.most_slots = plan.slots
            self.backbone.load(self.sizing.base_dtype)
            if self.gradient_checkpointing:
                self.backbone.recompute_activations()
        # DistributedDataParallel would send the frozen model to every rank, and its buffers again at each step
        names = [name for name, _ in (*self.backbone.named_parameters(), *self.backbone.named_buffers())]
        self._ddp_params_and_buffers_to_ignore = [f"backbone.{name}" for name in names]

    def configure_callbacks(self) -> list[lightning.Callback]:
        check_flags(self.trainer)  # the first that Lightning asks; what it says of flags itself helps nobody
        return [self.progress, CloseBench()]

    def configure_optimizers(self) -> list:
        return []

    def on_fit_start(self) -> None:
        failures = self.queue.failures
        run = self.trainer.strategy.broadcast(secrets.token_hex(8))
        if self.leads:
            self.begin_failures(run)
            self.library.sweep()
        failures.run = run
        team = Team(self.trainer.global_rank, self.trainer.world_size) if self._data.together else Team()
        if self._data.together is None:
            part(self.trainer)
        if self.run.batch_size < team.size:
            raise DiffstylerError(
                f"model.batch_size: expected at least a row for each of the {team.size} ranks that fit "
                f"'{self._data.together}' together, got {self.run.batch_size}"
            )
        if self.queue.waiting:
            self.bench = self._open_bench(team)
        else:
            log.info("every picture has its LoRA in %s", self.library.lora_dir)

    def transfer_batch_to_device(self, batch: FitBatch, device: torch.device, dataloader_idx: int) -> FitBatch:
        return batch  # it is drawn there

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True  # trainer.max_steps counts for each LoRA, so it does not end the run

    def on_fit_end(self) -> None:
        """Raises:
        FitError: some LoRAs are not there; the first rank says it for all.
        """
        unfinished = len(self.bench.busy) + len(self.queue.waiting) if self.bench else 0
        self.close()
        if not self.leads:
            return
        verdict(self.queue, [code for code in exit_codes(self.trainer) if code], unfinished, self._data.problems)

    @property
    def leads(self) -> bool:
        """Whether this process tells in the end what became of all LoRAs."""
        return self.trainer.is_global_zero and self.queue.farm.leads

    def begin_failures(self, run: str) -> None:
        """Lead a run: what failed before is forgotten, and rows that are skipped are noted."""
        self.queue.failures.begin(run, {job.settings.role for job in self.queue.jobs.values()})
        for row in self._data.problems:
            self.queue.failures.add(Failure(row.id or str(row.origin), self._data.role, row.origin, str(row)))

    def close(self) -> None:
        """Keep what is under way; leave the model as it was."""
        if self.bench is not None:
            bench, self.bench = self.bench, None
            bench.close()
            self.backbone.uncompile()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """SLURM is about to take the node away: LoRAs keep their state in the library, not in Lightning's file."""
        if self.bench is not None:
            self.bench.save()
        checkpoint["state_dict"] = {}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["state_dict"] = self.state_dict()

    # ---- the pack

    def _open_bench(self, team: Team) -> FitBench:
        self.backbone.prepare(self.device)
        self.queue.order(
            lambda job: job.settings.steps * crop_side(job, self.backbone) ** 2,
            kind=lambda job: str(crop_side(job, self.backbone)),
        )
        sizing = self.sizing
        width = sizing.width(self.device, max(1, self.trainer.num_devices))
        pack = open_pack(self.backbone, self.run, sizing.jobs, width, self.device, sizing.adapter_dtype)
        bench = FitBench(
            self.backbone,
            self.queue,
            self.run,
            pack,
            losses=self.losses,
            watcher=self.progress,
            team=team,
            waits=self.leads,
            exact=torch.are_deterministic_algorithms_enabled(),
            checkpoint_every=self.checkpoint_every,
            preview_steps=self.preview_steps,
            preview_every=self.preview_every,
            look_every=LOOK_EVERY if self.device.type == "cuda" else 1,
        )
        if self.compile_network is True:  # after the adapters' hooks are there: later ones would not be seen
            bench.compile()
        elif self.compile_network == "auto" and self.device.type == "cuda":
            bench.pace = Pace(cost=COMPILING, gain=COMPILED, units=TIMED_STEPS)
        return bench

    @property
    def sizing(self) -> Sizing:
        """How wide the pack is to be."""
        jobs, size, together = list(self.queue.jobs.values()), self._data.pack_size, self._data.together is not None
        precision, ranks = str(self.trainer.precision), self.trainer.world_size
        return Sizing(self.backbone, self.run, jobs, precision, size, ranks, together, self.most_slots)

    # ---- what people see

    def __repr__(self) -> str:
        return f"LoRAFinetuner({self.backbone!r}, rank={self.run.rank}, lora_dir={str(self.library.lora_dir)!r})"

    @property
    def finished(self) -> list[FittedLoRA]:
        """The LoRAs of the data module's pictures that are there, in its order."""
        return self.queue.finished

    @property
    def _data(self) -> PicturesToFit:
        return self.trainer.datamodule  # type: ignore[attr-defined]


def verdict(queue: JobQueue, dead: Sequence[int], unfinished: int, skipped: Sequence[RowProblem] = ()) -> None:
    """Raises:
    FitError: some LoRAs are not there: their rows were ``skipped``, they were given up, left by a ``dead`` rank (exit
        codes), or are ``unfinished``.
    """
    given_up = queue.failed()
    failures = [f"  {failure.picture}: {failure.reason}" for failure in given_up]
    queue.failures.end()
    failures += [f"  {row}" for row in skipped]
    if failures:
        text = f"{len(failures)} LoRAs could not be fitted:\n{told_lines(failures)}\nThe others are done."
        raise FitError(text, {failure.picture: failure.reason for failure in given_up})
    if dead:
        raise FitError(f"a rank ended with exit code {dead[0]}; the others did its work")
    if unfinished:
        raise FitError(
            f"the run was ended (trainer.max_time?) with {unfinished} LoRAs to do; what was under way is kept, and "
            "the same command goes on with it"
        )


def check_flags(trainer: lightning.Trainer) -> None:
    """Raises:
    DiffstylerError: a flag of the Trainer is set that a fit cannot honor.
    """
    for flag, unset in NO_FLAGS.items():
        value = getattr(trainer, flag)
        # of all batches, 1.0 is the whole and 1 is one
        if value not in unset or (flag == "limit_train_batches" and isinstance(value, int)):
            cure = CURES.get(
                flag, f"trainer.{flag}: trainer.max_steps says how many steps each LoRA takes; leave it out"
            )
            raise DiffstylerError(f"{cure} (got {value})")
    timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if timed and trainer.world_size > 1:
        raise DiffstylerError("trainer.max_time: ranks do not wait for one another; use it with one device")
