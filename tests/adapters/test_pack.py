"""The pack of LoRAs, checked against peft."""

import copy
import math

import pytest
import torch
from low_rank import by_peft, filled_pack, from_peft
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn
from torch.nn import functional

from diffstyler.adapters import LoRAPack, LowRank, Rows, lora_scale

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERYWHERE = [*ATTENTION, "conv_shortcut", "proj_in", "conv1", "downsamplers.0.conv", "time_emb_proj"]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def config(targets: list[str] = ATTENTION, rank: int = 4, alpha: int = 4, **more) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **more)


def with_peft(unet: nn.Module, config: LoraConfig, seed: int = 0) -> tuple[nn.Module, dict[str, LowRank]]:
    """peft's own UNet with random A and B -> it and its adapter."""
    adapted = copy.deepcopy(unet)
    adapted.add_adapter(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.dtype)
    return adapted, from_peft(get_peft_model_state_dict(adapted), lora_scale(config))


def inputs(tiny, rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    prompts = tiny.encode_prompt(["a red tree", "", "blue", "a cat"][:rows])
    latents = torch.randn(rows, 4, 8, 8, generator=generator)
    return {"sample": latents, "timestep": torch.tensor(501), "encoder_hidden_states": prompts.tokens}


def take(batch: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    return {key: value if value.dim() == 0 else value[rows] for key, value in batch.items()}


def random_pack(unet: nn.Module, slots: int, targets: list[str] = ATTENTION) -> LoRAPack:
    pack = LoRAPack(unet, config(targets), slots)
    pack.flat.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    pack.scale.fill_(1)
    return pack


@pytest.mark.parametrize(
    "config",
    [
        config(),
        config(rank=4, alpha=8),
        config(rank=4, alpha=8, use_rslora=True),
        config(["conv_shortcut", "proj_in"]),
        config(["conv1", "downsamplers.0.conv"]),
        config(EVERYWHERE, rank=3, alpha=6),
    ],
    ids=["attention", "alpha", "rslora", "conv 1x1", "conv 3x3", "everywhere"],
)
@torch.no_grad()
def test_one_adapter_equals_peft(tiny, config):
    adapted, modules = with_peft(tiny.unet, config)
    batch = inputs(tiny, 2)
    base = tiny.unet(**batch).sample
    pack = filled_pack(tiny.unet, modules)
    with pack.rows(Rows(torch.tensor([0, 0]))):
        packed = tiny.unet(**batch).sample
    assert not torch.allclose(packed, base, atol=1e-3)
    torch.testing.assert_close(packed, adapted(**batch).sample, **CLOSE)
    exported, state = by_peft(pack.export(0)), by_peft(modules)
    assert exported.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in exported.items())
    assert all(module.scale == lora_scale(config) for module in pack.export(0).values())


@pytest.mark.parametrize("targets", [ATTENTION, EVERYWHERE], ids=["attention", "everywhere"])
@torch.no_grad()
def test_rows_with_different_adapters_equal_separate_forwards(tiny, targets):
    pack = random_pack(tiny.unet, 2, targets)
    batch = inputs(tiny, 4)
    slots, strength = torch.tensor([1, 0, 0, 1]), torch.tensor([1.0, 1.0, 0.0, 0.5])
    with pack.rows(Rows(slots, strength)):
        together = tiny.unet(**batch).sample
    for row in range(4):
        one = slice(row, row + 1)
        pack.scale.fill_(strength[row])
        with pack.rows(Rows(slots[one])):
            torch.testing.assert_close(together[one], tiny.unet(**take(batch, one)).sample, **CLOSE)


@torch.no_grad()
def test_rows_in_the_order_of_the_slots(tiny):
    pack = random_pack(tiny.unet, 2, EVERYWHERE)
    batch = inputs(tiny, 4)
    with pack.rows(Rows(None)):
        in_order = tiny.unet(**batch).sample
    with pack.rows(Rows(torch.tensor([0, 0, 1, 1]))):
        torch.testing.assert_close(in_order, tiny.unet(**batch).sample, **CLOSE)


@torch.no_grad()
def test_zero_strength_no_rows_and_detached_equal_the_base(tiny):
    batch = inputs(tiny, 2)
    base = tiny.unet(**batch).sample
    pack = random_pack(tiny.unet, 1)
    assert torch.equal(tiny.unet(**batch).sample, base)
    with pack.rows(Rows(torch.tensor([0, 0]), torch.tensor([0.0, 1.0]))):
        mixed = tiny.unet(**batch).sample
    assert torch.equal(mixed[0], base[0])
    assert not torch.allclose(mixed[1], base[1], atol=1e-3)
    pack.detach()
    assert not any(module._forward_hooks for module in tiny.unet.modules())
    with pack.rows(Rows(torch.tensor([0, 0]))):
        assert torch.equal(tiny.unet(**batch).sample, base)


@torch.no_grad()
def test_unequal_ranks_and_targets_share_a_pack(tiny):
    configs = [config(rank=2, alpha=4), config(["to_q", "conv1"], rank=5, alpha=5)]
    adapted, loras = zip(*(with_peft(tiny.unet, c, seed) for seed, c in enumerate(configs)), strict=True)
    pack = filled_pack(tiny.unet, *loras)
    batch = inputs(tiny, 2)
    with pack.rows(Rows(torch.tensor([0, 1]))):
        packed = tiny.unet(**batch).sample
    for row, model in enumerate(adapted):
        one = slice(row, row + 1)
        torch.testing.assert_close(packed[one], model(**take(batch, one)).sample, **CLOSE)


@pytest.mark.parametrize("targets", [ATTENTION, EVERYWHERE], ids=["attention", "everywhere"])
def test_gradients_of_each_slot_equal_pefts(tiny, targets):
    lora = config(targets, rank=2, alpha=4)
    batch = {key: value.double() if value.is_floating_point() else value for key, value in inputs(tiny, 4).items()}
    tiny.unet.double()
    adapted, loras = zip(*(with_peft(tiny.unet, lora, seed) for seed in (1, 2)), strict=True)
    pack = LoRAPack(tiny.unet, lora, 2, dtype=torch.float64)
    for slot, modules in enumerate(loras):
        pack.load_slot(slot, modules)
    pack.train()
    with pack.rows(Rows(None)):
        tiny.unet(**batch).sample.square().sum().backward()
    for slot, model in enumerate(adapted):
        model(**take(batch, slice(2 * slot, 2 * slot + 2))).sample.square().sum().backward()
        weights = dict(model.named_parameters())
        for target in pack.targets:
            gradient = pack.flat.grad[slot, target.offset : target.end]
            expected = [weights[f"{target.name}.lora_{m}.default.weight"].grad.flatten() for m in "AB"]
            torch.testing.assert_close(gradient, torch.cat(expected), atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_modules_left_out_stay_plain(tiny):
    pack = random_pack(tiny.unet, 1)
    plain, adapted = (tiny.unet.get_submodule(s).to_v for s in tiny.sites.attention[:2])
    name = f"{tiny.sites.attention[0]}.to_v"
    differs = {}
    for module in (plain, adapted):
        module.register_forward_hook(
            lambda m, args, output: differs.update({m: not torch.equal(functional.linear(args[0], m.weight), output)})
        )
    with pack.rows(Rows(torch.tensor([0, 0]), without=frozenset([name]))):
        tiny.unet(**inputs(tiny, 2))
    assert differs == {plain: False, adapted: True}


@torch.no_grad()
def test_a_new_slot_does_nothing_yet(tiny):
    batch = inputs(tiny, 2)
    base = tiny.unet(**batch).sample
    pack = LoRAPack(tiny.unet, config(EVERYWHERE), 2)
    pack.init_slot(0, seed=1, scale=2.0)
    pack.init_slot(1, seed=1, scale=2.0)
    assert torch.equal(pack.flat[0], pack.flat[1])
    with pack.rows(Rows(None)):
        assert torch.equal(tiny.unet(**batch).sample, base)
    pack.init_slot(1, seed=2, scale=2.0)
    assert not torch.equal(pack.flat[0], pack.flat[1])


def test_new_slots_are_distributed_as_pefts(tiny):
    pack = LoRAPack(tiny.unet, config(EVERYWHERE), 1)
    pack.init_slot(0, seed=1, scale=1.0)
    for module in pack.export(0).values():
        assert not module.up.any()
        bound = math.sqrt(6 / ((1 + 5) * module.down[0].numel()))  # kaiming_uniform_(a=√5)
        assert 0.8 * bound < module.down.abs().max() <= bound
        assert module.down.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25)


@pytest.mark.parametrize(
    ("targets", "message"),
    [(["to_nothing"], "matches no module"), (["norm1"], "norm1, a (Group|Layer)Norm; LoRA goes on linear or conv")],
)
def test_targets_that_cannot_be_are_refused(tiny, targets, message):
    with pytest.raises(ValueError, match=message):
        LoRAPack(tiny.unet, config(targets), 1)


def test_adapters_of_other_models_are_refused(tiny):
    _, modules = with_peft(tiny.unet, config())
    pack = LoRAPack(tiny.unet, config(["to_q"]), 1)
    with pytest.raises(ValueError, match="not among the modules"):
        pack.load_slot(0, modules)
    wide = {name: LowRank(m.down.repeat(1, 2), m.up) for name, m in modules.items() if name.endswith("to_q")}
    with pytest.raises(ValueError, match=r"is 32 x 64 \(rank 4\); this model has 32 x 32"):
        pack.load_slot(0, wide)


def test_every_module_acts_at_its_own_scale(tiny):
    _, modules = with_peft(tiny.unet, config(EVERYWHERE))
    scales = {name: index % 3 - 1.0 for index, name in enumerate(modules)}  # the first ones are -1, 0 and 1
    pack = filled_pack(tiny.unet, {n: LowRank(m.down, m.up, scales[n]) for n, m in modules.items()})
    for name, module in pack.export(0).items():
        torch.testing.assert_close(module.update, scales[name] * modules[name].update)
