"""The denoiser: how rows are cut into calls never shows in the result."""

import pytest
import torch
from peft import LoraConfig
from torch.nn import functional

from diffstyler.adapters import LoRAPack, Rows
from diffstyler.diffusion.ddim import ddim_step
from diffstyler.diffusion.denoiser import Denoiser, Group, Row
from diffstyler.diffusion.injection import Rates
from diffstyler.types import NoiseLevel

PROMPTS = ["", "a red tree", "blue", "a cat", "night"]


def random_pack(tiny, slots: int = 2) -> LoRAPack:
    pack = LoRAPack(tiny.unet, LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), slots)
    pack.flat.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    pack.scale.fill_(1)
    return pack


def rows(tiny, count: int, rates: Rates, seed: int = 0) -> list[Row]:
    """Rows that differ in latents, prompt and slot (None, 0, 1, None, …)."""
    level = NoiseLevel(0.6, 0.8)
    latents = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    prompts = tiny.encode_prompt(PROMPTS[:count])
    slots = (None, 0, 1, None, 0)
    return [Row(x, 501, level, prompts[[i]], slots[i], 0.8, rates) for i, x in enumerate(latents)]


def group(tiny, targets: int, seed: int = 0) -> Group:
    source, *others = rows(tiny, targets + 1, Rates(1.0, 0.5), seed)
    return Group(source, tuple(others))


@pytest.mark.parametrize(("limit", "calls"), [(None, [9]), (2, [2] * 6), (3, [3] * 4), (4, [4] * 3), (9, [9])])
@torch.no_grad()
def test_chunks_equal_the_whole(tiny, limit, calls):
    groups = [group(tiny, 4), Group(None, tuple(rows(tiny, 2, Rates(0.0, 0.0), seed=5))), group(tiny, 1, seed=7)]
    pack = random_pack(tiny)
    whole = Denoiser(tiny, pack)
    with whole.injecting():
        expected = [torch.cat([whole([Group(g.source, (target,))])[0] for target in g.targets]) for g in groups]
    sizes = []
    tiny.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    chunked = Denoiser(tiny, pack, rows_per_call=limit)
    with chunked.injecting():
        actual = chunked(groups)
    assert [len(noise_pred) for noise_pred in actual] == [4, 2, 1]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    assert sizes == calls


@torch.no_grad()
def test_each_row_runs_under_its_own_adapter_and_level(tiny):
    pack, targets = random_pack(tiny), rows(tiny, 4, Rates(0.0, 0.0))
    noise_pred = Denoiser(tiny, pack)([Group(None, tuple(targets))])[0]
    for row, actual in zip(targets, noise_pred, strict=True):
        alone = (row.latents[None], torch.tensor([row.timestep]), row.prompt)
        if row.slot is None:
            expected = tiny.predict(*alone)
        else:
            with pack.rows(Rows(torch.tensor([row.slot]), torch.tensor([row.strength]))):
                expected = tiny.predict(*alone)
        torch.testing.assert_close(actual, expected[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_sources_act_inside_injecting_only(tiny):
    steered = group(tiny, 2)
    denoiser = Denoiser(tiny)
    outside = denoiser([steered])[0]
    with denoiser.injecting():
        inside = denoiser([steered])[0]
    assert not torch.allclose(inside, outside, atol=1e-3)
    assert torch.equal(denoiser([steered])[0], outside)
    assert not any(module._forward_hooks for module in tiny.unet.modules())


@pytest.mark.parametrize("plain_sites", [True, False])
@torch.no_grad()
def test_plain_sites_keep_their_self_attention(tiny, plain_sites):
    denoiser = Denoiser(tiny, random_pack(tiny), plain_sites=plain_sites)
    projections = {
        f"{block}.{name}": tiny.unet.get_submodule(f"{block}.{name}")
        for site in tiny.sites.attention
        for block in (site, site.replace("attn1", "attn2"))
        for name in ("to_q", "to_k", "to_v", "to_out.0")
    }
    plain = {}
    for name, module in projections.items():
        module.register_forward_hook(
            lambda m, args, output, name=name: plain.update(
                {name: torch.equal(functional.linear(args[0], m.weight, m.bias), output)}
            )
        )
    denoiser([Group(None, (rows(tiny, 2, Rates(0.0, 0.0))[1],))])
    assert plain == {name: plain_sites and ".attn1." in name for name in projections}


@pytest.mark.parametrize("limit", [1, 0, -3])
def test_too_few_rows_a_call(tiny, limit):
    with pytest.raises(ValueError, match=f"rows_per_call: expected at least 2 .*, got {limit}"):
        Denoiser(tiny, rows_per_call=limit)


@pytest.mark.parametrize("tiny_dir", ["epsilon", "v_prediction"], indirect=True)
def test_ddim_step_is_the_schedulers(tiny):
    x, output = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule = tiny.sampling_schedule(4)
    for step in schedule:
        noise_pred = tiny.prediction.noise(output, x, step.level)
        expected = tiny.scheduler.step(output, step.timestep, x).prev_sample
        actual = ddim_step(x, noise_pred, step.level, step.level_to)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_an_error_leaves_no_hooks(tiny):
    denoiser = Denoiser(tiny)
    with pytest.raises(KeyError), denoiser.injecting():
        raise KeyError
    assert not any(module._forward_hooks for module in tiny.unet.modules())
    source, target = rows(tiny, 2, Rates(1.0, 1.0))
    plain = denoiser([Group(None, (target,))])[0]
    torch.testing.assert_close(denoiser([Group(source, (target,))])[0], plain, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_where_memory_ends_calls_are_halved(tiny, monkeypatch, caplog):
    groups, pack = [group(tiny, 4), group(tiny, 2, seed=7)], random_pack(tiny)
    whole = Denoiser(tiny, pack)
    with whole.injecting():
        expected = whole(groups)
    sizes, predict = [], type(tiny).predict

    def short_of_memory(model, latents, *more):
        sizes.append(len(latents))
        if len(latents) > 3:
            raise torch.cuda.OutOfMemoryError
        return predict(model, latents, *more)

    monkeypatch.setattr(type(tiny), "predict", short_of_memory)
    denoiser = Denoiser(tiny, pack)
    with denoiser.injecting():
        torch.testing.assert_close(denoiser(groups), expected, atol=1e-5, rtol=1e-4)
        tried = list(sizes)
        torch.testing.assert_close(denoiser(groups), expected, atol=1e-5, rtol=1e-4)
    assert tried[:2] == [8, 4]
    assert set(tried[2:]) == {2}
    assert set(sizes[len(tried) :]) == {2}  # it is not tried again
    assert [r.message for r in caplog.records if "memory" in r.message]

    def none_left(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(type(tiny), "predict", none_left)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        denoiser(groups)
