"""Injection: exact where it acts, nothing where it does not, no trace afterwards."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffstyler.diffusion.injection import CrossLoRAInjection, NoInjection, Rates, RowSources, inject
from diffstyler.types import NoiseLevel, Step


def at(index: int) -> Step:
    timestep = 981 - 20 * index
    return Step(index, 50, timestep, timestep / 1000, NoiseLevel(0.6, 0.8), NoiseLevel(0.8, 0.6))


def forward(tiny):
    """Two rows with different latents and prompts at one timestep."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return tiny.predict(latents, torch.tensor([501, 501]), tiny.encode_prompt(["", "a red tree"]))


def steer(features: float, attention: float) -> RowSources:
    """Row 1 takes from row 0."""
    return RowSources(torch.tensor([0, 0]), torch.tensor([0, features]), torch.tensor([0, attention]))


def record(module: nn.Module, into: list[torch.Tensor]) -> None:
    module.register_forward_hook(lambda module, args, output: into.append(output.clone()))


def test_hooks_act_inside_and_leave_no_trace(tiny):
    before = forward(tiny)
    with inject(tiny.unet, tiny.sites) as hooks:
        assert torch.equal(forward(tiny), before)  # no rows set: hooks do nothing
        hooks.rows = steer(1, 1)
        inside = forward(tiny)
    assert torch.equal(inside[0], before[0])
    assert not torch.allclose(inside[1], before[1], atol=1e-3)
    assert torch.equal(forward(tiny), before)
    assert not any(module._forward_hooks for module in tiny.unet.modules())


def test_zero_rates_equal_no_hooks(tiny):
    before = forward(tiny)
    with inject(tiny.unet, tiny.sites) as hooks:
        hooks.rows = steer(0, 0)
        assert torch.equal(forward(tiny), before)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_values_are_blended_with_the_source_at_every_site(tiny, rate):
    projections = [getattr(tiny.unet.get_submodule(s), name) for s in tiny.sites.attention for name in ("to_q", "to_k")]
    sites = [*projections, *(tiny.unet.get_submodule(s) for s in tiny.sites.features)]
    own, blended = [[] for _ in sites], [[] for _ in sites]
    for module, into in zip(sites, own, strict=True):
        record(module, into)
    with inject(tiny.unet, tiny.sites) as hooks:
        for module, into in zip(sites, blended, strict=True):
            record(module, into)
        hooks.rows = steer(rate, rate)
        forward(tiny)
    assert len(sites) == 17
    for (mine,), (value,) in zip(own, blended, strict=True):
        assert torch.equal(value[0], mine[0])
        assert not torch.allclose(mine[1], mine[0])
        torch.testing.assert_close(value[1], rate * mine[0] + (1 - rate) * mine[1])
        assert rate < 1 or torch.equal(value[1], mine[0])


def test_values_of_attention_stay_the_targets_own(tiny):
    values = []
    record(tiny.unet.get_submodule(tiny.sites.attention[0]).to_v, values)
    with inject(tiny.unet, tiny.sites) as hooks:
        hooks.rows = steer(0, 1)
        forward(tiny)
    assert not torch.allclose(values[0][0], values[0][1], atol=1e-3)


def test_fused_projections_are_refused(tiny):
    tiny.unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"up_blocks.*fused.*unfuse_qkv_projections"), inject(tiny.unet, tiny.sites):
        pass
    assert not any(module._forward_hooks for module in tiny.unet.modules())


def test_schedule_in_fractions_of_the_steps():
    injection = CrossLoRAInjection(0.6, 0.5)
    rates = [injection.rates(at(step)) for step in range(50)]
    assert [r.features for r in rates] == [1.0] * 30 + [0.0] * 20
    assert [r.attention > 0 for r in rates] == [True] * 25 + [False] * 25
    assert [r.active for r in rates] == [True] * 30 + [False] * 20


@pytest.mark.parametrize(("timestep", "rate"), [(981, 1), (501, 1), (500, 1), (250, 0.5), (1, 0.002)])
def test_adaptive_rate(timestep, rate):
    assert CrossLoRAInjection(adaptive=True).rates(replace(at(0), time=timestep / 1000)) == Rates(1.0, rate)
    assert CrossLoRAInjection().rates(replace(at(0), time=timestep / 1000)) == Rates(1.0, 1.0)


def test_no_injection_is_never_active():
    assert not any(NoInjection().rates(at(step)).active for step in range(50))


@pytest.mark.parametrize("wrong", [{"features": 1.1}, {"features": -0.1}, {"attention": 30}])
def test_wrong_fractions_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"injection {next(iter(wrong))}: expected a fraction"):
        CrossLoRAInjection(**wrong)
