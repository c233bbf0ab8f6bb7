"""Jobs in, fitted LoRAs out: the slots of one pack in which LoRAs are fitted side by side on a frozen model."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from diffstyler import storage
from diffstyler.adapters import LoRAPack, Rows, by_part, pack_of_parts, save_lora
from diffstyler.backbones import NETWORK, Backbone
from diffstyler.cuda import Captured, Pace, send
from diffstyler.diffusion.denoiser import one_thread
from diffstyler.distributed import Team, uninterrupted
from diffstyler.farm.base import POLL_SECONDS
from diffstyler.fit.crops import MOST_CROPS, take_crops
from diffstyler.fit.job_queue import JobQueue
from diffstyler.fit.jobs import FitJob, FitSettings
from diffstyler.fit.lora_card import write_lora_card
from diffstyler.fit.losses import Noised
from diffstyler.fit.preview import PREVIEW_STEPS, draw_previews
from diffstyler.fit.slot import RETRY_FACTOR, Draw, LossScale, Slot, clip_, open_slot, take_scaled_steps, take_steps
from diffstyler.images import load_image
from diffstyler.masking import find_masks
from diffstyler.masking.prompt import Everything
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.memory.measure import optimizer_memory, step_memory
from diffstyler.types import NoiseLevel, PromptEmbeds
from diffstyler.workers import Workers

log = logging.getLogger(__name__)

#: of crops that are read before they are asked for
READ_BYTES = 2**30
#: a LoRA's crops, the crops of its mask if it has one, its first weights
_Begun = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]


class FitBatch:
    """One step's rows (R) of all slots in order, the same number for each, those of an idle slot zero.

    No dataclass, because Lightning's precisions would go through it and change its tensors in place.

    Args:
        noised: the rows.
        timesteps: of each (R,).
        texts: each slot's prompt.
        prompts: their conditioning row by row; None where LoRAs reach the text encoders, so that it changes with every
            step.
    """

    def __init__(
        self, noised: Noised, timesteps: torch.Tensor, texts: tuple[str, ...], prompts: PromptEmbeds | None
    ) -> None:
        self.noised = noised
        self.timesteps = timesteps
        self.texts = texts
        self.prompts = prompts

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """All that differs from step to step."""
        noised, prompts = self.noised, self.prompts
        told = (prompts.tokens, prompts.pooled) if prompts is not None else (None, None)
        return noised.clean, noised.noise, noised.level.signal, noised.level.sigma, noised.mask, self.timesteps, *told  # type: ignore[return-value]

    def of(self, tensors: Sequence[torch.Tensor | None]) -> FitBatch:
        """The same kind of batch of other ``tensors``."""
        clean, noise, signal, sigma, mask, timesteps, tokens, pooled = tensors
        noised = replace(self.noised, clean=clean, noise=noise, level=NoiseLevel(signal, sigma), mask=mask)  # type: ignore[arg-type]
        prompts = PromptEmbeds(tokens, pooled) if tokens is not None else None
        return FitBatch(noised, timesteps, self.texts, prompts)  # type: ignore[arg-type]


class Watcher(Protocol):
    """Whoever wants to see what happens on the bench."""

    def on_loss(self, slot: Slot, step: int, loss: float) -> None: ...
    def on_preview(self, slot: Slot, preview: Image.Image) -> None: ...
    def on_wait(self) -> None: ...


class FitBench:
    """Owns slots, draws, updates and publishing. A slot whose LoRA is done takes the next job with crops as large.

    ::

        while bench.refill():
            batch = bench.draw()
            bench.update(bench.gradients(batch))
        bench.close()

    Args:
        backbone: loaded, on the device that it is fitted on.
        queue: of the jobs.
        run: the settings of all; each job has its own.
        pack: of as many slots as LoRAs are fitted at once.
        losses: a batch -> the loss of each row (R,), called under the adapters.
        watcher: is told of losses, previews and waiting.
        team: ranks that fit one LoRA together.
        waits: stay until no job is left anywhere, rather than until none is left to take.
        exact: a LoRA does not depend on its neighbors, to the last bit on a CPU.
        checkpoint_every: steps between saved states.
        preview_steps: as of the finetuner.
        preview_every: as of the finetuner.
        look_every: steps between two looks at the losses, for which the device must be waited for. A LoRA that is not
            finite any more is found then; no other feels it.
    """

    def __init__(
        self,
        backbone: Backbone,
        queue: JobQueue,
        run: FitSettings,
        pack: LoRAPack,
        *,
        losses: Callable[[FitBatch], torch.Tensor],
        watcher: Watcher,
        team: Team,
        waits: bool = True,
        exact: bool = False,
        checkpoint_every: int = 50,
        preview_steps: int | None = None,
        preview_every: int | None = None,
        look_every: int = 1,
    ) -> None:
        self.backbone = backbone
        self.queue = queue
        self.run = run
        self.pack = pack
        self.losses = losses
        self.watcher = watcher
        self.team = team
        self.waits = waits
        self.exact = exact and pack.flat.device.type == "cpu"
        self.deterministic = exact
        self.checkpoint_every = checkpoint_every
        self.preview_steps = preview_steps
        self.preview_every = preview_every
        self.look_every = look_every
        self.slots: list[Slot | None] = [None] * pack.slots
        self._rows: SlotRows | None = None
        self._reader = Workers(apart=pack.flat.is_cuda)  # of pictures, and for first weights
        self._writer = Workers(apart=pack.flat.is_cuda, threads=1)  # of LoRAs that are done
        self._writing: list[Future] = []
        self.pace: Pace | None = None  # it is not settled yet whether the network is compiled
        self._unseen: list[torch.Tensor] = []  # (2, N), loss and gradient norm of each step that nobody has looked at
        # what changes hands on the host in every step cannot be recorded: prompts as LoRAs encode them
        recorded = pack.flat.is_cuda and not run.text_encoder_targets
        self._captured = Captured(self._gradients_of) if recorded else None
        self._kind: FitBatch | None = None
        self._loss_scales, self._bounds = (pack.scale.new_ones(pack.slots) for _ in range(2))

    # ---- a step

    def refill(self) -> bool:
        """Give free slots their next jobs; where there are none, wait for those of others -> is there a step to do?"""
        while True:
            self._look_at_writing()
            while jobs := self._claim_for([index for index, slot in enumerate(self.slots) if slot is None]):
                begun = self._begin(jobs.values())
                with encoders_on(self.pack.flat.device, self.backbone, self.run):
                    for index, job in jobs.items():
                        self._try_to_open(job, index, begun.get(job.identity.key))
            if self.busy:
                return True
            if self._writing:
                self._look_at_writing(wait=True)
                self.watcher.on_wait()
            if not self.team.agree(self.waits and bool(self.queue.waiting)):
                return False
            self.watcher.on_wait()
            time.sleep(POLL_SECONDS)

    def draw(self) -> FitBatch:
        """The rows of the present step of every slot; in a team, this rank's share of them."""
        draws = {slot.index: slot.draw(self.run.batch_size, self.backbone.num_train_timesteps) for slot in self.busy}
        return self._batch({index: draw[self.team.share] for index, draw in draws.items()})

    def gradients(self, batch: FitBatch) -> torch.Tensor:
        """The loss of each row (R,); the gradient of every LoRA's own loss is left in the pack."""
        if self._captured is None:
            return self._gradients(batch)
        tensors = batch.tensors
        self._kind = batch
        kind = tuple(tensor is None for tensor in tensors)
        return self._captured([tensor for tensor in tensors if tensor is not None], kind)

    def _gradients_of(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        assert self._kind is not None
        given = iter(tensors)
        own = [None if tensor is None else next(given) for tensor in self._kind.tensors]
        return self._gradients(self._kind.of(own))

    def _gradients(self, batch: FitBatch) -> torch.Tensor:
        if self.pack.flat.grad is not None:
            self.pack.flat.grad.zero_()
        with self._adapters():
            losses = self.losses(batch)
            (self._of_slots(losses) * self._loss_scales).sum().backward()
        return losses.detach()

    @contextmanager
    def _adapters(self) -> Iterator[None]:
        """The rows of a batch run under their LoRAs."""
        # several threads split a matrix product by its rows, and a row's last bits then depend on its place
        with one_thread() if self.exact else nullcontext(), self.pack.rows(Rows(None)):
            yield

    def prompts(self, batch: FitBatch) -> PromptEmbeds:
        """The conditioning of each row; where LoRAs reach the text encoders, as these now encode it."""
        if batch.prompts is not None:
            return batch.prompts
        rows = len(batch.timesteps) // len(self.slots)
        own = self.backbone.encode_prompt(list(batch.texts))
        return own[[index for index in range(len(self.slots)) for _ in range(rows)]]

    def update(self, losses: torch.Tensor) -> None:
        """Let each LoRA take its step; write out what is done, start again or give up what is not finite."""
        gradients = self.pack.flat.grad
        assert gradients is not None
        self.team.sum(gradients)
        norms = clip_(gradients, self._loss_scales, self._bounds)
        self._unseen.append(torch.stack([self.team.sum(self._of_slots(losses)), norms]))
        scaled = any(slot.loss_scale.dynamic for slot in self.busy)
        with uninterrupted():  # a state that is saved then is that of a whole step
            if scaled:
                take_scaled_steps(self.busy, norms.tolist())
                self._set_scales()
            else:
                take_steps(self.busy)
            for slot in self.busy:
                slot.step += 1
        saving = [slot for slot in self.busy if not slot.done and slot.step % self.checkpoint_every == 0]
        drawing = [slot for slot in self.busy if not slot.done and self._is_drawn_now(slot)]
        wait = scaled or len(self._unseen) >= self.look_every
        if wait or saving or drawing or any(slot.done or slot.due for slot in self.busy):
            self._look_at_losses()
            self._look_at_held_out()
            self._draw([slot for slot in drawing if self.slots[slot.index] is slot])
            for slot in saving:
                if self.slots[slot.index] is slot and not slot.done:  # not given up, or started again
                    self._save(slot)
            self._finish([slot for slot in self.busy if slot.done])

    def compile(self) -> None:
        """From the next step on the network is compiled, with the adapters in it."""
        self.backbone.compile()
        if self._captured is not None:
            self._captured.clear()

    def _settle_compiling(self, steps: int) -> None:
        pays = self.pace.pays(steps, self.steps_left / len(self.slots)) if self.pace is not None else None
        if pays is not None:
            self.pace = None
        if pays:
            self.compile()

    def _look_at_losses(self) -> None:
        """What the steps since the last look were like; a LoRA that is not finite starts again or is given up."""
        if not self._unseen:
            return
        seen, self._unseen = torch.stack(self._unseen).tolist(), []
        self._settle_compiling(len(seen))
        for slot in self.busy:
            first = slot.step - len(seen)
            for step, (losses, norms) in enumerate(seen, start=first):
                loss, norm = losses[slot.index], norms[slot.index]
                overflows = slot.loss_scale.dynamic and slot.loss_scale.value >= 1  # the step was not taken
                if not math.isfinite(loss) or not (math.isfinite(norm) or overflows):
                    what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
                    self._quarantine(slot, f"{what} at step {step}")
                    break
                slot.losses.append(loss)
                self.watcher.on_loss(slot, step + 1, loss)

    def save(self) -> None:
        """Keep the state of what is under way."""
        self._look_at_losses()
        for slot in self.busy:
            self._save(slot)
        self._look_at_writing(wait=True)

    def close(self) -> None:
        """Keep the state of what is under way, for this or another process to go on with; leave the model as it was."""
        try:
            self.save()
        finally:
            self.pack.detach()
            self._writer.close()
            self._reader.close()
            self.queue.close()
            if self._captured is not None:
                self._captured.clear()

    # ---- what is seen of it

    @property
    def busy(self) -> list[Slot]:
        return [slot for slot in self.slots if slot is not None]

    @property
    def steps_left(self) -> int:
        """Of all LoRAs that are not known to be done."""
        waiting = sum(job.settings.steps for job in self.queue.waiting)
        return waiting + sum(slot.job.settings.steps - slot.step for slot in self.busy)

    # ---- rows

    def _batch(self, draws: dict[int, Draw]) -> FitBatch:
        """Rows of slots without a draw are zeros: the width of the pack never changes."""
        if self._rows is None:
            self._rows = SlotRows.of(self.slots, self.pack.flat)
        some = next(iter(draws.values()))
        count, device = len(some.timesteps), self.pack.flat.device
        idle = Draw(torch.full((count,), -1), torch.zeros_like(some.timesteps), torch.zeros_like(some.noise))
        rows = [draws.get(index, idle) for index in range(len(self.slots))]
        crops = torch.cat([row.crops + 1 + offset for row, offset in zip(rows, self._rows.offsets, strict=True)])
        crops = send(crops * torch.cat([row.crops >= 0 for row in rows]), device)  # the first one is the idle slots'
        timesteps = torch.cat([row.timesteps for row in rows])
        noise = send(torch.cat([row.noise for row in rows]), device).to(self.pack.flat.dtype)
        level = self.backbone.noise_levels(timesteps)
        level = NoiseLevel(*(send(value.to(self.pack.flat.dtype), device) for value in (level.signal, level.sigma)))  # type: ignore[union-attr]
        masks = self._rows.masks
        noised = Noised(
            self._rows.latents[crops], noise, level, self.backbone.prediction, None if masks is None else masks[crops]
        )
        prompts = None
        if not self.run.text_encoder_targets:
            prompts = self._rows.prompts_of(count)
        return FitBatch(noised, send(timesteps, device), self._rows.texts, prompts)

    def _of_slots(self, losses: torch.Tensor) -> torch.Tensor:
        """The loss of each slot (N,) from its rows'; in a team, this rank's part of it."""
        rows = losses.unflatten(0, (len(self.slots), -1))
        return rows.mean(1) * (rows.shape[1] / self.run.batch_size)

    @torch.no_grad()
    def _look_at_held_out(self) -> None:
        """The held-out loss of those LoRAs whose time it is, all in the same forwards."""
        due = [slot for slot in self.busy if slot.due]
        if not due:
            return
        draws = [slot.draw_held_out(self.run.batch_size, self.backbone.num_train_timesteps) for slot in due]
        parts = []
        # of a compiled network gradients are all that pays for compiling
        with torch.compiler.set_stance("force_eager"), self._adapters():
            for part in zip(*draws, strict=True):
                batch = self._batch({slot.index: draw for slot, draw in zip(due, part, strict=True)})
                parts.append(self._of_slots(self.losses(batch)))
        losses = self.team.agree(torch.stack(parts).mean(0).tolist())
        for slot in due:
            slot.held_out.append(losses[slot.index])

    # ---- jobs

    def _place(self, slot: Slot) -> None:
        self.slots[slot.index] = slot
        self._slots_changed()

    def _slots_changed(self) -> None:
        self._rows = None
        self._set_scales()
        bounds = [slot.job.settings.gradient_clip if slot else None for slot in self.slots]
        self._bounds = self.pack.scale.new_tensor([math.inf if bound is None else bound for bound in bounds])

    def _set_scales(self) -> None:
        """Of each slot's loss; they keep their place in memory, which a recording remembers."""
        values = [slot.loss_scale.value if slot else 1.0 for slot in self.slots]
        self._loss_scales.copy_(self._loss_scales.new_tensor(values))

    def _claim_for(self, free: Sequence[int]) -> dict[int, FitJob]:
        """Jobs for free slots, as many as there are that can run beside the others."""
        kinds = {str(crop_side(slot.job, self.backbone)) for slot in self.busy}
        jobs: dict[int, FitJob] = {}
        for index in free:
            job = self._claim(kinds)
            if job is None:
                break
            jobs[index] = job
            kinds.add(str(crop_side(job, self.backbone)))
        return jobs

    def _claim(self, kinds: Collection[str]) -> FitJob | None:
        if self.team.size == 1:
            return self.queue.claim(kinds)
        claimed = self.queue.claim() if self.team.rank == 0 else None
        key = self.team.agree(claimed.identity.key if claimed else None)
        return self.queue.adopt(key) if key else None

    def _try_to_open(self, job: FitJob, index: int, begun: Future[_Begun] | None) -> None:
        """A picture or mask that turns out to be unusable is that LoRA's failure, and no other's."""
        try:
            slot = self._open(job, index, begun)
        except (ValueError, OSError) as error:
            if self.team.size > 1:
                raise
            log.error("%s: %s; it is given up", job.picture.paths[0], error)
            self.queue.fail(job, str(error))
            return
        self._place(slot)

    def _open(self, job: FitJob, index: int, begun: Future[_Begun] | None = None, history: Sequence[str] = ()) -> Slot:
        """Encode the picture and its prompt once."""
        with torch.no_grad():
            pixels, masks, initial = begun.result() if begun else self._begin_one(job, self._find_mask(job))
            latents = self._encode(pixels)
            prompt = self.backbone.encode_prompt([job.settings.prompt])
        scaled = job.settings.precision == "16-mixed"
        slot = open_slot(
            job,
            index,
            self.pack,
            latents,
            prompt,
            loss_scale=LossScale(2.0**15, dynamic=True) if scaled else LossScale(),
            history=history,
            masks=None if masks is None else functional.interpolate(masks, latents.shape[2:], mode="area").to(latents),
            initial=initial,
        )
        state = storage.fetch(self.queue.library.state_file(job.identity), changes=True)
        if state.is_file():
            slot.restore(state)
        if slot.step:
            log.info("%s goes on from step %d", job.identity.name, slot.step)
        return slot

    def _begin_one(self, job: FitJob, mask: torch.Tensor | None) -> _Begun:
        settings, backbone = job.settings, self.backbone
        sizes = {"resolution": backbone.resolution, "multiple": backbone.size_multiple}
        pixels, masks = take_crops(job.picture.paths, settings.crops, settings.seed, mask=mask, **sizes)
        return pixels, masks, self.pack.initial(settings.seed, settings.rank)

    def _begin(self, jobs: Iterable[FitJob]) -> dict[str, Future[_Begun]]:
        """What needs no model, by the jobs' keys, side by side where a device computes, as far as memory goes; those of
        which masks are to be found wait for the model."""
        begun, room = {}, READ_BYTES
        for job in jobs:
            count = (job.settings.crops.count or MOST_CROPS) * len(job.picture.paths)
            room -= count * 3 * 4 * crop_side(job, self.backbone) ** 2
            if self._reader.apart and room > 0 and isinstance(parse_mask_prompt(job.settings.mask), Everything):
                begun[job.identity.key] = self._reader.submit(self._begin_one, job, None)
        return begun

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """E of each crop; equal crops, as of a picture no larger than they are, are encoded once."""
        known: dict[bytes, torch.Tensor] = {}
        names = [crop.numpy().tobytes() for crop in pixels]
        for name, crop in zip(names, pixels, strict=True):
            if name not in known:
                known[name] = self.backbone.encode_image(send(crop[None], self.pack.flat.device))
        return torch.cat([known[name] for name in names])

    def _find_mask(self, job: FitJob) -> torch.Tensor | None:
        prompt = parse_mask_prompt(job.settings.mask)
        if isinstance(prompt, Everything):
            return None
        with torch.compiler.set_stance("force_eager"):
            masker = job.settings.masker
            masker.setup(self.backbone)
            return find_masks(masker, load_image(job.picture.paths[0]), [prompt])[0]

    def _save(self, slot: Slot) -> None:
        """Beside the next steps."""
        if self.team.rank == 0:
            path = self.queue.library.state_file(slot.job.identity)
            self._writing.append(self._writer.submit(slot.saving(), path))

    def _finish(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            if slot.stopped:
                log.info("%s stops early, after step %d of %d", slot.name, slot.step, slot.job.settings.steps)
        if self.team.rank == 0 and slots:
            for slot, preview in zip(slots, self._previews(slots, self.preview_steps), strict=True):
                self._publish(slot, preview)
        for slot in slots:
            self._release(slot)

    def _is_drawn_now(self, slot: Slot) -> bool:
        return self.preview_every is not None and slot.step % self.preview_every == 0 and self.team.rank == 0

    def _draw(self, slots: Sequence[Slot]) -> None:
        """What LoRAs under way draw by now."""
        for slot, preview in zip(slots, self._previews(slots, self.preview_steps or PREVIEW_STEPS), strict=True):
            assert preview is not None
            slot.previews[slot.step] = torch.from_numpy(np.array(preview))
            self.watcher.on_preview(slot, preview)

    def _previews(self, slots: Sequence[Slot], num_inference_steps: int | None) -> list[Image.Image | None]:
        with encoders_on(self.pack.flat.device, self.backbone, self.run):
            return draw_previews(
                self.backbone,
                self.pack,
                slots,
                num_inference_steps,
                encode_under_lora=bool(self.run.text_encoder_targets),
                exact=self.deterministic,
            )

    def _publish(self, slot: Slot, preview: Image.Image | None) -> None:
        """Into the library, beside the next steps."""
        settings = slot.job.settings
        exported = self.pack.exporting(slot.index, settings.rank)

        def write(folder: Path) -> None:
            modules = exported()
            parts = by_part(modules) if settings.text_encoder_targets else {NETWORK: modules}
            configs = {part: settings.config if part == NETWORK else settings.text_config for part in parts}
            save_lora(folder, parts, configs, prediction_type=self.backbone.prediction.name)
            model = str(self.backbone.options.get("model", ""))
            write_lora_card(folder, slot.job, slot.losses, preview, slot.previews, base_model=model)

        self._writing.append(self._writer.submit(self.queue.publish, slot.job, write, slot.history, slot.step))
        if preview is not None:
            self.watcher.on_preview(slot, preview)

    def _look_at_writing(self, wait: bool = False) -> None:
        """Raise what went wrong with a LoRA or state that was to be written; ``wait`` until all are."""
        for future in [future for future in self._writing if wait or future.done()]:
            self._writing.remove(future)
            future.result()

    def _quarantine(self, slot: Slot, reason: str) -> None:
        """Start a LoRA that is not finite again, at a lower learning rate; the second time, give it up."""
        job, path = slot.job, slot.job.picture.paths[0]
        self._look_at_writing(wait=True)  # no state of it comes after this
        self._release(slot)
        if not slot.history:
            log.warning("%s: %s; it starts again at %g of its learning rate", path, reason, RETRY_FACTOR)
            if self.team.rank == 0:
                storage.remove(self.queue.library.state_file(job.identity))
            self.team.agree(None)  # none reads the old state
            history = [f"{reason}; started again at {RETRY_FACTOR:g} of its learning rate"]
            with encoders_on(self.pack.flat.device, self.backbone, self.run):
                self._place(self._open(job, slot.index, history=history))
            return
        if self.team.rank == 0:
            log.error("%s: %s; it is given up", path, reason)
            self.queue.fail(
                job, f"{reason}, also at {RETRY_FACTOR:g} of its learning rate; try precision 32 or another rate"
            )

    def _release(self, slot: Slot) -> None:
        slot.close()
        self.slots[slot.index] = None
        self._slots_changed()


@dataclass(frozen=True)
class SlotRows:
    """What the rows of all slots are taken from, side by side on the device; it changes when a slot does.

    ``latents`` (1 + K, C, h, w): zeros for idle slots, then the crops of each slot, which begin at its ``offsets``;
    ``masks`` (1 + K, 1, h, w) of them, None where no slot has any. ``prompts`` (N rows) and ``texts`` of each slot.
    """

    latents: torch.Tensor
    masks: torch.Tensor | None
    offsets: tuple[int, ...]
    prompts: PromptEmbeds
    texts: tuple[str, ...]
    _repeated: dict[int, PromptEmbeds] = field(default_factory=dict)

    def prompts_of(self, count: int) -> PromptEmbeds:
        """With ``count`` rows for each slot; the same object for the same number."""
        if count not in self._repeated:
            self._repeated[count] = self.prompts[[index for index in range(len(self.texts)) for _ in range(count)]]
        return self._repeated[count]

    @classmethod
    def of(cls, slots: Sequence[Slot | None], like: torch.Tensor) -> SlotRows:
        """Of at least one slot, in the dtype of ``like``."""
        busy = [slot for slot in slots if slot is not None]
        latents = torch.cat([torch.zeros_like(busy[0].latents[:1]), *(slot.latents for slot in busy)]).to(like)
        masks = None
        if any(slot.masks is not None for slot in busy):
            masks = torch.ones_like(latents[:, :1])
            masks[0] = 0
        offsets, end = [], 0
        for slot in slots:
            offsets.append(end)
            if slot is not None and masks is not None and slot.masks is not None:
                masks[1 + end : 1 + end + len(slot.masks)] = slot.masks
            end += len(slot.latents) if slot is not None else 0
        prompts = PromptEmbeds.cat([slot.prompt if slot is not None else busy[0].prompt for slot in slots])
        texts = tuple(slot.job.settings.prompt if slot is not None else "" for slot in slots)
        return cls(latents, masks, tuple(offsets), prompts, texts)


def open_pack(
    backbone: Backbone, run: FitSettings, jobs: Sequence[FitJob], width: int, device: torch.device, dtype: torch.dtype
) -> LoRAPack:
    """A pack for these jobs on everything that they train, its adapters open to gradients."""
    configs = {NETWORK: widest(run, jobs).config}
    models = {NETWORK: backbone.network}
    if run.text_encoder_targets:
        models = backbone.parts
        configs = {part: configs[NETWORK] if part == NETWORK else widest(run, jobs).text_config for part in models}
        pack = pack_of_parts(models, configs, width, device=device, dtype=dtype, compute_dtype=backbone.dtype)
    else:
        own = configs[NETWORK]
        pack = LoRAPack(models[NETWORK], own, width, device=device, dtype=dtype, compute_dtype=backbone.dtype)
    pack.train()
    return pack


def widest(run: FitSettings, jobs: Sequence[FitJob]) -> FitSettings:
    """The run with the largest rank among all jobs, done or not: it is the same when a run is taken up again."""
    return replace(run, rank=max((job.settings.rank for job in jobs), default=run.rank))


def crop_side(job: FitJob, backbone: Backbone) -> int:
    return job.settings.crops.side(backbone.resolution, backbone.size_multiple)


@contextmanager
def encoders_on(device: torch.device, backbone: Backbone, run: FitSettings) -> Iterator[None]:
    """The encoders leave the device afterwards; text encoders that LoRAs reach stay: every step encodes prompts."""
    backbone.park_encoders(device)
    try:
        yield
    finally:
        backbone.park_encoders("cpu")
        if run.text_encoder_targets:
            for text_encoder in backbone.text_encoders.values():
                text_encoder.to(device)


def slot_memory(
    backbone: Backbone, run: FitSettings, jobs: Sequence[FitJob], device: torch.device, dtype: torch.dtype
) -> int:
    """Bytes of one LoRA under way with the largest crops: a step's activations, weights and optimizer."""
    side = max(crop_side(job, backbone) for job in jobs)
    pack = open_pack(backbone, run, jobs, 1, device, dtype)
    try:
        with torch.no_grad(), encoders_on(device, backbone, run):
            latents = backbone.encode_image(torch.zeros(1, 3, side, side, device=device))
            prompt = backbone.encode_prompt([""])
        rows = latents.expand(run.batch_size, -1, -1, -1)
        timesteps = torch.zeros(run.batch_size, dtype=torch.int64, device=device)

        def forward() -> torch.Tensor:
            own = backbone.encode_prompt([""]) if run.text_encoder_targets else prompt
            return backbone.predict(rows, timesteps, own[[0] * run.batch_size]).square().mean()

        with pack.rows(Rows(None)):
            step = step_memory(forward, backbone.parameters(), device)
    finally:
        pack.detach()
    crops = MOST_CROPS * latents.numel() * latents.element_size()
    return step + optimizer_memory(run.optimizer, pack.flat.detach()[0]) + crops
