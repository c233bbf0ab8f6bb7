"""Triples -> stylized pictures: masks, inversion, injection and mask-wise denoising (the method)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Literal, Protocol

import lightning
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from diffstyler.adapters import LoRALibrary
from diffstyler.backbones import Backbone, StableDiffusion
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.fusion import FuseLatents, Fusion
from diffstyler.diffusion.initial import FromContentAdaIN, InitialLatents, initial_latents
from diffstyler.diffusion.injection import CrossLoRAInjection, Injection
from diffstyler.diffusion.inversion import Clean, invert
from diffstyler.diffusion.sampling import Canvas, Region, denoise
from diffstyler.images import fit_size, load_image, picture_sha256, to_tensor
from diffstyler.masking import AttentionMasker, Masker, check_masks, find_masks
from diffstyler.masking.prompt import Everything
from diffstyler.memory.forecast import PredictForecast, forecast_predict
from diffstyler.memory.plan import GIB, PredictPlan, largest_of, plan_predict
from diffstyler.predict.adapter_cache import AdapterCache
from diffstyler.predict.adapter_resolver import (
    AdapterFile,
    ContentLoRA,
    fit_options_of,
    resolve_adapters,
    style_picture,
)
from diffstyler.predict.inverter import TrajectoryCache
from diffstyler.predict.picture_job import Style, Work
from diffstyler.predict.sidecar import finish
from diffstyler.predict.writer import StylizationWriter
from diffstyler.provenance import describe
from diffstyler.types import Failed, StyleRegion, Stylized, Trajectory, Triple

log = logging.getLogger(__name__)


class TriplesToMake(Protocol):
    """What the stylizer reads from the data module."""

    manifest: Path | None
    triples: Sequence[Triple]
    batch_size: int


class Stylizer(lightning.LightningModule):
    """Makes the pictures of a manifest.

    Args:
        backbone: the frozen model.
        lora_dir: the library that style (and content) pictures are looked up in.
        output_dir: where pictures and sidecars go; what lies there already is not made again. None = write nothing.
        cache_dir: where inverted contents are kept for later pictures; None = nowhere.
        num_inference_steps: N, the steps of the sampling grid.
        inversion_steps: steps of the inversion's own grid; None = the sampling grid, N steps.
        inversion_refinements: fixed-point refinements of each inversion step.
        guidance_scale: g, where the manifest gives none; 1 = no guidance, and half the rows.
        negative_prompt: where the manifest gives none.
        prompt: where the manifest gives none. ``{lora_prompt}`` is what the style LoRA was fitted with,
            ``{content_prompt}`` the manifest's column.
        injection: how content steers style.
        initial: where the denoising starts; by default from the content's z_T with the style's channel statistics.
        content_lora: whether inversion and source row run under the content picture's own LoRA: "found" where the
            library has one, "required" always, "off" never (under the base model).
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
        num_inference_steps: int = 50,
        inversion_steps: int | None = None,
        inversion_refinements: int = 0,
        guidance_scale: float = 3.0,
        negative_prompt: str = "",
        prompt: str = "{lora_prompt}, {content_prompt}",
        injection: Injection | None = None,
        initial: InitialLatents | None = None,
        content_lora: ContentLoRA = "found",
        on_partial_lora: Literal["error", "warn"] = "error",
        masker: Masker | None = None,
        on_empty_mask: Literal["error", "skip", "whole"] = "error",
        feather: float = 0.02,
        fusion: Fusion | None = None,
        keep_outside: bool = True,
        resolution: int | None = None,
        rows_per_call: int | None = None,
        max_memory: float | None = None,
    ) -> None:
        super().__init__()
        if num_inference_steps < 1:
            raise ValueError(f"model.num_inference_steps: expected at least 1, got {num_inference_steps}")
        if rows_per_call is not None and rows_per_call < 2:
            raise ValueError(f"model.rows_per_call: expected at least 2, got {rows_per_call}")
        if not 0 <= feather <= 0.5:
            raise ValueError(f"model.feather: expected a fraction of the short side in 0 … 0.5, got {feather}")
        self.backbone = backbone if backbone is not None else StableDiffusion()
        self.library = LoRALibrary(lora_dir)
        self.allow_partial = on_partial_lora == "warn"
        self.writer = StylizationWriter(output_dir) if output_dir is not None else None
        self.cache = TrajectoryCache(cache_dir)
        self.num_inference_steps = num_inference_steps
        self.inversion_steps = inversion_steps
        self.inversion_refinements = inversion_refinements
        self.guidance_scale = guidance_scale
        self.negative_prompt = negative_prompt
        self.prompt = prompt
        self.injection = injection if injection is not None else CrossLoRAInjection()
        self.initial = initial if initial is not None else FromContentAdaIN()
        self.content_lora: ContentLoRA = content_lora
        self.masker = masker if masker is not None else AttentionMasker()
        self.on_empty_mask = on_empty_mask
        self.feather = feather
        self.fusion = fusion if fusion is not None else FuseLatents()
        self.keep_outside = keep_outside
        self.resolution = resolution
        self.rows_per_call = rows_per_call
        self.max_memory = max_memory
        self.plan: PredictPlan | None = None

    # ---- the method

    def predict_step(self, batch: Iterable[Triple], batch_idx: int) -> list[Stylized | Failed]:
        """Pictures of one batch: those of equal size are made together."""
        if self.trainer.received_sigterm:
            raise SIGTERMException
        torch.set_default_dtype(torch.float32)  # masks and pixels; Lightning sets it back
        outcomes: list[Stylized | Failed] = []
        works = []
        for triple in batch:
            try:
                work = self._prepare(triple)
                if not self._is_done(work):
                    works.append(self._find_masks(work))
            except (ValueError, OSError) as error:
                outcomes.append(Failed(triple.id, triple.origin, str(error)))
        for _, same_size in groupby(sorted(works, key=lambda w: w.size), key=lambda w: w.size):
            outcomes += self._stylize_or_fail(list(same_size))
        return outcomes

    def _stylize_or_fail(self, works: list[Work]) -> list[Stylized | Failed]:
        """Where a batch fails, each picture is tried alone, so that only those fail that must."""
        try:
            return [*self._stylize(works)]
        except (ValueError, RuntimeError, OSError) as error:
            if len(works) > 1:
                return [outcome for work in works for outcome in self._stylize_or_fail([work])]
            triple = works[0].triple
            log.error("%s: %s", triple.origin or triple.id, error, exc_info=log.isEnabledFor(logging.DEBUG))
            return [Failed(triple.id, triple.origin, f"{type(error).__name__}: {error}")]

    @torch.no_grad()
    def _stylize(self, works: list[Work]) -> list[Stylized]:
        """the method, for pictures of equal size."""
        started = time.perf_counter()
        adapters = [adapter for work in works for adapter in (work.content_adapter, *(s.adapter for s in work.styles))]
        self.adapter_cache.load(adapters, self.device)
        denoiser = Denoiser(
            self.backbone,
            self.adapter_cache.pack,
            rows_per_call=self.rows_per_call,
            max_rows=self.plan.rows if self.plan else None,
            plain_sites=self.injection.plain_self_attention_at_sites,
        )
        schedule = self.backbone.sampling_schedule(self.num_inference_steps)
        contents = [
            self._invert(denoiser, work.pixels, work.content_sha256, work.content_adapter, self._inversion_steps)
            for work in works
        ]
        canvases = [self._canvas(denoiser, w, content) for w, content in zip(works, contents, strict=True)]
        latents = denoise(denoiser, canvases, schedule, self.adapter_cache.embed(""), self.fusion)
        pictures = [self.backbone.decode_latents(x_0[None])[0] for x_0 in latents]
        seconds = (time.perf_counter() - started) / len(works)
        return [
            finish(work, pixels, seconds, keep_outside=self.keep_outside)
            for work, pixels in zip(works, pictures, strict=True)
        ]

    def _invert(
        self, denoiser: Denoiser, pixels: torch.Tensor, picture: str, adapter: AdapterFile | None, steps: int
    ) -> Trajectory:
        """{z_t} of a picture (its sha256 is ``picture``) from E(picture), by DDIM inversion, or from the cache."""
        key = {
            "picture": picture,
            "size": "x".join(map(str, pixels.shape[1:])),
            "model": self.backbone.fingerprint(),
            "adapter": adapter.sha256 if adapter else None,
            "steps": steps,
            "refinements": self.inversion_refinements,
            "precision": str(self.trainer.precision),
            "rows_per_call": self.rows_per_call,
            **self.backbone.settings,
        }
        known = self.cache.get(key)
        if known is None:
            z_0 = self.backbone.encode_image(pixels[None].to(self.device))[0]
            known = invert(
                denoiser,
                [Clean(z_0, self.adapter_cache.embed("", adapter), self.adapter_cache.slot(adapter))],
                self.backbone.sampling_schedule(steps),
                refinements=self.inversion_refinements,
            )[0]
            self.cache.put(key, known)
        return Trajectory(known.timesteps, known.latents.to(self.device))

    def _canvas(self, denoiser: Denoiser, work: Work, content: Trajectory) -> Canvas:
        """x_T, the content's way, and the regions as tensors."""
        styles = [style for style in work.styles if style.mask is None or style.mask.any()]
        regions = [self._region(style, content.clean) for style in styles]
        begin = next(iter(self.backbone.sampling_schedule(self.num_inference_steps)))
        first = [(s, r) for s, r in zip(styles, regions, strict=True) if r.stop < begin.time <= r.start]
        z_T = content.at(begin.timestep)
        starts = [self.initial(z_T, self._invert_style(denoiser, work, s), work.triple.seed) for s, _ in first]
        x_T = initial_latents(z_T, starts, [region.mask for _, region in first])
        if self.fusion.outside is not None:
            regions = [self._outside(self.fusion.outside), *regions]
        source_prompt = self.adapter_cache.embed("", work.content_adapter)
        return Canvas(x_T, content, tuple(regions), self.adapter_cache.slot(work.content_adapter), source_prompt)

    def _region(self, style: Style, latents: torch.Tensor) -> Region:
        mask, adapter, strength = style.mask, style.adapter, style.region.strength
        return Region(
            slot=self.adapter_cache.slot(adapter),
            prompt=self.adapter_cache.embed(style.prompt, adapter, strength),
            negative_prompt=self.adapter_cache.embed(style.negative_prompt, adapter, strength),
            source_prompt=self.adapter_cache.embed("", adapter, strength),
            guidance_scale=style.guidance_scale,
            strength=strength,
            mask=None
            if mask is None
            else self.fusion.latent_mask(mask, (latents.shape[1], latents.shape[2])).to(latents),
            start=style.region.start,
            stop=style.region.stop,
            injection=self.injection.scheduled(style.region.inject_features, style.region.inject_attention),
        )

    def _outside(self, injection: Injection) -> Region:
        """What no mask covers, by the base model."""
        nothing, negative = self.adapter_cache.embed(""), self.adapter_cache.embed(self.negative_prompt)
        return Region(None, nothing, negative, self.guidance_scale, injection=injection)

    def _invert_style(self, denoiser: Denoiser, work: Work, style: Style) -> torch.Tensor | None:
        """z_T^s under the style's own LoRA, where the initial latents need it."""
        if not self.initial.needs_style:
            return None
        image = load_image(style_picture(style.region.style))
        pixels = to_tensor(image, work.size)
        return self._invert(denoiser, pixels, picture_sha256(image), style.adapter, self.num_inference_steps).latents[0]

    # ---- before and around it

    def setup(self, stage: str) -> None:
        """Check every mask prompt and find every LoRA before anything is computed.

        Raises:
            MissingLoRAError: some pictures have none.
            ValueError: a mask prompt cannot be right, a LoRA file is damaged, or several LoRAs fit one picture.
        """
        triples = self._data.triples
        check_masks(triples)
        if self.initial.needs_style:
            for path in dict.fromkeys(region.style for triple in triples for region in triple.regions):
                if not style_picture(path).is_file():
                    raise ValueError(
                        f"{path}: model.initial {type(self.initial).__name__} inverts the style picture, and this LoRA "
                        "has none beside it; name the picture, or set model.initial to FromContent"
                    )
        self.adapters = resolve_adapters(
            triples,
            self.library,
            model=self.backbone.fingerprint(),
            content_lora=self.content_lora,
            allow_partial=self.allow_partial,
            fit_options=fit_options_of(self.backbone, str(self.trainer.precision), self._data.manifest),
        )

    def configure_model(self) -> None:
        if not self.backbone.is_loaded:
            if self.max_memory is not None:
                self._keep_below(self.max_memory)
            self.backbone.load(self.base_dtype)

    def _keep_below(self, gib: float) -> None:
        """Cut the run so that it takes at most so much memory; said in the log.

        Raises:
            ValueError: it does not fit, or nothing can be forecast for this model.
        """
        self.plan = plan_predict(self.forecast(), gib * GIB, self.styles_at_once)
        if self.rows_per_call is not None and self.rows_per_call > self.plan.rows:
            raise ValueError(
                f"model.rows_per_call {self.rows_per_call}: model.max_memory {gib:g} leaves room for {self.plan.rows}"
            )
        self.backbone.save_memory(vae_tiling=self.plan.tiling, offload=self.plan.offload)
        log.info("max_memory %g GiB: %s", gib, self.plan)

    def forecast(self) -> PredictForecast:
        """What the run's largest picture costs, before anything is loaded.

        Raises:
            ValueError: nothing can be forecast for this model.
        """
        contents = [triple.content for triple in self._data.triples]
        return forecast_predict(
            self.backbone, largest_of(contents, self.resolution), self.base_dtype, self.adapters.config
        )

    @property
    def styles_at_once(self) -> int:
        """LoRAs that one batch may need, contents' included."""
        return self._data.batch_size * max(1 + len(triple.regions) for triple in self._data.triples)

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
        return [self.writer] if self.writer is not None else []

    def on_predict_start(self) -> None:
        """Raises:
        ForeignLoRAError: a LoRA does not match the model.
        ValueError: the inversion's grid does not hold the sampling grid's timesteps.
        """
        self.adapter_cache = AdapterCache(self.adapters, self.backbone, allow_partial=self.allow_partial)
        grids = [self.backbone.sampling_schedule(n) for n in (self.num_inference_steps, self._inversion_steps)]
        sampling, inversion = (set(grid.timesteps.tolist()) for grid in grids)
        if not sampling <= inversion:
            raise ValueError(
                f"model.inversion_steps {self.inversion_steps}: its grid misses {len(sampling - inversion)} of the "
                f"{self.num_inference_steps} sampling timesteps; use 999, or leave it out"
            )
        self.backbone.prepare(self.device)
        self.masker.setup(self.backbone)

    def on_predict_end(self) -> None:
        self.adapter_cache.close()

    def _prepare(self, triple: Triple) -> Work:
        """Read the content and settle every setting of one picture."""
        image = load_image(triple.content)
        size = fit_size(image.size, self.resolution or self.backbone.resolution, self.backbone.size_multiple)
        sha256 = picture_sha256(image)
        styles = tuple(self._style(triple, region) for region in triple.regions)
        return Work(triple, image, size, sha256, self.adapters.content(sha256), styles, self._settings(styles))

    def _style(self, triple: Triple, region: StyleRegion) -> Style:
        adapter = self.adapters.style(region)
        prompt = region.prompt
        if prompt is None:
            prompt = self.prompt.replace("{lora_prompt}", adapter.prompt).replace(
                "{content_prompt}", triple.content_prompt
            )
        negative = self.negative_prompt if region.negative_prompt is None else region.negative_prompt
        guidance = self.guidance_scale if region.guidance_scale is None else region.guidance_scale
        return Style(region, adapter, prompt.strip(" ,"), negative, guidance)

    @torch.no_grad()
    def _find_masks(self, work: Work) -> Work:
        """The same work with the masks of its regions.

        Raises:
            NothingFoundError: a prompt finds nothing, and ``on_empty_mask`` is "error".
        """
        if all(isinstance(style.mask_prompt, Everything) for style in work.styles):
            return work
        prompts = [style.mask_prompt for style in work.styles]
        empty = {"error": None, "skip": 0.0, "whole": 1.0}[self.on_empty_mask]
        feather = self.feather * min(work.image.size)
        masks = find_masks(self.masker, work.image, prompts, feather=feather, empty=empty)
        settled = [None if bool((mask == 1).all()) else mask for mask in masks]
        return replace(work, styles=tuple(replace(s, mask=m) for s, m in zip(work.styles, settled, strict=True)))

    def _settings(self, styles: Sequence[Style]) -> dict:
        """What determines a picture besides its row."""
        masked = any(not isinstance(style.mask_prompt, Everything) for style in styles)
        masking = {"masker": self.masker.settings, "feather": self.feather, "on_empty_mask": self.on_empty_mask}
        return {
            "num_inference_steps": self.num_inference_steps,
            "inversion_steps": self._inversion_steps,
            "inversion_refinements": self.inversion_refinements,
            "injection": describe(self.injection),
            "initial": describe(self.initial),
            "fusion": describe(self.fusion),
            "keep_outside": self.keep_outside,
            **(masking if masked else {}),
            "content_lora": self.content_lora,
            "resolution": self.resolution or self.backbone.resolution,
            "rows_per_call": self.rows_per_call,
            "precision": str(self.trainer.precision),
            "model": self.backbone.identity(),
        }

    def _is_done(self, work: Work) -> bool:
        return self.writer is not None and self.writer.is_done(work.triple.id, work.key)

    @property
    def _inversion_steps(self) -> int:
        return self.inversion_steps or self.num_inference_steps

    @property
    def _data(self) -> TriplesToMake:
        return self.trainer.datamodule  # type: ignore[attr-defined]
