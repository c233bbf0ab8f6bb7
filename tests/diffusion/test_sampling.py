"""The fused denoising: plain DDIM where nothing is special, and masks, guidance and batches that mean what they say."""

from dataclasses import replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffstyler.adapters import LoRAPack
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.fusion import FuseClean, FuseLatents, FuseNoise
from diffstyler.diffusion.initial import FromContent, FromContentAdaIN, FromStyle
from diffstyler.diffusion.injection import CrossLoRAInjection, NoInjection
from diffstyler.diffusion.inversion import Clean, invert
from diffstyler.diffusion.sampling import Canvas, Region, count_rows, denoise
from diffstyler.diffusion.solver import Before, DPMSolverMultistep
from diffstyler.fit.losses import MinSNRLoss, Noised
from diffstyler.memory.forecast import Shapes
from diffstyler.types import NoiseLevel, PromptEmbeds, Schedule, Step, Trajectory

STEPS = 3
LEFT = torch.zeros(8, 8).index_fill(1, torch.arange(4), 1)


@pytest.fixture
def denoiser(tiny) -> Denoiser:
    """With two random adapters."""
    pack = LoRAPack(tiny.unet, LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), 2)
    pack.flat.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    pack.scale.fill_(1)
    return Denoiser(tiny, pack)


@pytest.fixture
def schedule(tiny) -> Schedule:
    return tiny.sampling_schedule(STEPS)


def canvas(schedule: Schedule, *regions: Region, seed: int = 0) -> Canvas:
    """Random latents on a random way."""
    start, *way = torch.randn(len(schedule) + 2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Canvas(start, Trajectory(schedule.timesteps, torch.stack(way)), regions)


def region(tiny, slot: int | None = 0, guidance_scale: float = 1.0, **settings) -> Region:
    prompt, negative = tiny.encode_prompt(["a red tree"]), tiny.encode_prompt(["ugly"])
    return Region(slot, prompt, negative, guidance_scale, **settings)


def run(denoiser: Denoiser, schedule: Schedule, *canvases: Canvas, injection=None) -> list[torch.Tensor]:
    """Under ``injection`` in every region, where it is given."""
    source_prompt = denoiser.backbone.encode_prompt([""])
    if injection is not None:
        canvases = [replace(c, regions=tuple(replace(r, injection=injection) for r in c.regions)) for c in canvases]
    return denoise(denoiser, canvases, schedule, source_prompt)


def ddim(tiny, x: torch.Tensor, negative, positive, guidance_scale: float) -> torch.Tensor:
    """Plain guided sampling by diffusers' scheduler."""
    tiny.scheduler.set_timesteps(STEPS)
    for t in tiny.scheduler.timesteps:
        neg, pos = (tiny.unet(x[None], t, encoder_hidden_states=p.tokens).sample[0] for p in (negative, positive))
        x = tiny.scheduler.step(neg + guidance_scale * (pos - neg), t, x).prev_sample
    return x


@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
@pytest.mark.parametrize("tiny_dir", ["epsilon", "v_prediction"], indirect=True)
@torch.no_grad()
def test_base_without_injection_is_plain_ddim(tiny, denoiser, schedule, guidance_scale):
    style = region(tiny, None, guidance_scale)
    picture = canvas(schedule, style)
    expected = ddim(tiny, picture.latents, style.negative_prompt, style.prompt, guidance_scale)
    actual = run(denoiser, schedule, picture)[0]
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tiny_dir", ["epsilon", "v_prediction"], indirect=True)
@torch.no_grad()
def test_the_estimates_on_the_way_are_diffusers_own(tiny, denoiser, schedule):
    style = region(tiny, None)
    picture, seen = canvas(schedule, style), []
    (made,) = denoise(
        denoiser, [picture], schedule, tiny.encode_prompt([""]), on_estimate=lambda step, own: seen.extend(own)
    )
    assert torch.equal(made, run(denoiser, schedule, picture)[0])
    x, estimates = picture.latents, []
    tiny.scheduler.set_timesteps(STEPS)
    for t in tiny.scheduler.timesteps:
        output = tiny.unet(x[None], t, encoder_hidden_states=style.prompt.tokens).sample[0]
        stepped = tiny.scheduler.step(output, t, x)
        x = stepped.prev_sample
        estimates.append(stepped.pred_original_sample)
    torch.testing.assert_close(torch.stack(seen), torch.stack(estimates), atol=1e-3, rtol=1e-3)


def test_guidance_is_linear_in_the_scale(tiny, denoiser, schedule):
    one_step = schedule[:1]
    zero, one, three = (run(denoiser, one_step, canvas(one_step, region(tiny, 0, g)))[0] for g in (0, 1, 3))
    torch.testing.assert_close(three, zero + 3 * (one - zero), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(three, one, atol=1e-2)


@pytest.mark.parametrize("injection", [NoInjection(), CrossLoRAInjection(1, 1)], ids=["plain", "injected"])
def test_empty_mask_is_the_content(tiny, denoiser, schedule, injection):
    picture = canvas(schedule, region(tiny, 0, 3.0, mask=torch.zeros(8, 8)))
    assert torch.equal(run(denoiser, schedule, picture, injection=injection)[0], picture.content.clean)


def test_no_region_is_the_content(tiny, denoiser, schedule):
    picture = canvas(schedule)
    assert torch.equal(run(denoiser, schedule, picture)[0], picture.content.clean)


def test_full_mask_is_no_mask(tiny, denoiser, schedule):
    style = region(tiny, 0, 3.0)
    full, none = (canvas(schedule, replace(style, mask=mask)) for mask in (torch.ones(8, 8), None))
    assert torch.equal(run(denoiser, schedule, full)[0], run(denoiser, schedule, none)[0])


def test_outside_a_mask_is_the_content(tiny, denoiser, schedule):
    picture = canvas(schedule, region(tiny, 0, 3.0, mask=LEFT))
    result = run(denoiser, schedule, picture)[0]
    assert torch.equal(result[:, :, 4:], picture.content.clean[:, :, 4:])
    assert not torch.allclose(result[:, :, :4], picture.content.clean[:, :, :4], atol=1e-2)


def test_disjoint_regions_commute(tiny, denoiser, schedule):
    left, right = region(tiny, 0, 3.0, mask=LEFT), region(tiny, 1, mask=1 - LEFT)
    one, other = (run(denoiser, schedule, canvas(schedule, *pair))[0] for pair in [(left, right), (right, left)])
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_later_region_covers_an_earlier_one(tiny, denoiser, schedule):
    below, above = region(tiny, 0, 3.0), region(tiny, 1)
    only_below, only_above, both, covered = (
        run(denoiser, one_step, canvas(one_step, *regions))[0]
        for one_step in [schedule[:1]]
        for regions in [(below,), (above,), (below, replace(above, mask=LEFT)), (below, above)]
    )
    assert not torch.allclose(only_below, only_above, atol=1e-2)
    torch.testing.assert_close(both, torch.where(LEFT.bool(), only_above, only_below), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(covered, only_above, atol=1e-5, rtol=1e-4)


def test_a_soft_mask_mixes_with_the_content(tiny, denoiser, schedule):
    one_step = schedule[:1]
    style = region(tiny, 0)
    picture = canvas(one_step, style)
    soft = replace(picture, regions=(replace(style, mask=torch.full((8, 8), 0.3)),))
    expected = 0.3 * run(denoiser, one_step, picture)[0] + 0.7 * picture.content.clean
    torch.testing.assert_close(run(denoiser, one_step, soft)[0], expected, atol=1e-5, rtol=1e-4)


def test_a_late_style_starts_from_the_content(tiny, denoiser, schedule):
    assert schedule.timesteps.tolist() == [667, 334, 1]
    picture = canvas(schedule, region(tiny, 0, 3.0, start=0.5))
    late = replace(picture, latents=picture.content.at(334), regions=(region(tiny, 0, 3.0),))
    rest = schedule[1:]
    assert torch.equal(run(denoiser, schedule, picture)[0], run(denoiser, rest, late)[0])


def test_a_style_that_stops_hands_over(tiny, denoiser, schedule):
    first, second = region(tiny, 0, stop=0.5), region(tiny, 1, start=0.5)
    picture = canvas(schedule, first)
    assert torch.equal(run(denoiser, schedule, picture)[0], picture.content.clean)
    start, rest = (
        schedule[:1],
        schedule[1:],
    )
    half_way = run(denoiser, start, replace(picture, regions=(region(tiny, 0),)))[0]
    expected = run(denoiser, rest, replace(picture, latents=half_way, regions=(region(tiny, 1),)))[0]
    assert torch.equal(run(denoiser, schedule, replace(picture, regions=(first, second)))[0], expected)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_strength_acts(tiny, denoiser, schedule, strength):
    weak, full, base = (
        run(denoiser, schedule, canvas(schedule, r))[0]
        for r in (region(tiny, 0, strength=strength), region(tiny, 0), region(tiny, None))
    )
    assert not torch.allclose(weak, full, atol=1e-3)
    assert torch.equal(weak, base) == (strength == 0)


def test_a_picture_injected_with_itself_is_itself(tiny, denoiser, schedule):
    """Where source and target rows are the same rows, no rate changes anything."""
    style = replace(region(tiny, None), prompt=tiny.encode_prompt([""]))
    x, way = canvas(schedule).latents, []
    for k in range(STEPS):
        way.append(x)
        one_step = schedule[k : k + 1]
        x = run(denoiser, one_step, replace(canvas(one_step, style), latents=x))[0]
    picture = Canvas(way[0], Trajectory(schedule.timesteps, torch.stack([*way, x])), (style,))
    injected = run(denoiser, schedule, picture, injection=CrossLoRAInjection(1, 1))[0]
    torch.testing.assert_close(injected, x, atol=1e-5, rtol=1e-4)


def test_the_source_steers_and_the_fractions_count(tiny, denoiser, schedule):
    picture = canvas(schedule, region(tiny, 0, 3.0))
    results = [
        run(denoiser, schedule, picture, injection=CrossLoRAInjection(features, attention, adaptive=adaptive))[0]
        for features, attention, adaptive in [(0, 0, True), (1, 0, True), (0, 1, True), (0, 1, False), (0, 0.3, True)]
    ]
    assert torch.equal(results[0], run(denoiser, schedule, picture)[0])
    for index, one in enumerate(results):
        assert not any(torch.allclose(one, other, atol=1e-4) for other in results[:index])


def test_source_under_style(tiny, denoiser, schedule):
    injections = [CrossLoRAInjection(1, 1, source_under_style=under) for under in (False, True)]
    styled = canvas(schedule, region(tiny, 0, 3.0, mask=LEFT), region(tiny, 1, 1.0, mask=1 - LEFT))
    base = replace(styled, regions=tuple(replace(r, slot=None) for r in styled.regions))
    apart, under = (run(denoiser, schedule, styled, injection=injection)[0] for injection in injections)
    assert not torch.allclose(apart, under, atol=1e-3)
    same = [run(denoiser, schedule, base, injection=injection)[0] for injection in injections]
    torch.testing.assert_close(*same, atol=1e-5, rtol=1e-4)
    content = replace(styled, regions=styled.regions[:1], content_slot=0)
    as_content, as_style = (run(denoiser, schedule, content, injection=injection)[0] for injection in injections)
    assert torch.equal(as_content, as_style)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows_per_call", [2, 6])
def test_neighbors_never_matter_at_fixed_rows_per_call(tiny, denoiser, schedule, threads, rows_per_call):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fixed = Denoiser(tiny, denoiser.pack, rows_per_call=rows_per_call)
        one = canvas(schedule, region(tiny, 0, 3.0, mask=LEFT), region(tiny, 1, mask=1 - LEFT))
        two = canvas(schedule, region(tiny, 1, 2.0), seed=1)
        injection = CrossLoRAInjection(0.6, 0.6)
        alone, _, both, turned = (
            run(fixed, schedule, *canvases, injection=injection) for canvases in [[one], [two], [one, two], [two, one]]
        )
    finally:
        torch.set_num_threads(before)
    assert torch.equal(both[0], alone[0])
    assert torch.equal(turned[1], alone[0])
    assert torch.equal(turned[0], both[1])


def test_initial_latents():
    content, style = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0)) * 3 + 1
    style = style * torch.tensor([0.5, 1, 2, 3]).view(4, 1, 1) - 2
    assert torch.equal(FromContent()(content, None, 0), content)
    assert torch.equal(FromStyle()(content, style, 0), style)
    mixed = FromContentAdaIN()(content, style, 0)
    torch.testing.assert_close(mixed.mean((1, 2)), style.mean((1, 2)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mixed.std((1, 2)), style.std((1, 2)), atol=1e-4, rtol=1e-4)
    correlation = torch.corrcoef(torch.stack([mixed[0].flatten(), content[0].flatten()]))[0, 1]
    assert correlation.item() == pytest.approx(1, abs=1e-4)
    assert [kind.needs_style for kind in (FromContent, FromContentAdaIN, FromStyle)] == [False, True, True]


def test_initial_noise_keeps_the_variance_and_follows_the_seed():
    content = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0))
    noisy = FromContent(0.3)
    assert torch.equal(noisy(content, None, 1), noisy(content, None, 1))
    assert not torch.equal(noisy(content, None, 1), noisy(content, None, 2))
    assert noisy(content, None, 1).std().item() == pytest.approx(1, abs=0.03)
    share = (noisy(content, None, 1) * content).mean() / content.square().mean()
    assert share.item() == pytest.approx(0.7**0.5, abs=0.03)
    with pytest.raises(ValueError, match=r"a share in 0 … 1, got 1\.5"):
        FromContent(1.5)


class NoFloat64(TorchDispatchMode):
    """Of a device without float64, such as Apple's, for which the meta device stands in."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                assert tensor.dtype != torch.float64, func
        return output


@pytest.mark.parametrize(
    ("tiny_dir", "fusion"),
    [("v_prediction", FuseLatents()), ("epsilon", FuseLatents()), ("epsilon", FuseNoise()), ("epsilon", FuseClean())],
    indirect=["tiny_dir"],
)
def test_no_float64_reaches_the_device(tiny, schedule, fusion):
    tiny.to("meta")
    schedule = schedule[:2]
    prompt = PromptEmbeds(torch.zeros(1, 32, 32, device="meta"))
    picture, level = torch.zeros(4, 8, 8, device="meta"), torch.ones(8, 8, device="meta")
    with Shapes(), NoFloat64():
        (way,) = invert(Denoiser(tiny), [Clean(picture, prompt)], schedule, refinements=1)
        style = Region(None, prompt, prompt, 3.0, mask=level, injection=CrossLoRAInjection())
        denoise(Denoiser(tiny), [Canvas(picture, way, (style,))], schedule, prompt, fusion)
        timesteps = torch.tensor([3, 700])
        noised = Noised(picture, picture, tiny.noise_levels(timesteps).to(picture), tiny.prediction)
        MinSNRLoss()(picture.expand(2, -1, -1, -1), noised)


def test_a_region_below_one_that_covers_all_costs_no_rows(tiny, denoiser, schedule):
    outside, above = region(tiny, None, 3.0), region(tiny, 0, 3.0)
    left = replace(above, mask=LEFT)
    assert count_rows([outside, above], schedule) == count_rows([above], schedule) == 2 * STEPS
    assert count_rows([outside, left], schedule) == 4 * STEPS
    rows = []
    tiny.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    run(denoiser, schedule, canvas(schedule, outside, above))
    assert sum(rows) == 2 * STEPS


def test_pictures_of_one_content_share_its_source_rows(tiny, denoiser, schedule):
    """One source row serves all styles of a content in a batch; none, where the contents or their prompts differ."""
    injection = CrossLoRAInjection(1.0, 1.0)
    one = canvas(schedule, region(tiny, 0, injection=injection))
    styles = [one, replace(one, regions=(region(tiny, 1, injection=injection),))]
    other = canvas(schedule, region(tiny, 1, injection=injection), seed=1)
    told = replace(styles[1], source_prompt=tiny.encode_prompt(["blue"]))
    alone = [run(denoiser, schedule, picture)[0] for picture in (*styles, other, told)]
    rows = []
    handle = tiny.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    for pictures, count in (((0, 1), 3), ((0, 2), 4), ((0, 3), 4)):
        rows.clear()
        made = run(denoiser, schedule, *[[*styles, other, told][n] for n in pictures])
        assert rows == [count] * STEPS
        for actual, n in zip(made, pictures, strict=True):
            torch.testing.assert_close(actual, alone[n], atol=1e-4, rtol=1e-4)
    handle.remove()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' scheduler
@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("tiny_dir", ["epsilon", "v_prediction"], indirect=True)
@torch.no_grad()
def test_the_multistep_solver_is_diffusers(tiny, denoiser, steps):
    schedule = tiny.sampling_schedule(steps)
    style = region(tiny, None, 3.0)
    picture = canvas(schedule, style)
    scheduler = DPMSolverMultistepScheduler.from_config(tiny.scheduler.config, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(timesteps=schedule.timesteps.tolist())
    x = picture.latents
    for t in scheduler.timesteps:
        neg, pos = (
            tiny.unet(x[None], t, encoder_hidden_states=p.tokens).sample[0]
            for p in (style.negative_prompt, style.prompt)
        )
        x = scheduler.step(neg + 3.0 * (pos - neg), t, x).prev_sample
    made = denoise(denoiser, [picture], schedule, tiny.encode_prompt([""]), solver=DPMSolverMultistep())[0]
    torch.testing.assert_close(made, x, atol=2e-4, rtol=2e-4)


def test_the_multistep_solver_starts_where_there_is_no_signal():
    """Zero terminal SNR: the step after it goes by its own x0 alone."""
    nothing, some, more = NoiseLevel(0.0, 1.0), NoiseLevel(0.6, 0.8), NoiseLevel(0.8, 0.6)
    x, noise_pred, clean = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    step = Step(1, 20, 900, 0.9, some, more)
    effective, _ = DPMSolverMultistep()(step, x, noise_pred, Before(nothing, clean))
    torch.testing.assert_close(effective, noise_pred, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_guidance_costs_rows_in_its_interval_alone(tiny, denoiser, monkeypatch):
    """Outside it, what it gives is what no guidance gives."""
    schedule = tiny.sampling_schedule(6)
    times = [step.time for step in schedule]
    early = (times[3], 1.0)  # the first three steps
    picture = canvas(schedule, region(tiny, 0, 3.0, guidance_interval=early))
    rows, predict = [], type(tiny).predict
    monkeypatch.setattr(
        type(tiny), "predict", lambda m, latents, *more: rows.append(len(latents)) or predict(m, latents, *more)
    )
    guided = run(denoiser, schedule, picture)[0]
    assert rows == [2, 2, 2, 1, 1, 1]
    assert count_rows(picture.regions, schedule) == sum(rows)
    whole = run(denoiser, schedule[:3], canvas(schedule, region(tiny, 0, 3.0)))[0]
    rest = replace(picture, latents=whole, regions=(region(tiny, 0, 1.0),))
    torch.testing.assert_close(guided, run(denoiser, schedule[3:], rest)[0], atol=1e-5, rtol=1e-4)
