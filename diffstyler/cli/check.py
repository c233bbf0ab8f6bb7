"""Settings of a run in; whether it would run here, and what it would take, out. No weights are loaded."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import lightning
import psutil
import torch

from diffstyler.diffusion.denoiser import MOST_ROWS
from diffstyler.diffusion.injection import Injection
from diffstyler.diffusion.sampling import count_rows
from diffstyler.errors import RowsError, told_lines
from diffstyler.fit.data import FitData
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.masking.prompt import Everything
from diffstyler.masking.prompt_parser import parse_mask_prompt
from diffstyler.memory.forecast import FitForecast, PredictForecast, matrix_rate, network_rate, share_of_matrix_rate
from diffstyler.memory.plan import GIB, plan_fit, plan_predict
from diffstyler.predict.data import PredictData
from diffstyler.predict.stylizer import Stylizer
from diffstyler.types import NoiseLevel, Schedule, StyleRegion, Triple


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``problem`` where the run would fail because of it."""

    topic: str
    text: str
    problem: bool = False

    def __str__(self) -> str:
        return f"{'problem' if self.problem else 'ok':8} {self.topic:10} {self.text}"


def check_fit(finetuner: LoRAFinetuner, data: FitData, trainer: lightning.Trainer) -> Iterator[Finding]:
    """What a fit would find and take, one finding after another; later ones rest on earlier ones."""
    device = _attach(finetuner, data, trainer)

    def jobs() -> str:
        data.setup("fit")
        finetuner.setup("fit")
        done, total = len(finetuner.queue.finished), len(finetuner.queue.jobs)
        pictures = {path for picture in data.pictures for path in picture.paths}
        return f"{total} LoRAs of {len(pictures)} pictures, {done} of them are there, {total - done} to fit"

    def cost() -> Iterator[Finding]:
        forecast = finetuner.sizing.forecast()
        yield _attempt("memory", lambda: _fit_memory(finetuner, forecast, device))
        steps = [job.settings.steps for job in finetuner.queue.waiting]
        mean = sum(steps) / len(steps) if steps else trainer.max_steps
        at_once = max(1, min(finetuner.sizing.slots_wanted, len(steps))) if device.type == "cuda" else 1
        rows = at_once * finetuner.run.batch_size
        speed, guess = _speed(finetuner, forecast, device, finetuner.sizing.base_dtype, rows)
        seconds = forecast.flops(1, finetuner.run.batch_size) * mean / speed
        left = f"; {_duration(seconds * len(steps))} for the {len(steps)} that are left" if steps else ""
        yield Finding("time", f"{_pace(seconds, 'LoRA')}{left} ({guess})")

    yield from _look(device, finetuner, [{"pictures": jobs}], cost)


def check_predict(stylizer: Stylizer, data: PredictData, trainer: lightning.Trainer) -> Iterator[Finding]:
    """What a predict would find and take, one finding after another; later ones rest on earlier ones."""
    device = _attach(stylizer, data, trainer)

    def rows() -> str:
        data.setup("predict")
        if data.problems and data.on_error == "stop":
            told, data.problems = data.problems, []
            raise RowsError(told_lines(told))
        regions = sum(len(triple.regions) for triple in data.triples)
        return f"{len(data.triples)} pictures with {regions} regions"

    def loras() -> str:
        stylizer.setup("predict")
        return f"{len(stylizer.adapters.outlines)} found, and all mask prompts can be read"

    def cost() -> Iterator[Finding]:
        forecast = stylizer.forecast()
        yield _attempt("memory", lambda: _predict_memory(stylizer, forecast, device))
        pictures = len(data.triples)
        mean = network_rows(stylizer, data.triples) / pictures
        together = pictures if data.batch_size == "auto" else min(pictures, data.batch_size)
        rows = min(MOST_ROWS, 2 * together) if device.type == "cuda" else 3
        speed, guess = _speed(stylizer, forecast, device, stylizer.base_dtype, rows)
        seconds = mean * forecast.row_flops / speed
        whole = _duration(seconds * pictures)
        yield Finding("time", f"{mean:.0f} UNet rows a picture: {_pace(seconds, 'picture')}; {whole} in all ({guess})")

    yield from _look(device, stylizer, [{"manifest": rows}, {"LoRAs": loras}], cost)


#: what a row says of that: mask, guidance_scale, start, stop, inject_features, inject_attention
Deciding = tuple[str, float | None, float, float, float | None, float | None]


@dataclass(frozen=True)
class CountedRegion:
    """What of a region decides its rows."""

    covers_all: bool
    guidance_scale: float
    guidance_interval: tuple[float, float]
    start: float
    stop: float
    injection: Injection


def network_rows(stylizer: Stylizer, triples: Sequence[Triple]) -> int:
    """Rows through the UNet for these pictures: inversion of each content and style, sources and targets."""
    steps = stylizer.num_inference_steps
    timesteps = torch.arange(steps - 1, -1, -1) * (1000 // steps) + 1  # "leading" with offset 1, as every family has it
    schedule = Schedule(timesteps, (NoiseLevel(1.0, 0.0),) * (steps + 1), 1000)
    begin = next(iter(schedule)).time
    starts = {
        (row.style, row.style_mask) for triple in triples for row in triple.regions if row.stop < begin <= row.start
    }
    styles = len(starts) if stylizer.initial.needs_style else 0
    contents = len({triple.content for triple in triples})
    inversion = (contents * stylizer.inversion_steps + styles * steps) * (1 + stylizer.inversion_refinements)
    alike = Counter(tuple(map(_deciding, triple.regions)) for triple in triples)  # of a million, few kinds
    return inversion + sum(
        count * count_rows(_counted(stylizer, regions), schedule) for regions, count in alike.items()
    )


def _deciding(region: StyleRegion) -> Deciding:
    return (
        region.mask,
        region.guidance_scale,
        region.start,
        region.stop,
        region.inject_features,
        region.inject_attention,
    )


def _counted(stylizer: Stylizer, told: Sequence[Deciding]) -> list[CountedRegion]:
    regions = [
        CountedRegion(
            covers_all=isinstance(parse_mask_prompt(mask), Everything),
            guidance_scale=stylizer.guidance_scale if guidance_scale is None else guidance_scale,
            guidance_interval=stylizer.guidance_interval,
            start=start,
            stop=stop,
            injection=stylizer.injection.scheduled(features, attention),
        )
        for mask, guidance_scale, start, stop, features, attention in told
    ]
    if (outside := stylizer.fusion.outside) is not None:
        scale, interval = stylizer.guidance_scale, stylizer.guidance_interval
        regions.insert(0, CountedRegion(True, scale, interval, 1.0, 0.0, outside))
    return regions


def _attach(model: LoRAFinetuner | Stylizer, data: FitData | PredictData, trainer: lightning.Trainer) -> torch.device:
    """As the Trainer does at the start of a run -> the device of its first process."""
    model.trainer = data.trainer = trainer
    trainer.datamodule = data  # type: ignore[attr-defined]
    return trainer.strategy.root_device


def _look(
    device: torch.device,
    model: LoRAFinetuner | Stylizer,
    stages: list[dict[str, Callable[[], str]]],
    cost: Callable[[], Iterator[Finding]],
) -> Iterator[Finding]:
    """The device, the model and each stage's topics, up to a stage with a problem; then the cost, if there was none."""
    cpu = f"{device.type}, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    yield Finding("device", f"{name}, {_free(device) / GIB:.1f} GiB free")
    yield from _backends(model)
    found: list[Finding] = []
    for topics in [{"model": lambda: _model(model), **stages[0]}, *stages[1:]]:
        found += [_attempt(topic, look) for topic, look in topics.items()]
        yield from found[-len(topics) :]
        # rows that can be read are looked at, though others cannot
        if any(finding.problem for finding in found if finding.topic != "manifest"):
            return
    if any(finding.problem for finding in found):
        return
    try:
        yield from cost()
    except ValueError as error:
        yield Finding("forecast", f"none: {error}")


def _free(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _backends(model: LoRAFinetuner | Stylizer) -> Iterator[Finding]:
    attention = type(getattr(model.backbone, "attention", None)).__name__
    there = importlib.util.find_spec("xformers") is not None
    told = "xformers is not installed"
    if there:
        version = importlib.metadata.version("xformers")
        told = f"xformers {version} is installed, it is tried when the model is on its device"
    yield Finding("attention", f"{attention}; {told}", problem=attention == "XFormersAttention" and not there)
    if kind := model.backbone.settings.get("quantization"):
        missing = importlib.util.find_spec("bitsandbytes") is None
        hint = "needs bitsandbytes: install diffstyler[bitsandbytes]" if missing else "by bitsandbytes"
        yield Finding("base", f"{kind} {hint}", problem=missing)


def _model(model: LoRAFinetuner | Stylizer) -> str:
    model.backbone.check()
    identity = model.backbone.identity()
    return f"{identity['name']} is a {identity['family']}, sha256 {identity['sha256'][:12]}…"


def _fit_memory(finetuner: LoRAFinetuner, forecast: FitForecast, device: torch.device) -> str:
    ceiling = _ceiling(finetuner.max_memory, device)
    plan = plan_fit(forecast, ceiling, finetuner.run.batch_size, finetuner.sizing.slots_wanted)
    if plan.checkpointing and finetuner.max_memory is None and not finetuner.gradient_checkpointing:
        raise ValueError(
            f"one LoRA takes {forecast.bytes(1, finetuner.run.batch_size, checkpointing=False) / GIB:.2f} GiB by "
            f"forecast, {ceiling / GIB:.2f} are free; set model.gradient_checkpointing or model.max_memory"
        )
    return f"{plan}, {ceiling / GIB:.2f} GiB to have"


def _predict_memory(stylizer: Stylizer, forecast: PredictForecast, device: torch.device) -> str:
    ceiling = _ceiling(stylizer.max_memory, device)
    styles = stylizer.styles_at_once
    needed = forecast.bytes(3, styles)
    if stylizer.max_memory is None:
        if needed > ceiling:
            raise ValueError(
                f"{needed / GIB:.2f} GiB by forecast, {ceiling / GIB:.2f} are free; set model.max_memory to let the "
                "run be cut to fit"
            )
        return f"{needed / GIB:.2f} GiB forecast, {ceiling / GIB:.2f} GiB to have"
    return f"{plan_predict(forecast, ceiling, styles)}, {ceiling / GIB:.2f} GiB to have"


def _ceiling(gib: float | None, device: torch.device) -> float:
    """In bytes: what is free, or less where the run may not take all of it."""
    return min(_free(device), math.inf if gib is None else gib * GIB)


def _speed(
    model: LoRAFinetuner | Stylizer,
    forecast: FitForecast | PredictForecast,
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
) -> tuple[float, str]:
    """Operations a second that the UNet reaches here in calls of so many rows, and how that is known: measured on a
    CPU, where its room is.
    """
    if device.type == "cpu" and 2 * forecast.network_bytes < _free(device):
        return network_rate(model.backbone, forecast, dtype, rows), "measured for two seconds"
    rate, share = matrix_rate(device, dtype), share_of_matrix_rate(device, rows)
    return share * rate, f"a guess: {share:.0%} of this device's {rate / 1e12:.2f} TFLOP/s, in calls of {rows} rows"


def _pace(seconds: float, what: str) -> str:
    return f"about {_duration(seconds)} a {what}, {3600 / seconds:.0f} {what}s an hour"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _attempt(topic: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(topic, look())
    except (ValueError, OSError) as error:
        return Finding(topic, str(error), problem=True)
