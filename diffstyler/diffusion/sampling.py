"""Content trajectories and styled regions -> latents of the stylized pictures, by fused denoising."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from diffstyler.diffusion.ddim import clean_between
from diffstyler.diffusion.denoiser import Denoiser, Group, Row
from diffstyler.diffusion.fusion import FuseLatents, Fusion, shares
from diffstyler.diffusion.injection import Injection, NoInjection, Rates
from diffstyler.diffusion.matching import NoMatching, Part, StyleMatching
from diffstyler.diffusion.solver import DDIM, Before, Solver
from diffstyler.types import PromptEmbeds, Schedule, Step, Trajectory


class Rowed(Protocol):
    """What decides which rows a region costs at a step."""

    @property
    def covers_all(self) -> bool: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def guidance_interval(self) -> tuple[float, float]: ...
    @property
    def start(self) -> float: ...
    @property
    def stop(self) -> float: ...
    @property
    def injection(self) -> Injection: ...


@dataclass(frozen=True, eq=False)
class Region:
    """A style at work on a part of a picture.

    ``slot``: the style adapter in the pack, None for the base model. ``mask`` (h, w) in [0, 1] on the latent grid,
    1 = stylize; None = everywhere. Active at the times stop < t / T <= start, and guided at those within
    ``guidance_interval`` (low, high). ``injection``: how the content steers this style. ``source_prompt``: of a source
    row under this adapter, None where it is as without. ``cells`` (n,) int64: where the mask is, None = everywhere;
    ``look``: E(style picture), None where it is not known.
    """

    slot: int | None
    prompt: PromptEmbeds
    negative_prompt: PromptEmbeds
    guidance_scale: float
    strength: float = 1.0
    mask: torch.Tensor | None = None
    start: float = 1.0
    stop: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    injection: Injection = field(default_factory=NoInjection)
    source_prompt: PromptEmbeds | None = None
    cells: torch.Tensor | None = None
    look: Part | None = None

    @property
    def covers_all(self) -> bool:
        return self.mask is None

    def prompts(self, guided: bool) -> tuple[PromptEmbeds, ...]:
        """What its rows are told; without guidance the negative prompt has no say."""
        return (self.negative_prompt, self.prompt) if guided else (self.prompt,)


@dataclass(frozen=True)
class Canvas:
    """One picture to denoise: where it starts (C, h, w), the content's way, and its regions, later ones on top.

    ``content_slot``, ``source_prompt``: of the source row that all regions share; None = the base model, and the
    prompt that all pictures share.
    """

    latents: torch.Tensor
    content: Trajectory
    regions: tuple[Region, ...]
    content_slot: int | None = None
    source_prompt: PromptEmbeds | None = None


@dataclass(frozen=True)
class Steered:
    """Regions (by their place among all) that one source row steers at a step, each at its rates, ``guided`` or not.

    ``own_source``: the source row runs under the region's own style adapter.
    """

    regions: tuple[int, ...]
    rates: tuple[Rates, ...]
    guided: tuple[bool, ...]
    own_source: bool

    @property
    def has_source(self) -> bool:
        return any(rate.active for rate in self.rates)


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    canvases: Sequence[Canvas],
    schedule: Schedule,
    source_prompt: PromptEmbeds,
    fusion: Fusion | None = None,
    solver: Solver | None = None,
    matching: StyleMatching | None = None,
    *,
    on_step: Callable[[int], None] = lambda pictures: None,
    on_estimate: Callable[[Step, Sequence[torch.Tensor]], None] | None = None,
) -> list[torch.Tensor]:
    """Mask-wise DDIM denoising with cross-LoRA injection (the method) -> x_0 of each picture, (C, h, w).

    Args:
        denoiser: ε of the model under its adapters.
        canvases: pictures of equal latent size, made together.
        schedule: the sampling grid; every content trajectory holds its timesteps.
        source_prompt: one row, the conditioning of the source rows ("").
        fusion: how the regions and the content become one picture; by default latents are blended.
        solver: how the grid is walked down; by default DDIM.
        matching: what brings each region nearer to its style picture at each step; by default nothing does.
        on_step: is told after each step how many pictures took it.
        on_estimate: is shown after each step what x_0 each picture is on its way to by now, (C, h, w).
    """
    fusion = fusion if fusion is not None else FuseLatents()
    solver = solver if solver is not None else DDIM()
    matching = matching if matching is not None else NoMatching()
    before: dict[tuple[int, int], Before | None] = {}  # of each picture's regions
    x = [canvas.latents for canvas in canvases]
    ways = {id(canvas.content): canvas.content.on(schedule) for canvas in canvases}
    contents = [ways[id(canvas.content)] for canvas in canvases]
    with denoiser.injecting():
        for step in schedule:
            former = list(x)
            plans = [steered(canvas.regions, step) for canvas in canvases]
            z = {key: way.latents[step.index] for key, way in ways.items()}
            groups = [
                _group(x_t, z[id(canvas.content)], canvas, part, step, source_prompt)
                for x_t, canvas, plan in zip(x, canvases, plans, strict=True)
                for part in plan
            ]
            merged, places = share_sources(groups)
            made = denoiser(merged)
            noise_preds = iter([made[index][rows] for index, rows in places])
            for i, (canvas, plan) in enumerate(zip(canvases, plans, strict=True)):
                guided = {n: e for part in plan for n, e in _guided(next(noise_preds), canvas.regions, part)}
                for n, noise_pred in guided.items():
                    noise_pred = _matched(matching, canvas.regions[n], step, x[i], noise_pred, contents[i].clean)
                    guided[n], before[i, n] = solver(step, x[i], noise_pred, before.get((i, n)))
                weights = shares([canvas.regions[n].mask for n in sorted(guided)])
                x[i] = fusion(step, x[i], contents[i], [guided[n] for n in sorted(guided)], weights)
            on_step(len(canvases))
            if on_estimate is not None:
                ways_down = zip(former, x, strict=True)
                on_estimate(step, [clean_between(*way, step.level, step.level_to) for way in ways_down])
    return x


def steered(regions: Sequence[Rowed], step: Step) -> list[Steered]:
    """The rows of one picture at one step: the regions that are seen, with the source rows that steer them.

    A region below one that covers the whole picture is not seen. One source row, under the content adapter or the
    base, serves every region; only an injection that runs its source under the style's own adapter needs one for each.
    """
    seen: list[int] = []
    for n in reversed(range(len(regions))):
        if regions[n].stop < step.time <= regions[n].start:
            seen.insert(0, n)
            if regions[n].covers_all:
                break
    rates = {n: regions[n].injection.rates(step) for n in seen}
    shared = tuple(n for n in seen if not regions[n].injection.source_under_style)
    own = [(n,) for n in seen if n not in shared]
    return [
        Steered(
            members,
            tuple(rates[n] for n in members),
            tuple(_is_guided(regions[n], step) for n in members),
            own_source=members is not shared,
        )
        for members in ([shared] if shared else []) + own
    ]


def _is_guided(region: Rowed, step: Step) -> bool:
    """Guidance costs a row, and where it does nothing there is none (Kynkäänniemi et al. 2024: in an interval)."""
    low, high = region.guidance_interval
    return region.guidance_scale != 1 and low < step.time <= high


def share_sources(groups: Sequence[Group]) -> tuple[list[Group], list[tuple[int, slice]]]:
    """Groups whose source rows are the same become one -> these, and where each group's targets are among them."""
    sources: list[Row | None] = []
    targets: list[list[Row]] = []
    known: dict[tuple, int] = {}
    places = []
    for group in groups:
        source = group.source
        index = len(targets)
        if source is not None:
            key = id(source.latents), id(source.prompt), source.slot, source.strength
            index = known.setdefault(key, index)
        if index == len(targets):
            sources.append(source)
            targets.append([])
        places.append((index, slice(len(targets[index]), len(targets[index]) + len(group.targets))))
        targets[index] += group.targets
    return [Group(s, tuple(own)) for s, own in zip(sources, targets, strict=True)], places


def count_rows(regions: Sequence[Rowed], schedule: Schedule) -> int:
    """Rows through the network that denoising one picture takes: sources and targets."""
    parts = [part for step in schedule for part in steered(regions, step)]
    return sum(part.has_source + len(part.regions) + sum(part.guided) for part in parts)


def _group(
    x_t: torch.Tensor, z_t: torch.Tensor, canvas: Canvas, part: Steered, step: Step, source_prompt: PromptEmbeds
) -> Group:
    """A source row, and the negative and positive rows of the regions that it steers."""
    members = [canvas.regions[n] for n in part.regions]
    targets = tuple(
        Row(x_t, step.timestep, step.level, prompt, region.slot, region.strength, rate)
        for region, rate, guided in zip(members, part.rates, part.guided, strict=True)
        for prompt in region.prompts(guided)
    )
    if not part.has_source:
        return Group(None, targets)
    slot, strength, prompt = canvas.content_slot, 1.0, canvas.source_prompt
    if part.own_source:
        slot, strength, prompt = members[0].slot, members[0].strength, members[0].source_prompt
    told = source_prompt if prompt is None else prompt
    return Group(Row(z_t, step.timestep, step.level, told, slot, strength), targets)


def _guided(noise_preds: torch.Tensor, regions: Sequence[Region], part: Steered) -> Iterator[tuple[int, torch.Tensor]]:
    """ε_i = ε_neg + g_i (ε_pos − ε_neg) of each region (Ho and Salimans 2022)."""
    rows = iter(noise_preds)
    for n, guided in zip(part.regions, part.guided, strict=True):
        noise_pred = next(rows)
        if guided:
            noise_pred = noise_pred + regions[n].guidance_scale * (next(rows) - noise_pred)
        yield n, noise_pred


def _matched(
    matching: StyleMatching,
    region: Region,
    step: Step,
    x: torch.Tensor,
    noise_pred: torch.Tensor,
    content: torch.Tensor,
) -> torch.Tensor:
    """The ε that leads to the x_0 which ``matching`` makes of the predicted one."""
    if region.look is None or not matching.needs_style:
        return noise_pred
    clean = Part(step.level.clean(x, noise_pred), region.cells)
    moved = matching(step, clean, region.look, region.strength, content)
    return noise_pred if moved is clean.latents else step.level.noise(x, moved)
