"""Triples -> stylized pictures: inversion, injection and mask-wise denoising (the method)."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Literal, Protocol

import lightning
import torch
from peft import LoraConfig

from diffstyler.adapters import LoRALibrary, LoRAPack, read_lora, read_record
from diffstyler.backbones import Backbone, StableDiffusion
from diffstyler.denoiser import Denoiser
from diffstyler.images import file_sha256, fit_size, is_picture, load_image, picture_sha256, to_tensor
from diffstyler.injection import CrossLoRAInjection, Injection
from diffstyler.inversion import TrajectoryCache, invert
from diffstyler.sampling import Canvas, FromContentAdaIN, InitialLatents, Region, denoise
from diffstyler.types import Failed, PromptEmbeds, StyleRegion, Stylized, Trajectory, Triple
from diffstyler.writer import StylizationWriter, request_key

log = logging.getLogger(__name__)

VERSIONS = ("diffstyler", "torch", "diffusers", "peft", "lightning", "transformers")


class TriplesToMake(Protocol):
    """What the stylizer reads from the data module."""

    triples: Sequence[Triple]


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA that the run needs: its file, that file's sha256, and the prompt it was fitted with."""

    path: Path
    sha256: str
    prompt: str
    rank: int
    modules: frozenset[str]
    scale: float


class MissingLoRAError(ValueError):
    """Pictures without a LoRA; the text lists them all and the command that makes them."""


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
        resolution: short side, in pixels, that contents are worked on at; None = the model's.
        rows_per_call: rows in every UNet call, idle ones padded, so that a picture does not depend on its batch (on a
            CPU bitwise, by one thread). None = all rows of a batch in one call.
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
        content_lora: Literal["found", "required", "off"] = "found",
        resolution: int | None = None,
        rows_per_call: int | None = None,
    ) -> None:
        super().__init__()
        if num_inference_steps < 1:
            raise ValueError(f"model.num_inference_steps: expected at least 1, got {num_inference_steps}")
        if rows_per_call is not None and rows_per_call < 2:
            raise ValueError(f"model.rows_per_call: expected at least 2, got {rows_per_call}")
        self.backbone = backbone if backbone is not None else StableDiffusion()
        self.library = LoRALibrary(lora_dir)
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
        self.content_lora = content_lora
        self.resolution = resolution
        self.rows_per_call = rows_per_call
        self.adapters: dict[Path, AdapterFile] = {}
        self.pack: LoRAPack | None = None
        self._packed: tuple[Path, ...] = ()
        self._prompts: dict[str, PromptEmbeds] = {}

    # ---- the method

    def predict_step(self, batch: list[Triple], batch_idx: int) -> list[Stylized | Failed]:
        """Pictures of one batch: those of equal size are made together."""
        outcomes: list[Stylized | Failed] = []
        works = []
        for triple in batch:
            try:
                works.append(self._prepare(triple))
            except (ValueError, OSError) as error:
                outcomes.append(Failed(triple.id, triple.origin, str(error)))
        works = [work for work in works if not self._is_done(work)]
        for _, same_size in groupby(sorted(works, key=lambda w: w.pixels.shape[1:]), key=lambda w: w.pixels.shape[1:]):
            outcomes += self._stylize(list(same_size))
        return outcomes

    @torch.no_grad()
    def _stylize(self, works: list[Work]) -> list[Stylized]:
        """the method, for pictures of equal size."""
        started = time.perf_counter()
        self._load_adapters(works)
        denoiser = Denoiser(
            self.backbone,
            self.pack,
            rows_per_call=self.rows_per_call,
            plain_sites=self.injection.plain_self_attention_at_sites,
        )
        schedule = self.backbone.sampling_schedule(self.num_inference_steps)
        contents = [
            self._invert(denoiser, work.pixels, work.content_sha256, work.content_adapter, self._inversion_steps)
            for work in works
        ]
        canvases = [self._canvas(denoiser, w, content) for w, content in zip(works, contents, strict=True)]
        latents = denoise(denoiser, canvases, schedule, self.injection, self._embed(""))
        pictures = [self.backbone.decode_latents(x_0[None])[0] for x_0 in latents]
        seconds = (time.perf_counter() - started) / len(works)
        return [_finish(work, pixels, seconds) for work, pixels in zip(works, pictures, strict=True)]

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
        }
        known = self.cache.get(key)
        if known is None:
            z_0 = self.backbone.encode_image(pixels[None].to(self.device))[0]
            known = invert(
                denoiser,
                [z_0],
                self.backbone.sampling_schedule(steps),
                self._embed(""),
                slot=self._slot(adapter),
                refinements=self.inversion_refinements,
            )[0]
            self.cache.put(key, known)
        return Trajectory(known.timesteps, known.latents.to(self.device))

    def _canvas(self, denoiser: Denoiser, work: Work, content: Trajectory) -> Canvas:
        """x_T, the content's way, and the regions as tensors."""
        regions = tuple(
            Region(
                slot=self._slot(style.adapter),
                prompt=self._embed(style.prompt),
                negative_prompt=self._embed(style.negative_prompt),
                guidance_scale=style.guidance_scale,
                strength=style.region.strength,
                start=style.region.start,
                stop=style.region.stop,
            )
            for style in work.styles
        )
        x = content.at(int(self.backbone.sampling_schedule(self.num_inference_steps).timesteps[0]))
        for style, region in zip(work.styles, regions, strict=True):
            start = self.initial(x, self._invert_style(denoiser, work, style), work.triple.seed)
            x = start if region.mask is None else torch.lerp(x, start, region.mask)
        return Canvas(x, content, regions, self._slot(work.content_adapter))

    def _invert_style(self, denoiser: Denoiser, work: Work, style: Style) -> torch.Tensor | None:
        """z_T^s under the style's own LoRA, where the initial latents need it."""
        if not self.initial.needs_style:
            return None
        image = load_image(_style_picture(style.region.style))
        pixels = to_tensor(image, (work.pixels.shape[1], work.pixels.shape[2]))
        return self._invert(denoiser, pixels, picture_sha256(image), style.adapter, self.num_inference_steps).latents[0]

    # ---- before and around it

    def setup(self, stage: str) -> None:
        """Find every LoRA before anything is computed.

        Raises:
            MissingLoRAError: some pictures have none.
            ValueError: a LoRA file is damaged, or several LoRAs fit one picture.
        """
        triples = self._data.triples
        _check_masks(triples)
        if self.initial.needs_style:
            for path in dict.fromkeys(region.style for triple in triples for region in triple.regions):
                if not _style_picture(path).is_file():
                    raise ValueError(
                        f"{path}: model.initial {type(self.initial).__name__} inverts the style picture, and this LoRA "
                        "has none beside it; name the picture, or set model.initial to FromContent"
                    )
        self._find_adapters(triples)

    def configure_model(self) -> None:
        if "unet" not in self.backbone._modules:
            dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "64-true": torch.float64}
            self.backbone.load(dtypes.get(str(self.trainer.precision), torch.float32))

    def transfer_batch_to_device(self, batch: list[Triple], device: torch.device, dataloader_idx: int) -> list[Triple]:
        return batch  # paths and words: the pictures go to the device when they are read

    def configure_callbacks(self) -> list[lightning.Callback]:
        return [self.writer] if self.writer is not None else []

    def on_predict_start(self) -> None:
        """Raises:
        ValueError: the inversion's grid does not hold the sampling grid's timesteps.
        """
        grids = [self.backbone.sampling_schedule(n) for n in (self.num_inference_steps, self._inversion_steps)]
        sampling, inversion = (set(grid.timesteps.tolist()) for grid in grids)
        if not sampling <= inversion:
            raise ValueError(
                f"model.inversion_steps {self.inversion_steps}: its grid misses {len(sampling - inversion)} of the "
                f"{self.num_inference_steps} sampling timesteps; use 999, or leave it out"
            )

    def on_predict_end(self) -> None:
        if self.pack is not None:
            self.pack.detach()
            self.pack, self._packed = None, ()

    def _prepare(self, triple: Triple) -> Work:
        """Read the content and settle every setting of one picture."""
        image = load_image(triple.content)
        size = fit_size(image.size, self.resolution or self.backbone.resolution, self.backbone.size_multiple)
        sha256 = picture_sha256(image)
        content_adapter = self._resolved.get(("content", sha256))
        styles = tuple(self._style(triple, region) for region in triple.regions)
        return Work(triple, to_tensor(image, size), image.size, sha256, content_adapter, styles, self._settings())

    def _style(self, triple: Triple, region: StyleRegion) -> Style:
        adapter = self._styles[region.style]
        prompt = region.prompt
        if prompt is None:
            prompt = self.prompt.replace("{lora_prompt}", adapter.prompt).replace(
                "{content_prompt}", triple.content_prompt
            )
        negative = self.negative_prompt if region.negative_prompt is None else region.negative_prompt
        guidance = self.guidance_scale if region.guidance_scale is None else region.guidance_scale
        return Style(region, adapter, prompt.strip(" ,"), negative, guidance)

    def _settings(self) -> dict:
        """What determines a picture besides its row."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "inversion_steps": self._inversion_steps,
            "inversion_refinements": self.inversion_refinements,
            "injection": {"class": type(self.injection).__name__, **vars(self.injection)},
            "initial": {"class": type(self.initial).__name__, **vars(self.initial)},
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

    def _embed(self, prompt: str) -> PromptEmbeds:
        if prompt not in self._prompts:
            self._prompts[prompt] = self.backbone.encode_prompt([prompt])
        return self._prompts[prompt]

    # ---- adapters

    def _find_adapters(self, triples: Sequence[Triple]) -> None:
        """Resolve every style (and content) picture to its LoRA file; read and check each once."""
        self._styles: dict[Path, AdapterFile] = {}
        self._resolved: dict[tuple[str, str], AdapterFile] = {}
        missing: dict[str, list[Path]] = {}
        for path in dict.fromkeys(region.style for triple in triples for region in triple.regions):
            adapter = self._read_adapter(path) if not is_picture(path) else self._look_up("style", path)
            if adapter is None:
                missing.setdefault("style", []).append(path)
            else:
                self._styles[path] = adapter
        if self.content_lora != "off":
            for path in _readable(dict.fromkeys(triple.content for triple in triples)):
                if self._look_up("content", path) is None and self.content_lora == "required":
                    missing.setdefault("content", []).append(path)
        if missing:
            raise MissingLoRAError(self._missing_text(missing))

    def _look_up(self, role: str, picture: Path) -> AdapterFile | None:
        sha256 = picture_sha256(load_image(picture))
        if (role, sha256) in self._resolved:
            return self._resolved[(role, sha256)]
        model = self.backbone.fingerprint()
        found = [
            entry
            for entry in self.library.entries()
            if (entry.identity.role, entry.identity.picture, entry.identity.model) == (role, sha256, model)
        ]
        if len(found) > 1:
            names = ", ".join(str(entry.folder) for entry in found)
            raise ValueError(
                f"{picture} has {len(found)} {role} LoRAs of different settings: {names}; name one of these folders in "
                "the manifest's style column, or use another lora_dir"
            )
        if not found:
            return None
        self._resolved[(role, sha256)] = adapter = self._read_adapter(found[0].folder)
        return adapter

    def _read_adapter(self, path: Path) -> AdapterFile:
        lora = read_lora(path)
        is_ours = path.is_dir() and (path / "diffstyler.json").is_file()
        prompt = read_record(path).prompt if is_ours else ""
        modules = frozenset(key.rsplit(".lora_", 1)[0] for key in lora.state)
        adapter = AdapterFile(lora.path, file_sha256(lora.path), prompt, lora.rank, modules, lora.scale)
        self.adapters[lora.path] = adapter
        return adapter

    def _load_adapters(self, works: list[Work]) -> None:
        """Bring the LoRAs of these pictures into the pack; its rank and modules are those of the whole run."""
        wanted = {style.adapter.path for work in works for style in work.styles}
        wanted |= {work.content_adapter.path for work in works if work.content_adapter}
        if wanted <= set(self._packed):
            return
        if self.pack is not None:
            self.pack.detach()
        rank = max(adapter.rank for adapter in self.adapters.values())
        modules = sorted({name for adapter in self.adapters.values() for name in adapter.modules})
        self._packed = tuple(sorted(wanted))
        config = LoraConfig(r=rank, target_modules=modules)
        self.pack = LoRAPack(self.backbone.unet, config, len(self._packed), device=self.device)
        for slot, path in enumerate(self._packed):
            self.pack.load_slot(slot, read_lora(path).state, scale=self.adapters[path].scale)

    def _slot(self, adapter: AdapterFile | None) -> int | None:
        return None if adapter is None else self._packed.index(adapter.path)

    def _missing_text(self, missing: dict[str, list[Path]]) -> str:
        lines = []
        for role, paths in missing.items():
            lines += [
                f"{len(paths)} {role} pictures have no LoRA in {self.library.lora_dir}:",
                *(f"  {p}" for p in paths),
            ]
            arguments = ["--data.manifest", str(m)] if (m := getattr(self._data, "manifest", None)) else []
            command = ["diffstyler", "fit", "--config", f"configs/{role}.yaml", *arguments]
            command += ["--lora_dir", str(self.library.lora_dir)]
            lines += ["make them with", "  " + shlex.join(command)]
        return "\n".join(lines)

    @property
    def _data(self) -> TriplesToMake:
        return self.trainer.datamodule  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Style:
    """A region of the manifest with every setting settled."""

    region: StyleRegion
    adapter: AdapterFile
    prompt: str
    negative_prompt: str
    guidance_scale: float

    def describe(self) -> dict:
        picture = {"path": str(self.region.style)}
        if is_picture(self.region.style):
            picture["sha256"] = file_sha256(self.region.style)
        described = {key: value for key, value in asdict(self.region).items() if key != "style"}
        lora = {"path": str(self.adapter.path), "sha256": self.adapter.sha256}
        settled = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "guidance_scale": self.guidance_scale,
        }
        return {**described, **settled, "style": picture, "lora": lora}


@dataclass(frozen=True)
class Work:
    """A triple made ready: ``pixels`` (3, H, W) in [-1, 1] at working size; ``size`` (width, height) of the content."""

    triple: Triple
    pixels: torch.Tensor
    size: tuple[int, int]
    content_sha256: str
    content_adapter: AdapterFile | None
    styles: tuple[Style, ...]
    settings: dict

    @property
    def request(self) -> dict:
        """Everything that determines the picture."""
        return {
            "content": self.content_sha256,
            "content_adapter": self.content_adapter.sha256 if self.content_adapter else None,
            "regions": [
                {**asdict(s.region), "style": _style_sha256(s.region.style), "lora": s.adapter.sha256,
                 "prompt": s.prompt, "negative_prompt": s.negative_prompt, "guidance_scale": s.guidance_scale}
                for s in self.styles
            ],
            "seed": self.triple.seed,
            "settings": self.settings,
        }  # fmt: skip

    @property
    def key(self) -> str:
        return request_key(self.request)


def _finish(work: Work, pixels: torch.Tensor, seconds: float) -> Stylized:
    """The picture at the content's own size, and everything needed to repeat it."""
    width, height = work.size
    full = torch.nn.functional.interpolate(
        pixels[None].cpu(), (height, width), mode="bicubic", antialias=True, align_corners=False
    )[0].clamp(-1, 1)  # fmt: skip
    provenance = {
        "id": work.triple.id,
        "key": work.key,
        "content": {
            "path": str(work.triple.content),
            "sha256": work.content_sha256,
            "prompt": work.triple.content_prompt,
        },
        "content_lora": str(work.content_adapter.path) if work.content_adapter else None,
        "regions": [style.describe() for style in work.styles],
        "result": f"{work.triple.id}.png",
        "settings": work.settings,
        "seed": work.triple.seed,
        "seconds": round(seconds, 3),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in VERSIONS}},
    }
    return Stylized(work.triple.id, full, provenance)


def _style_picture(style: Path) -> Path:
    """The picture itself, or the thumbnail in a LoRA's folder."""
    return style if is_picture(style) else (style if style.is_dir() else style.parent) / "thumbnail.png"


def _style_sha256(style: Path) -> str | None:
    """Of the picture that the initial latents may take statistics from."""
    picture = _style_picture(style)
    return file_sha256(picture) if picture.is_file() else None


def _readable(paths: Iterable[Path]) -> Iterator[Path]:
    """Those that open as pictures; the others fail with their rows."""
    for path in paths:
        try:
            load_image(path)
        except (ValueError, OSError):
            continue
        yield path


def _check_masks(triples: Sequence[Triple]) -> None:
    for triple in triples:
        for region in triple.regions:
            if region.mask != "everything":
                raise ValueError(f"{triple.origin or triple.id}: mask '{region.mask}': only 'everything' is known")
