"""Pictures -> LoRAs: fine-tuning of style and content adapters alike (the method), several at once."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from peft import LoraConfig
from PIL import Image
from torch.nn import functional
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.tensorboard import SummaryWriter

from diffstyler.adapters import FittedLoRA, LoRALibrary, LoRAPack, Rows, by_part, pack_of_parts, save_lora
from diffstyler.backbones import NETWORK, Backbone, StableDiffusion
from diffstyler.diffusion.denoiser import one_thread
from diffstyler.distributed import POLL_SECONDS, Team, exit_codes, part
from diffstyler.fit.crops import MOST_CROPS, Crops, FitPicture
from diffstyler.fit.early_stop import EarlyStop
from diffstyler.fit.job_queue import Farm
from diffstyler.fit.jobs import FitJob, OptimizerFactory, Recipe, SchedulerFactory
from diffstyler.fit.lora_card import write_lora_report
from diffstyler.fit.losses import DiffusionLoss, Noised, NoiseLoss
from diffstyler.fit.preview import draw_samples
from diffstyler.fit.progress import FitProgress
from diffstyler.fit.slot import RETRY_FACTOR, Draw, LossScale, NonFiniteLossError, Slot, open_slot
from diffstyler.images import load_image, to_tensor
from diffstyler.masking import AttentionMasker, Masker, find_masks
from diffstyler.masking.prompt import Everything
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.memory.forecast import FitForecast, forecast_fit
from diffstyler.memory.measure import WIDTHS, free_memory, optimizer_memory, step_memory, widest_pack
from diffstyler.memory.plan import GIB, plan_fit
from diffstyler.types import PromptEmbeds

log = logging.getLogger(__name__)


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


#: what the frozen weights are stored in, for each precision of the Trainer
BASE_DTYPES = {
    "32-true": torch.float32,
    "64-true": torch.float64,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


#: DDIM steps of a preview, and the shortest LoRA that gets one unasked
PREVIEW_STEPS, PREVIEWED_STEPS = 8, 50


class FitError(RuntimeError):
    """Some LoRAs could not be fitted; the text names each and says why. The others are done."""


class SaveUnfinished(lightning.Callback):
    """Keeps what is under way when a run is interrupted."""

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: LoRAFinetuner,  # type: ignore[override]
        exception: BaseException,
    ) -> None:
        pl_module.save_unfinished()
        pl_module.farm.close()


class PicturesToFit(Protocol):
    """What the finetuner reads from the data module."""

    crops: Crops
    pack_size: int | Literal["auto"]
    together: str | None
    pictures: Sequence[FitPicture]


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
        compile: compile the UNet with its adapters once, in the first step; slots then change without compiling again.
        max_memory: GiB of the device that a step may take by forecast: the pack is no wider than fits, and where not
            even one LoRA does, activations are recomputed. None = no bound.
        checkpoint_every: steps between saved states; a killed run repeats at most so many.
        masker: finds the part of a picture that is to be learned, where one is asked for.
        preview_steps: DDIM steps, without guidance, of the picture drawn from the prompt when a LoRA is done; 0 = no
            preview; None = 8, and no preview of a LoRA of fewer than 50 steps.
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
        optimizer: OptimizerFactory = lambda params: torch.optim.AdamW(params, lr=2e-4, weight_decay=1e-2),
        lr_scheduler: SchedulerFactory = lambda optimizer: ConstantLR(optimizer, factor=1.0),
        gradient_clip: float | None = 1.0,
        early_stop: EarlyStop | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        max_memory: float | None = None,
        checkpoint_every: int = 50,
        masker: Masker | None = None,
        preview_steps: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"rank": rank, "batch_size": batch_size, "checkpoint_every": checkpoint_every}.items():
            if value < 1:
                raise ValueError(f"model.{name}: expected at least 1, got {value}")
        self.automatic_optimization = False  # each LoRA has an optimizer of its own
        self.backbone = backbone if backbone is not None else StableDiffusion()
        self.library = LoRALibrary(lora_dir)
        self.lora_config = LoraConfig(
            r=rank,
            lora_alpha=rank if alpha is None else alpha,
            target_modules=list(target_modules),  # type: ignore[arg-type]
        )
        self.text_encoder_targets = tuple(text_encoder_targets)
        self.alpha = alpha
        self.batch_size = batch_size
        self.loss = loss if loss is not None else NoiseLoss()
        self.optimizer_factory = optimizer
        self.scheduler_factory = lr_scheduler
        self.gradient_clip = gradient_clip
        self.early_stop = early_stop
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_unet = compile
        self.max_memory = max_memory
        self.most_slots: float = math.inf
        self.checkpoint_every = checkpoint_every
        self.masker = masker if masker is not None else AttentionMasker()
        self.preview_steps = preview_steps
        # DistributedDataParallel refuses a module without trainable parameters; LoRAs are jobs, not shared parameters
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.farm = Farm(self.library, [])
        self.slots: list[Slot | None] = []
        self.team = Team()
        self._last_loss = float("nan")

    # ---- the algorithm

    def training_step(self, batch: int, batch_idx: int) -> None:
        """One step of every LoRA: z_t = √ᾱ z_0 + √(1−ᾱ) ε; each descends on its own loss (the method)."""
        self._refill()
        if not any(self._busy()):
            time.sleep(POLL_SECONDS)  # what is left is under way in other processes
            return
        num_train_timesteps = self.backbone.num_train_timesteps
        draws = {slot.index: slot.draw(self.batch_size, num_train_timesteps)[self.team.share] for slot in self._busy()}
        self.pack.flat.grad = None
        with self._exact(), self.pack.rows(Rows(None)):
            losses = self._losses(draws)
            (losses * self._loss_scales(losses)).sum().backward()
        assert self.pack.flat.grad is not None
        self.team.sum(self.pack.flat.grad)
        self._update(self.team.sum(losses.detach()))

    def _losses(self, draws: dict[int, Draw]) -> torch.Tensor:
        """The loss of each slot (N,) on its rows; in a team, this rank's part of it."""
        noised, timesteps, prompts = self._batch(draws)
        output = self.backbone.predict(noised.latents, timesteps, prompts)
        losses = self.loss(output.to(noised.clean.dtype), noised).unflatten(0, (len(self.slots), -1))
        return losses.mean(1) * (losses.shape[1] / self.batch_size)

    def _batch(self, draws: dict[int, Draw]) -> tuple[Noised, torch.Tensor, PromptEmbeds]:
        """The rows of all slots, those without a draw filled with zeros: the width of the pack never changes."""
        some = next(iter(draws.values()))
        idle = Draw(*map(torch.zeros_like, (some.clean, some.noise, some.timesteps, some.mask)))
        rows = [draws.get(index, idle) for index in range(len(self.slots))]
        prompts = self._prompts(len(some.timesteps))
        timesteps = torch.cat([row.timesteps for row in rows])
        clean, noise = torch.cat([row.clean for row in rows]), torch.cat([row.noise for row in rows])
        dtype = self.pack.flat.dtype
        level = self.backbone.noise_levels(timesteps).to(self.pack.flat)
        masked = any(slot.masks is not None for slot in self._busy())
        mask = torch.cat([row.mask for row in rows]).to(dtype) if masked else None
        noised = Noised(clean.to(dtype), noise.to(dtype), level, self.backbone.prediction, mask)
        return noised, timesteps, prompts

    def _prompts(self, rows: int) -> PromptEmbeds:
        """Each slot's prompt ``rows`` times; where LoRAs reach the text encoders, encoded as these now are."""
        if self.text_encoder_targets:
            own = self.backbone.encode_prompt([slot.job.picture.prompt if slot else "" for slot in self.slots])
            return own[[index for index in range(len(self.slots)) for _ in range(rows)]]
        empty = next(self._busy()).prompt
        return PromptEmbeds.cat([slot.prompt if slot else empty for slot in self.slots for _ in range(rows)])

    @torch.no_grad()
    def _look_at_held_out(self) -> None:
        """The held-out loss of those LoRAs whose time it is, all in the same forwards."""
        due = [slot for slot in self._busy() if slot.due]
        if not due:
            return
        draws = [slot.draw_held_out(self.batch_size, self.backbone.num_train_timesteps) for slot in due]
        with self._exact(), self.pack.rows(Rows(None)):
            parts = [
                self._losses({slot.index: draw for slot, draw in zip(due, part_draws, strict=True)})
                for part_draws in zip(*draws, strict=True)
            ]
        losses = self.team.agree(torch.stack(parts).mean(0).tolist())
        for slot in due:
            slot.held_out.append(losses[slot.index])

    def _update(self, losses: torch.Tensor) -> None:
        """Let each LoRA take its step; write out what is done, give up what is broken, refill."""
        busy = list(self._busy())
        norms = torch.stack([slot.gradient_norm() for slot in busy])
        for slot, loss, norm in zip(busy, losses[[s.index for s in busy]].tolist(), norms.tolist(), strict=True):
            try:
                slot.update(loss, norm)
            except NonFiniteLossError as error:
                self._quarantine(slot, f"{error} at step {slot.step}")
                continue
            self._log_loss(slot)
        self._look_at_held_out()
        busy = [slot for slot in busy if self.slots[slot.index] is slot]  # not given up, or started again
        for slot in busy:
            if not slot.done and slot.step % self.checkpoint_every == 0:
                self._save(slot)
        self._finish([slot for slot in busy if slot.done])

    def _exact(self) -> AbstractContextManager[None]:
        """Several threads split a matrix product by its rows, and a row's last bits then depend on its place."""
        return one_thread() if self.device.type == "cpu" and self._deterministic else nullcontext()

    # ---- jobs

    def setup(self, stage: str) -> None:
        recipe = self._recipe()
        self.farm = Farm(self.library, [recipe.job(picture) for picture in self._data.pictures])

    def configure_model(self) -> None:
        if self.trainer.training and not self.backbone.is_loaded and self.farm.waiting:
            if self.max_memory is not None:
                self._keep_below(self.max_memory)
            self.backbone.load(self.backbone_dtype)
            if self.gradient_checkpointing:
                self.backbone.recompute_activations()
        # DistributedDataParallel would send the frozen model to every rank, and its buffers again at each step
        names = [name for name, _ in (*self.backbone.named_parameters(), *self.backbone.named_buffers())]
        self._ddp_params_and_buffers_to_ignore = [f"backbone.{name}" for name in names]

    def _keep_below(self, gib: float) -> None:
        """Choose pack and gradient checkpointing so that a step takes at most so much memory; said in the log."""
        plan = plan_fit(self.forecast(), gib * GIB, self.batch_size, self.slots_wanted())
        self.gradient_checkpointing |= plan.checkpointing
        self.most_slots = plan.slots
        log.info("max_memory %g GiB: %s", gib, plan)

    def forecast(self) -> FitForecast:
        """What a LoRA with the largest crops costs, before anything is loaded.

        Raises:
            ValueError: nothing can be forecast for this model.
        """

        def largest(resolution: int, multiple: int) -> tuple[int, int]:
            side = max(job.crops.side(resolution, multiple) for job in self.farm.jobs.values())
            return side, side

        return forecast_fit(self.backbone, largest, self.backbone_dtype, self._pack_config())

    @property
    def backbone_dtype(self) -> torch.dtype:
        """Of the frozen weights, by the Trainer's precision.

        Raises:
            ValueError: the fit does not know that precision.
        """
        return _base_dtype(self.trainer.precision)

    def configure_callbacks(self) -> list[lightning.Callback]:
        return [FitProgress(), SaveUnfinished()]

    def configure_optimizers(self) -> list:
        return []

    def on_fit_start(self) -> None:
        if self.trainer.is_global_zero:
            self.farm.failures.clear({job.identity.role for job in self.farm.jobs.values()})
        if self._data.together is None:
            part(self.trainer)
        else:
            self.team = Team(self.trainer.global_rank, self.trainer.world_size)
        if self.batch_size < self.team.size:
            raise ValueError(
                f"model.batch_size: expected at least a row for each of the {self.team.size} ranks that fit "
                f"'{self._data.together}' together, got {self.batch_size}"
            )
        self.slots = []
        if not self.farm.waiting:
            log.info("every picture has its LoRA in %s", self.library.lora_dir)
            return
        self.backbone.prepare(self.device)
        self.farm.order(lambda job: job.steps * self._side(job) ** 2)
        self.pack = self._new_pack(self._width())
        if self.compile_unet:  # after the adapters' hooks are there: later ones would not be seen
            self.backbone.compile()
        self.slots = [None] * self.pack.slots
        self._refill()

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True  # trainer.max_steps counts for each LoRA, so it does not end the run

    def on_fit_end(self) -> None:
        if hasattr(self, "pack"):
            self.pack.detach()
            self.backbone.uncompile()
        if not self.trainer.is_global_zero:
            return  # the first rank reports for all
        dead = [code for code in exit_codes(self.trainer) if code]
        if failures := self.farm.failed():
            lines = "\n".join(f"  {failure.picture}: {failure.reason}" for failure in failures)
            raise FitError(f"{len(failures)} LoRAs could not be fitted:\n{lines}\nThe others are done.")
        if dead:
            raise FitError(f"a rank ended with exit code {dead[0]}; the others did its work")

    def save_unfinished(self) -> None:
        """Keep the state of what is under way, for this or another process to go on with."""
        for slot in self._busy():
            self._save(slot)

    def _save(self, slot: Slot) -> None:
        if self.team.rank == 0:
            slot.save(self.library.state_file(slot.job.identity))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """SLURM is about to take the node away: LoRAs keep their state in the library, not in Lightning's file."""
        self.save_unfinished()
        checkpoint["state_dict"] = {}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["state_dict"] = self.state_dict()

    @property
    def has_work(self) -> bool:
        """Whether a LoRA is under way here or, on the first rank, anywhere: the training data end when none is."""
        return any(self._busy()) or self.team.agree(self.trainer.is_global_zero and bool(self.farm.waiting))

    @property
    def finished(self) -> list[FittedLoRA]:
        """The LoRAs of the data module's pictures that are there, in its order."""
        return self.farm.finished

    @property
    def last_loss(self) -> float:
        """Mean over the LoRAs under way of their latest loss."""
        latest = [slot.losses[-1] for slot in self._busy() if slot.losses]
        self._last_loss = sum(latest) / len(latest) if latest else self._last_loss
        return self._last_loss

    def step_count(self) -> tuple[int, int]:
        """Steps of all LoRAs of this run together, and how many of them are known to be done, by whomever."""
        total = sum(job.steps for job in self.farm.jobs.values())
        left = sum(job.steps for job in self.farm.waiting)
        return total, total - left - sum(slot.job.steps - slot.step for slot in self._busy())

    def _recipe(self) -> Recipe:
        return Recipe(
            model=self.backbone.fingerprint(),
            model_settings=self.backbone.settings,
            precision=str(self.trainer.precision),
            max_steps=self.trainer.max_steps,
            crops=self._data.crops,
            lora_config=self.lora_config,
            text_encoder_targets=self.text_encoder_targets,
            alpha=self.alpha,
            batch_size=self.batch_size,
            loss=self.loss,
            optimizer=self.optimizer_factory,
            lr_scheduler=self.scheduler_factory,
            gradient_clip=self.gradient_clip,
            early_stop=self.early_stop,
            masker=self.masker,
        )

    def _new_pack(self, width: int) -> LoRAPack:
        dtype = torch.float64 if self.trainer.precision == "64-true" else torch.float32
        config, models = self._pack_config(), {NETWORK: self.backbone.network}
        if self.text_encoder_targets:
            models |= self.backbone.text_encoders
            configs = {part: config if part == "unet" else self._text_config(config) for part in models}
            pack = pack_of_parts(models, configs, width, device=self.device, dtype=dtype)
        else:
            pack = LoRAPack(self.backbone.network, config, width, device=self.device, dtype=dtype)
        pack.train()
        return pack

    def _text_config(self, config: LoraConfig) -> LoraConfig:
        return replace(config, target_modules=list(self.text_encoder_targets))  # type: ignore[arg-type]

    def _park_encoders(self) -> None:
        """Off the device; text encoders that LoRAs reach stay, because every step encodes prompts."""
        self.backbone.park_encoders("cpu")
        if self.text_encoder_targets:
            for text_encoder in self.backbone.text_encoders.values():
                text_encoder.to(self.device)

    def _pack_config(self) -> LoraConfig:
        """The largest rank among the jobs, done or not, so that it is the same when a run is taken up again."""
        return replace(self.lora_config, r=max(job.config.r for job in self.farm.jobs.values()))

    def _refill(self) -> None:
        """Any free slot takes the next job whose crops are as large as those under way."""
        for index, slot in enumerate(self.slots):
            if slot is None and (job := self._claim()):
                self.slots[index] = self._open(job, index)

    def _claim(self) -> FitJob | None:
        sides = {self._side(slot.job) for slot in self._busy()}
        if self.team.size == 1:
            return self.farm.claim(lambda job: not sides or self._side(job) in sides)
        claimed = self.farm.claim() if self.team.rank == 0 else None
        key = self.team.agree(claimed.identity.key if claimed else None)
        return self.farm.adopt(key) if key else None

    def _side(self, job: FitJob) -> int:
        return job.crops.side(self.backbone.resolution, self.backbone.size_multiple)

    def _open(self, job: FitJob, index: int, history: Sequence[str] = ()) -> Slot:
        """Encode the picture and its prompt once; then the encoders leave the device again."""
        with torch.no_grad():
            self.backbone.park_encoders(self.device)
            pixels, masks = job.picture.crops(
                job.crops,
                resolution=self.backbone.resolution,
                multiple=self.backbone.size_multiple,
                mask=self._find_mask(job.picture),
            )
            latents = self._encode(pixels)
            prompt = self.backbone.encode_prompt([job.picture.prompt])
            self._park_encoders()
        slot = open_slot(
            job,
            index,
            self.pack,
            latents,
            prompt,
            self.optimizer_factory,
            self.scheduler_factory,
            loss_scale=LossScale(2.0**15, dynamic=True) if self.trainer.precision == "16-mixed" else LossScale(),
            history=history,
            masks=None if masks is None else functional.interpolate(masks, latents.shape[2:], mode="area").to(latents),
        )
        state = self.library.state_file(job.identity)
        if state.is_file():
            slot.restore(state)
            log.info("%s goes on from step %d", job.identity.name, slot.step)
        return slot

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """E of each crop; equal crops, as of a picture no larger than they are, are encoded once."""
        known: dict[bytes, torch.Tensor] = {}
        names = [crop.numpy().tobytes() for crop in pixels]
        for name, crop in zip(names, pixels, strict=True):
            if name not in known:
                known[name] = self.backbone.encode_image(crop[None].to(self.device))
        return torch.cat([known[name] for name in names])

    def _find_mask(self, picture: FitPicture) -> torch.Tensor | None:
        prompt = parse_mask_prompt(picture.mask)
        if isinstance(prompt, Everything):
            return None
        with torch.compiler.set_stance("force_eager"):
            self.masker.setup(self.backbone)
            return find_masks(self.masker, load_image(picture.path), [prompt])[0]

    def _finish(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            if slot.stopped:
                log.info("%s stops early, after step %d of %d", slot.job.identity.name, slot.step, slot.job.steps)
        if self.team.rank == 0:
            for slot, preview in zip(slots, self._previews(slots), strict=True):
                self._publish(slot, preview)
        for slot in slots:
            self._release(slot)

    def _previews(self, slots: Sequence[Slot]) -> Sequence[Image.Image | None]:
        worth = [slot for slot in slots if self.preview_steps or slot.job.steps >= PREVIEWED_STEPS]
        if self.preview_steps == 0 or not worth:
            return [None] * len(slots)
        prompts = self._own_prompts(worth) if self.text_encoder_targets else [slot.prompt for slot in worth]
        steps = self.preview_steps or PREVIEW_STEPS
        drawn = draw_samples(self.backbone, self.pack, worth, prompts, steps, exact=self._deterministic)
        self._park_encoders()
        by_slot = {slot.index: picture for slot, picture in zip(worth, drawn, strict=True)}
        return [by_slot.get(slot.index) for slot in slots]

    @torch.no_grad()
    def _own_prompts(self, slots: Sequence[Slot]) -> list[PromptEmbeds]:
        """Each slot's prompt, encoded under its LoRA."""
        with self.pack.rows(Rows(torch.tensor([slot.index for slot in slots], device=self.device))):
            embeds = self.backbone.encode_prompt([slot.job.picture.prompt for slot in slots])
        return [embeds[[index]] for index in range(len(slots))]

    def _publish(self, slot: Slot, preview: Image.Image | None) -> None:
        identity, picture = slot.job.identity, slot.job.picture

        def write(folder: Path) -> None:
            modules, config = self.pack.export(slot.index, slot.job.config.r), slot.job.config
            parts = by_part(modules) if self.text_encoder_targets else {"unet": modules}
            configs = {part: config if part == "unet" else self._text_config(config) for part in parts}
            save_lora(folder, parts, configs, prediction_type=self.backbone.prediction.name)
            write_lora_report(folder, identity, picture.path, slot.losses, preview)

        self.farm.publish(slot.job, write, slot.history, slot.step)
        if preview is not None:
            self._log_preview(slot, preview)

    def _quarantine(self, slot: Slot, reason: str) -> None:
        """Start a LoRA that is not finite again, at a lower learning rate; the second time, give it up."""
        job, path = slot.job, slot.job.picture.path
        self._release(slot)
        if not slot.history:
            log.warning("%s: %s; it starts again at %g of its learning rate", path, reason, RETRY_FACTOR)
            if self.team.rank == 0:
                self.library.state_file(job.identity).unlink(missing_ok=True)
            self.team.agree(None)  # none reads the old state
            history = [f"{reason}; started again at {RETRY_FACTOR:g} of its learning rate"]
            self.slots[slot.index] = self._open(job, slot.index, history)
            return
        if self.team.rank == 0:
            log.error("%s: %s; it is given up", path, reason)
            self.farm.fail(
                job, f"{reason}, also at {RETRY_FACTOR:g} of its learning rate; try precision 32 or another rate"
            )

    def _release(self, slot: Slot) -> None:
        slot.close()
        self.slots[slot.index] = None

    # ---- what people see

    def _log_loss(self, slot: Slot) -> None:
        if writer := self._tensorboard():
            writer.add_scalar(f"loss/{slot.job.identity.name}", slot.losses[-1], slot.step)

    def _log_preview(self, slot: Slot, preview: Image.Image) -> None:
        if writer := self._tensorboard():
            writer.add_image(f"preview/{slot.job.identity.name}", to_tensor(preview) / 2 + 0.5, slot.step)

    def _tensorboard(self) -> SummaryWriter | None:
        return self.logger.experiment if isinstance(self.logger, TensorBoardLogger) else None

    # ---- small things

    @property
    def _data(self) -> PicturesToFit:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def _deterministic(self) -> bool:
        return torch.are_deterministic_algorithms_enabled()

    def _width(self) -> int:
        """Slots of the pack: as many as wanted, and where the memory decides, as many as fit."""
        at_most = int(min(self.slots_wanted(), self.most_slots))
        if self._data.pack_size != "auto":
            return at_most
        on_this_machine = max(1, self.trainer.num_devices)
        return widest_pack(self._slot_memory(), free_memory(self.device, on_this_machine), at_most)

    def slots_wanted(self) -> int:
        """The pack size; where it is "auto", a rank's share of the LoRAs."""
        jobs = len(self.farm.jobs)
        if self._data.pack_size != "auto":
            return max(1, min(self._data.pack_size, jobs))
        return min(-(-jobs // self.trainer.world_size) if self.team.size == 1 else 1, WIDTHS[-1])

    def _slot_memory(self) -> int:
        """Bytes of one LoRA under way with the largest crops: a step's activations, weights and optimizer."""
        side = max(map(self._side, self.farm.jobs.values()))
        pack = self._new_pack(1)
        with torch.no_grad():
            self.backbone.park_encoders(self.device)
            latents = self.backbone.encode_image(torch.zeros(1, 3, side, side, device=self.device))
            prompt = self.backbone.encode_prompt([""])
            self._park_encoders()
        rows = latents.expand(self.batch_size, -1, -1, -1)
        timesteps = torch.zeros(self.batch_size, dtype=torch.int64, device=self.device)

        def forward() -> torch.Tensor:
            own = self.backbone.encode_prompt([""]) if self.text_encoder_targets else prompt
            return self.backbone.predict(rows, timesteps, own[[0] * self.batch_size]).square().mean()

        with pack.rows(Rows(None)):
            step = step_memory(forward, self.backbone.parameters(), self.device)
        pack.detach()
        crops = MOST_CROPS * latents.numel() * latents.element_size()
        return step + optimizer_memory(self.optimizer_factory, pack.flat.detach()[0]) + crops

    def _busy(self) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot is not None)

    def _loss_scales(self, losses: torch.Tensor) -> torch.Tensor:
        return losses.new_tensor([slot.loss_scale.value if slot else 0.0 for slot in self.slots])


def _base_dtype(precision: str | int | None) -> torch.dtype:
    if str(precision) not in BASE_DTYPES:
        raise ValueError(f"trainer.precision: expected one of {', '.join(BASE_DTYPES)}; got {precision}")
    return BASE_DTYPES[str(precision)]
