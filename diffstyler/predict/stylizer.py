"""Rows of a manifest -> stylized pictures: masks, inversion, injection and mask-wise denoising (the method)."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from concurrent.futures import Future
from dataclasses import replace
from inspect import signature
from itertools import groupby
from pathlib import Path
from typing import Literal, Protocol

import lightning
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from diffstyler.adapters import LoRALibrary
from diffstyler.backbones import Backbone, StableDiffusion
from diffstyler.cuda import Pace, fetch, send
from diffstyler.diffusion.denoiser import FULL_CELLS, MOST_ROWS, Denoiser
from diffstyler.diffusion.fusion import FuseLatents, Fusion
from diffstyler.diffusion.initial import FromContentAdaIN, InitialLatents
from diffstyler.diffusion.injection import CrossLoRAInjection, Injection
from diffstyler.diffusion.matching import NoMatching, Part, PatchTransport, StyleMatching
from diffstyler.diffusion.sampling import denoise
from diffstyler.diffusion.solver import DDIM, Solver
from diffstyler.distributed import ended_by_sigterm
from diffstyler.errors import DiffstylerError, check_placeholders
from diffstyler.farm import Farm, RankFarm
from diffstyler.files import check_writable
from diffstyler.images import fit_size, load_image, picture_sha256
from diffstyler.masking import AttentionMasker, Masker, find_masks
from diffstyler.masking.prompt import Everything
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.memory.forecast import PredictForecast, forecast_predict
from diffstyler.memory.plan import GIB, PredictPlan, largest_of, plan_predict
from diffstyler.predict.adapter_cache import AdapterCache
from diffstyler.predict.adapter_resolver import (
    AdapterFile,
    ContentLoRA,
    ResolvedAdapters,
    fit_options_of,
    style_picture,
)
from diffstyler.predict.canvas import Strategies, cells_of, compose, starting_regions
from diffstyler.predict.inverter import Inverter, ToInvert, TrajectoryCache, style_image, style_to_invert
from diffstyler.predict.picture_job import PictureJob, RegionJob
from diffstyler.predict.preview import previews
from diffstyler.predict.progress import PredictProgress
from diffstyler.predict.row_check import CheckedRows, check_rows
from diffstyler.predict.sidecar import finish
from diffstyler.predict.writer import StylizationWriter
from diffstyler.provenance import describe
from diffstyler.types import Failed, OnError, RowProblem, Schedule, Step, StyleRegion, Stylized, Trajectory, Triple
from diffstyler.workers import Workers, settled

log = logging.getLogger(__name__)

#: seconds to compile the network, the share of a recorded call's time that it saves, and the pictures that are timed:
#: SD 1.5, 24 rows at once, on an H200
COMPILING, COMPILED, TIMED_PICTURES = 100.0, 0.3, 24
#: every family was trained on 1000 timesteps, and a grid begins at the second
MOST_STEPS = 999


def _failed(job: PictureJob, error: Exception) -> Failed:
    triple = job.triple
    log.error("%s: %s", triple.origin or triple.id, error, exc_info=log.isEnabledFor(logging.DEBUG))
    return Failed(triple.id, triple.origin, f"{type(error).__name__}: {error}")


def _not_finite(job: PictureJob) -> str:
    loras = ", ".join(dict.fromkeys(str(file.path) for file in job.adapters if file is not None))
    return (
        f"the picture came out as NaN or infinity; {loras}: are the weights as they should be (diffstyler inspect)? "
        "Else lower the strength, or take trainer.precision 32-true or bf16-mixed"
    )


class TakeOff(lightning.Callback):
    """Leaves the model as it was when a run is interrupted."""

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: Stylizer,  # type: ignore[override]
        exception: BaseException,
    ) -> None:
        pl_module.on_predict_end()


class TriplesToMake(Protocol):
    """What the stylizer reads from the data module."""

    manifest: Path | None
    triples: Sequence[Triple]
    batch_size: int | Literal["auto"]
    on_error: OnError
    problems: Sequence[RowProblem]


class Stylizer(lightning.LightningModule):
    """Makes the pictures of a manifest.

    Args:
        backbone: the frozen model.
        lora_dir: the library that style (and content) pictures are looked up in.
        output_dir: where pictures and sidecars go; what lies there already is not made again, and what was made of the
            same id with other settings is kept as ``<id>@<key>.png``. None = write nothing.
        cache_dir: where inverted contents are kept for later pictures; None = nowhere.
        cache_size: GiB that cache_dir may take; what was used longest ago goes first.
        num_inference_steps: N, the steps of the sampling grid.
        inversion_steps: steps of the inversion's own grid; None = the sampling grid, N steps.
        inversion_refinements: fixed-point refinements of each inversion step.
        guidance_scale: g, where the manifest gives none; 1 = none; any other costs a second row a step.
        guidance_interval: guidance acts at times t / T above the first and up to the second number, and costs no row
            elsewhere.
        negative_prompt: where the manifest gives none.
        prompt: where the manifest gives none. ``{lora_prompt}`` is what the style LoRA was fitted with,
            ``{content_prompt}`` the manifest's column.
        solver: how the sampling grid is walked down; by default DDIM.
        injection: how content steers style.
        initial: where the denoising starts; by default from the content's z_T with the style's channel statistics.
        matching: what brings the picture nearer to the style picture, where there is one, at each step; by default a
            transport of latent patches.
        content_lora: whether inversion and source row run under the content picture's own LoRA: "found" where the
            library has one, "required" always, "off" never (under the base model).
        lora: which LoRA acts where a picture has several: "newest", or the one whose id (the end of its folder's name)
            begins so; None = an error that names them.
        masker: finds what mask prompts name; by default the base model's own attention.
        on_partial_lora: what a LoRA means that matches the model in part, or has keys that no tool's dialect knows: an
            "error", or, with "warn", what matches acts and the rest is left out.
        on_empty_mask: what a mask that finds nothing means: "error" for that picture, "skip" the region, or the
            "whole" picture.
        feather: width of the soft border of a mask that has none of its own, as a fraction of the short side, to both
            sides.
        fusion: how regions and content become one picture at each step.
        keep_outside: outside all masks, put the content's own pixels back.
        resolution: short side, in pixels, that contents are worked on at; None = the model's.
        rows_per_call: rows in every UNet call, idle ones padded, so that a picture does not depend on its batch (on a
            CPU bitwise, by one thread). None = all rows of a batch in one call.
        compile: on CUDA, run full calls compiled. "auto": where the time of the first pictures says that it pays; not
            where rows_per_call is given, or Trainer.deterministic, since it rounds differently.
        max_memory: GiB of the device that the run may take: UNet calls get as many rows as fit by forecast, and where
            they must, the autoencoder works in tiles and idle parts leave the device. None = no bound.
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        *,
        lora_dir: Path = Path("loras"),
        output_dir: Path | None = Path("stylized"),
        cache_dir: Path | None = None,
        cache_size: float = 50.0,
        num_inference_steps: int = 50,
        inversion_steps: int | None = None,
        inversion_refinements: int = 0,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        negative_prompt: str = "",
        prompt: str = "{lora_prompt}, {content_prompt}",
        solver: Solver | None = None,
        injection: Injection | None = None,
        initial: InitialLatents | None = None,
        matching: StyleMatching | None = None,
        content_lora: ContentLoRA = "found",
        lora: str | None = None,
        on_partial_lora: Literal["error", "warn"] = "error",
        masker: Masker | None = None,
        on_empty_mask: Literal["error", "skip", "whole"] = "error",
        feather: float = 0.02,
        fusion: Fusion | None = None,
        keep_outside: bool = True,
        resolution: int | None = None,
        rows_per_call: int | None = None,
        compile: bool | Literal["auto"] = "auto",
        max_memory: float | None = None,
    ) -> None:
        super().__init__()
        for name, steps in {"num_inference_steps": num_inference_steps, "inversion_steps": inversion_steps}.items():
            if steps is not None and not 1 <= steps <= MOST_STEPS:
                raise DiffstylerError(f"model.{name}: expected 1 … {MOST_STEPS}, got {steps}")
        for name, value in {
            "guidance_scale": guidance_scale,
            "cache_size": cache_size,
            "inversion_refinements": inversion_refinements,
        }.items():
            if not 0 <= value < math.inf:
                raise DiffstylerError(f"model.{name}: expected a number of at least 0, got {value}")
        for name, value in {"resolution": resolution, "max_memory": max_memory}.items():
            if value is not None and not 0 < value < math.inf:
                raise DiffstylerError(f"model.{name}: expected a number above 0, or null, got {value}")
        low, high = guidance_interval
        if not 0 <= low < high <= 1:
            raise DiffstylerError(
                f"model.guidance_interval: expected [low, high] with 0 <= low < high <= 1, got [{low}, {high}]"
            )
        if rows_per_call is not None and rows_per_call < 2:
            raise DiffstylerError(f"model.rows_per_call: expected at least 2, got {rows_per_call}")
        check_placeholders(prompt, ("lora_prompt", "content_prompt"), "model.prompt: ")
        check_placeholders(negative_prompt, (), "model.negative_prompt: ")
        if lora is not None and lora != "newest" and not re.fullmatch("[0-9a-f]{4,64}", lora):
            raise DiffstylerError(
                f"model.lora: expected 'newest' or 4 digits (0-9, a-f) or more of an id, got '{lora}'"
            )
        if not 0 <= feather <= 0.5:
            raise DiffstylerError(f"model.feather: expected a fraction of the short side in 0 … 0.5, got {feather}")
        self.backbone = backbone if backbone is not None else StableDiffusion()
        self.library = LoRALibrary(Path(lora_dir))  # notebooks give text
        self.writer = StylizationWriter(Path(output_dir)) if output_dir is not None else None
        self.trajectories = TrajectoryCache(
            Path(cache_dir) if cache_dir is not None else None, most_bytes=cache_size * GIB
        )
        self.num_inference_steps = num_inference_steps
        self.inversion_steps = inversion_steps or num_inference_steps
        self.inversion_refinements = inversion_refinements
        self.guidance_scale = guidance_scale
        self.guidance_interval = guidance_interval
        self.negative_prompt = negative_prompt
        self.prompt = prompt
        self.solver = solver if solver is not None else DDIM()
        self.injection = injection if injection is not None else CrossLoRAInjection()
        self.initial = initial if initial is not None else FromContentAdaIN()
        self.matching = matching if matching is not None else PatchTransport()
        self.content_lora: ContentLoRA = content_lora
        self.lora = lora
        self.allow_partial = on_partial_lora == "warn"
        self.masker = masker if masker is not None else AttentionMasker()
        self.on_empty_mask = on_empty_mask
        self.feather = feather
        self.fusion = fusion if fusion is not None else FuseLatents()
        self.keep_outside = keep_outside
        self.resolution = resolution
        self.rows_per_call = rows_per_call
        self.compile_network: bool | Literal["auto"] = compile
        self.max_memory = max_memory
        self.pace: Pace | None = None  # it is settled whether full calls are compiled
        self.plan: PredictPlan | None = None
        self.checked_elsewhere: CheckedRows | None = None  #: by the process that leads the farm
        self.denoiser: Denoiser | None = None
        self._style_cells: dict[tuple[AdapterFile, str], torch.Tensor] = {}
        self.progress = PredictProgress()
        self.workers = Workers(apart=False)
        self._ahead: tuple[object, list[Future]] | None = None

    # ---- the method

    def predict_step(self, batch: Iterable[Triple], batch_idx: int) -> list[Future[Stylized | Failed]]:
        """Pictures of one batch: those of equal size are made together; what the CPU does for them follows."""
        if self.trainer.received_sigterm:
            raise SIGTERMException
        torch.set_default_dtype(torch.float32)  # of masks and pixels; Lightning, which changes it, sets it back
        outcomes: list[Future[Stylized | Failed]] = []
        jobs = []
        for job in self._prepared(batch):
            if isinstance(job, PictureJob):
                try:
                    jobs.append(self._find_masks(job))
                except (ValueError, OSError) as error:
                    outcomes.append(settled(Failed(job.triple.id, job.triple.origin, str(error))))
            elif job is not None:
                outcomes.append(settled(job))
        for _, same_size in groupby(sorted(jobs, key=lambda job: job.size), key=lambda job: job.size):
            with ended_by_sigterm():
                outcomes += self._stylize_or_fail(list(same_size))
        self._settle_compiling(batch)
        return outcomes

    def _settle_compiling(self, batch: Iterable[Triple]) -> None:
        """As soon as the time of some pictures tells whether it pays for those that are left."""
        if self.pace is None or not isinstance(batch, Sized):
            return
        pays = self.pace.pays(len(batch), getattr(batch, "left", 0))
        if pays is not None:
            self.pace = None
        if pays and self.denoiser is not None:
            self.denoiser.compiled = self.compiles = True

    def _stylize_or_fail(self, jobs: list[PictureJob]) -> list[Future[Stylized | Failed]]:
        """Where a batch fails, each picture is tried alone, so that only those fail that must."""
        try:
            return self._stylize(jobs)
        except (ValueError, RuntimeError, OSError) as error:
            if len(jobs) > 1:
                return [outcome for job in jobs for outcome in self._stylize_or_fail([job])]
            return [settled(_failed(jobs[0], error))]

    @torch.no_grad()
    def _stylize(self, jobs: list[PictureJob]) -> list[Future[Stylized | Failed]]:
        """The method, for pictures of equal size: load adapters, invert, compose, denoise, decode, finish."""
        started = time.perf_counter()
        self.adapter_cache.load([file for job in jobs for file in job.adapters], self.device)
        denoiser = self._denoiser()
        with denoiser.injecting():
            contents, styles = self._invert(denoiser, jobs)
            looks = self._looks(jobs, styles)
            canvases = [
                compose(job, content, styles, looks, self.adapter_cache, self.strategies, self.begin)
                for job, content in zip(jobs, contents, strict=True)
            ]
            schedule = self.backbone.sampling_schedule(self.num_inference_steps)
            nothing = self.adapter_cache.embed("")
            watch = {"on_step": self.progress.step, "on_estimate": self._preview(jobs)}
            how = self.fusion, self.solver, self.matching
            latents = denoise(denoiser, canvases, schedule, nothing, *how, **watch)
        pictures = [fetch(self.backbone.decode_latents(x_0[None])[0]) for x_0 in latents]

        def finished(job: PictureJob, pixels: Callable[[], torch.Tensor]) -> Stylized | Failed:
            try:
                there = pixels()
                if not torch.isfinite(there).all():
                    raise DiffstylerError(_not_finite(job))
                seconds = (time.perf_counter() - started) / len(jobs)
                return finish(job, there, seconds, keep_outside=self.keep_outside)
            except (ValueError, RuntimeError, OSError) as error:
                return _failed(job, error)

        return [self.workers.submit(finished, job, pixels) for job, pixels in zip(jobs, pictures, strict=True)]

    def _preview(self, jobs: Sequence[PictureJob]) -> Callable[[Step, Sequence[torch.Tensor]], None] | None:
        """What is to be shown of these pictures on the way; None where nobody looks."""
        if self.progress.preview is None:
            return None
        every = self.progress.preview_every
        return previews(self.backbone, jobs, self.progress.preview, every, keep_outside=self.keep_outside)

    def _denoiser(self) -> Denoiser:
        """One for all pictures, as long as the adapters lie where they are."""
        pack = self.adapter_cache.pack
        if self.denoiser is None or self.denoiser.pack is not pack:
            self._close_denoiser()
            self.denoiser = Denoiser(
                self.backbone,
                pack,
                rows_per_call=self.rows_per_call,
                max_rows=self.plan.rows if self.plan else None,
                plain_sites=self.injection.plain_self_attention_at_sites,
                compiled=self.compiles,
            )
        return self.denoiser

    def _close_denoiser(self) -> None:
        if self.denoiser is not None:
            self.denoiser.close()
            self.denoiser = None

    def _invert(
        self, denoiser: Denoiser, jobs: Sequence[PictureJob]
    ) -> tuple[list[Trajectory], dict[AdapterFile, Trajectory]]:
        """{z_t^c} of each content, and {z_t^s} of each style that a start needs, z_0^s alone of one that the matching
        needs; what is not known yet, together."""
        contents = [
            ToInvert(
                job.content_sha256, job.size, lambda job=job: job.pixels, job.content_adapter, self.inversion_steps
            )
            for job in jobs
        ]
        regions = [region for job in jobs for region in job.regions if region.finds_something]
        starting = {r.adapter for job in jobs for r in starting_regions(job, self.begin) if self.initial.needs_style}
        needed = {r.adapter: r.row for r in regions if self.matching.needs_style or r.adapter in starting}
        styles = {
            adapter: style_to_invert(
                picture,
                adapter,
                resolution=self.resolution or self.backbone.resolution,
                multiple=self.backbone.size_multiple,
                steps=self.num_inference_steps if adapter in starting else 0,
            )
            for adapter, row in needed.items()
            if (picture := style_picture(row)) is not None
        }
        inverted = self.inverter(denoiser, [*contents, *styles.values()], self.device)
        return inverted[: len(jobs)], dict(zip(styles, inverted[len(jobs) :], strict=True))

    def _looks(
        self, jobs: Sequence[PictureJob], styles: Mapping[AdapterFile, Trajectory]
    ) -> dict[tuple[AdapterFile, str], Part]:
        """E(style picture), and the cells of it that the manifest's ``style_mask`` names, of each style known here."""
        rows = {region.look: region.row for job in jobs for region in job.regions if region.adapter in styles}
        for look, row in rows.items():
            prompt, picture = parse_mask_prompt(row.style_mask), style_picture(row)
            if look in self._style_cells or isinstance(prompt, Everything) or picture is None:
                continue
            mask = find_masks(self.masker, style_image(picture), [prompt], empty=1.0, origin=row.origin)[0]
            _, height, width = styles[look[0]].clean.shape
            self._style_cells[look] = send(cells_of(self.fusion.latent_mask(mask, (height, width))), self.device)
        return {look: Part(styles[look[0]].clean, self._style_cells.get(look)) for look in rows}

    # ---- a row and its settings

    def _prepared(self, batch: Iterable[Triple]) -> list[PictureJob | Failed | None]:
        """The rows of a batch as jobs, read while the one before it was made; then the next one is read."""
        ahead, self._ahead = self._ahead, None
        own = ahead[1] if ahead is not None and ahead[0] is batch else [self._try_to_prepare(row) for row in batch]
        following = getattr(batch, "next", None)
        if following is not None and self.workers.apart:
            self._ahead = following, [self.workers.submit(self._try_to_prepare, row) for row in following]
        return [job.result() if isinstance(job, Future) else job for job in own]

    def _try_to_prepare(self, triple: Triple) -> PictureJob | Failed | None:
        """None where the picture is there already."""
        if reason := self.checked.rejected.get(triple.id):
            return Failed(triple.id, triple.origin, reason)
        try:
            job = self._prepare(triple)
            return None if self._is_done(job) else job
        except (ValueError, OSError) as error:
            return Failed(triple.id, triple.origin, str(error))

    def _prepare(self, triple: Triple) -> PictureJob:
        """Read the content and settle every setting of one picture."""
        image = load_image(triple.content)
        size = fit_size(image.size, self.resolution or self.backbone.resolution, self.backbone.size_multiple)
        sha256 = picture_sha256(image)
        regions = tuple(self._settle(triple, row) for row in triple.regions)
        job = PictureJob(triple, image, size, sha256, self.adapters.content(sha256), regions, {})
        return replace(job, settings=self._settings(masked=job.is_masked))

    def _settle(self, triple: Triple, row: StyleRegion) -> RegionJob:
        adapter = self.adapters.style(row)
        words = {"{lora_prompt}": adapter.prompt, "{content_prompt}": triple.content_prompt}
        prompt = self.prompt
        for name, text in words.items():
            prompt = prompt.replace(name, text)
        run = {"prompt": prompt, "negative_prompt": self.negative_prompt, "guidance_scale": self.guidance_scale}
        return RegionJob.settled(row, adapter, **run)

    @torch.no_grad()
    def _find_masks(self, job: PictureJob) -> PictureJob:
        """The same job with the masks of its regions.

        Raises:
            NothingFoundError: a prompt finds nothing, and ``on_empty_mask`` is "error".
        """
        if not job.is_masked:
            return job
        prompts = [region.mask_prompt for region in job.regions]
        empty = {"error": None, "skip": 0.0, "whole": 1.0}[self.on_empty_mask]
        feather = self.feather * min(job.image.size)
        origin = job.triple.origin or job.triple.id
        masks = find_masks(self.masker, job.image, prompts, feather=feather, empty=empty, origin=origin)
        settled = [None if bool((mask == 1).all()) else mask for mask in masks]
        return replace(job, regions=tuple(replace(r, mask=m) for r, m in zip(job.regions, settled, strict=True)))

    def _settings(self, *, masked: bool) -> dict:
        """What determines a picture besides its row."""
        masking = {"masker": self.masker.settings, "feather": self.feather, "on_empty_mask": self.on_empty_mask}
        return {
            "num_inference_steps": self.num_inference_steps,
            "inversion_steps": self.inversion_steps,
            "inversion_refinements": self.inversion_refinements,
            **self.record,
            **({"style_inversion": "own aspect"} if self.initial.needs_style else {}),
            "keep_outside": self.keep_outside,
            **(masking if masked else {}),
            "content_lora": self.content_lora,
            "resolution": self.resolution or self.backbone.resolution,
            "rows_per_call": self.rows_per_call,
            "precision": str(self.trainer.precision),
            "model": self.backbone.identity(),
            **self._tiling,
        }

    @property
    def _tiling(self) -> dict[str, bool]:
        """Asked for, or chosen to save memory: tiles give other pixels."""
        return {"vae_tiling": True} if self.backbone.vae_tiling else {}

    def _is_done(self, job: PictureJob) -> bool:
        return self.writer is not None and self.writer.is_done(job.triple.id, job.key)

    # ---- before and after

    def setup(self, stage: str) -> None:
        """Look at everything that a row names, and find every LoRA, before anything is computed.

        Raises:
            RowsError: rows that cannot be made, and data.on_error is "stop"; MissingLoRAError where LoRAs are missing.
            InexpressibleError: a strategy cannot be recorded.
            DiffstylerError: the model or a grid cannot be used, or nothing can be written to output_dir.
        """
        strategies = {"injection": self.injection, "initial": self.initial, "fusion": self.fusion}
        self.record = {name: describe(strategy) for name, strategy in strategies.items()}
        if not isinstance(self.solver, DDIM):  # told only since there is a choice
            self.record["solver"] = describe(self.solver)
        if not isinstance(self.matching, NoMatching):
            self.record["matching"] = describe(self.matching)
        if tuple(self.guidance_interval) != (0.0, 1.0):
            self.record["guidance_interval"] = list(self.guidance_interval)
        if self.writer is not None:
            check_writable(self.writer.output_dir)
        if not self.backbone.is_loaded:
            self.backbone.check()
        if hasattr(self.backbone, "num_train_timesteps"):  # else the weights' file alone knows
            self._check_grids()
        self.checked = self.checked_elsewhere or check_rows(
            self._data.triples,
            self.library,
            self.backbone,
            content_lora=self.content_lora,
            allow_partial=self.allow_partial,
            needs_style=self.initial.needs_style,
            lora=self.lora,
            fit_options=fit_options_of(self.backbone, str(self.trainer.precision), self._data.manifest),
            on_error=self._data.on_error,
            wrong=self._data.problems,
        )

    @property
    def adapters(self) -> ResolvedAdapters:
        return self.checked.adapters

    def _check_grids(self) -> Schedule:
        """The sampling grid.

        Raises:
            DiffstylerError: the inversion's grid does not hold its timesteps, or it reaches pure noise.
        """
        schedule = self.backbone.sampling_schedule(self.num_inference_steps)
        inversion = self.backbone.sampling_schedule(self.inversion_steps)
        missing = set(schedule.timesteps.tolist()) - set(inversion.timesteps.tolist())
        if missing:
            raise DiffstylerError(
                f"model.inversion_steps {self.inversion_steps}: its grid misses {len(missing)} of the "
                f"{self.num_inference_steps} sampling timesteps; use 999, or leave it out"
            )
        for name, grid in {"num_inference_steps": schedule, "inversion_steps": inversion}.items():
            if not all(level.signal > 0 for level in grid.levels):
                raise DiffstylerError(
                    f"model.{name} {len(grid)}: its grid begins at timestep {grid.timesteps[0]}, where this model has "
                    "nothing but noise (zero terminal SNR), so that no picture can be inverted to it; take fewer steps"
                )
        return schedule

    def configure_model(self) -> None:
        if not self.backbone.is_loaded:
            if self.max_memory is not None:
                self._keep_below(self.max_memory)
            self.backbone.load(self.base_dtype)

    def _keep_below(self, gib: float) -> None:
        """Cut the run so that it takes at most so much memory; said in the log.

        Raises:
            DiffstylerError: it does not fit, or nothing can be forecast for this model.
        """
        self.plan = plan_predict(self.forecast(), gib * GIB, self.styles_at_once)
        if self.rows_per_call is not None and self.rows_per_call > self.plan.rows:
            raise DiffstylerError(
                f"model.rows_per_call {self.rows_per_call}: model.max_memory {gib:g} leaves room for {self.plan.rows}"
            )
        self.backbone.save_memory(vae_tiling=self.plan.tiling, offload=self.plan.offload)
        log.info("max_memory %g GiB: %s", gib, self.plan)

    def forecast(self) -> PredictForecast:
        """What the run's largest picture costs, before anything is loaded.

        Raises:
            DiffstylerError: nothing can be forecast for this model.
        """
        contents = {triple.content for triple in self._data.triples}
        return forecast_predict(
            self.backbone, largest_of(contents, self.resolution), self.base_dtype, self.adapters.config
        )

    @property
    def pictures_at_once(self) -> int:
        """So many that whatever is done for them, one to three rows of each, fills calls of a GPU. Elsewhere, and
        within ``max_memory``, one."""
        bound = self.max_memory is not None or self.rows_per_call is not None
        if bound or self.trainer.strategy.root_device.type != "cuda":
            return 1
        return max(1, min(MOST_ROWS, FULL_CELLS // self._cells))

    @property
    def farm(self) -> Farm:
        """Whose rows this process makes."""
        if self.writer is not None:
            return self.writer.farm
        return RankFarm(rank=self.trainer.global_rank, ranks=self.trainer.world_size)

    @property
    def _cells(self) -> int:
        """Of a square picture's latents."""
        side = (self.resolution or self.backbone.resolution) // self.backbone.size_multiple
        return side * side

    @property
    def styles_at_once(self) -> int:
        """LoRAs that one batch may need, contents' included."""
        size = self._data.batch_size
        return (1 if size == "auto" else size) * max(1 + len(triple.regions) for triple in self._data.triples)

    @property
    def base_dtype(self) -> torch.dtype:
        """Of the frozen weights, by the Trainer's precision."""
        bits, _, _ = str(self.trainer.precision).partition("-")
        return {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}.get(bits, torch.float32)

    def to(self, *args: object, **kwargs: object) -> Stylizer:
        """To a device. Each part of the backbone has its dtype, by the Trainer's precision, since it was loaded."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]  # type: ignore[attr-defined]
        return self if device is None else super().to(device)

    def configure_callbacks(self) -> list[lightning.Callback]:
        return [self.progress, TakeOff(), *([self.writer] if self.writer is not None else [])]

    def on_predict_start(self) -> None:
        """Raises:
        ForeignLoRAError: a LoRA does not match the model.
        DiffstylerError: a grid cannot be used.
        """
        schedule = self._check_grids()
        self._tell_what_has_no_effect(schedule)
        self.begin = next(iter(schedule))
        self.strategies = Strategies(
            self.injection,
            self.initial,
            self.fusion,
            self.guidance_scale,
            self.guidance_interval,
            self.negative_prompt,
        )
        self._style_cells.clear()  # of another device
        self.adapter_cache = AdapterCache(self.adapters, self.backbone, allow_partial=self.allow_partial)
        settings = {"precision": str(self.trainer.precision), "rows_per_call": self.rows_per_call}
        settings |= {k: v for k, v in self.backbone.identity().items() if k in {"variant", "config"}}
        self.inverter = Inverter(
            self.backbone,
            self.adapter_cache,
            self.trajectories,
            refinements=self.inversion_refinements,
            settings={**settings, **self.backbone.settings, **self._tiling},
            on_step=self.progress.step,
        )
        self.backbone.prepare(self.device)
        self.masker.setup(self.backbone)
        self.workers = Workers(apart=self.device.type == "cuda")
        self.compiles = self.compile_network is True
        exact = self.rows_per_call is not None or torch.are_deterministic_algorithms_enabled()
        if self.compile_network == "auto" and self.device.type == "cuda" and not exact:
            self.pace = Pace(cost=COMPILING, gain=COMPILED, units=TIMED_PICTURES)
        if self.writer is not None:
            self.writer.workers = self.workers

    def _tell_what_has_no_effect(self, schedule: Schedule) -> None:
        """A setting that no row of the run feels is told."""
        rows = [row for triple in self._data.triples for row in triple.regions]
        of_rows = [
            self.injection.scheduled(*given).without_effect(schedule)
            for given in {(row.inject_features, row.inject_attention) for row in rows}
        ]
        idle = {f"injection.{name}" for name in set.intersection(*of_rows)}
        scales = [self.guidance_scale if row.guidance_scale is None else row.guidance_scale for row in rows]
        unguided = set(scales) == {1}
        unmasked = all(isinstance(parse_mask_prompt(row.mask), Everything) for row in rows)
        useless = dict.fromkeys(("negative_prompt", "guidance_interval"), unguided)
        useless |= dict.fromkeys(("feather", "fusion", "keep_outside", "masker", "on_empty_mask"), unmasked)
        plain = {name: parameter.default for name, parameter in signature(Stylizer).parameters.items()}
        plain |= {"fusion": FuseLatents(), "masker": self.masker if type(self.masker) is AttentionMasker else None}
        idle |= {name for name, nothing in useless.items() if nothing and getattr(self, name) != plain[name]}
        if any(row.negative_prompt and scale == 1 for row, scale in zip(rows, scales, strict=True)):
            log.warning(
                "no effect at guidance_scale 1: the rows' negative_prompt; give those rows another guidance_scale"
            )
        unmatched = {row.style for row in rows if self.matching.needs_style and style_picture(row) is None}
        if unmatched:
            log.warning(
                "no matching with %s, which has no style picture beside it: name it in the column style_picture, or "
                "set model.matching NoMatching",
                " and ".join(sorted(map(str, unmatched))),
            )
        if idle:
            names = ", ".join(f"model.{name}" for name in sorted(idle))
            log.warning("no effect in this run: %s; what would change by it does not happen", names)

    def on_predict_end(self) -> None:
        self.workers.close()
        self._close_denoiser()
        if hasattr(self, "adapter_cache"):
            self.adapter_cache.close()

    def __repr__(self) -> str:
        steps, scale = self.num_inference_steps, self.guidance_scale
        return f"Stylizer({self.backbone!r}, num_inference_steps={steps}, guidance_scale={scale:g})"

    @property
    def _data(self) -> TriplesToMake:
        return self.trainer.datamodule  # type: ignore[attr-defined]
