"""A slot in the making: its randomness is its own, and an interruption leaves no trace."""

import math

import pytest
import torch
from slots import backward, cut, open_slots, train

from diffstyler.fit.early_stop import EarlyStop
from diffstyler.fit.slot import LossScale, NonFiniteLossError, take_scaled_steps, take_steps


def test_draws_depend_on_seed_and_step_alone():
    (alone,), (_, neighbor) = open_slots(7), open_slots(1, 7)
    torch.rand(5)  # the global generator plays no part
    for field in ("crops", "noise", "timesteps"):
        assert torch.equal(getattr(alone.draw(4, 1000), field), getattr(neighbor.draw(4, 1000), field))
    first = alone.draw(4, 1000).noise
    alone.step = 1
    assert not torch.equal(alone.draw(4, 1000).noise, first)
    assert not torch.equal(open_slots(8)[0].draw(4, 1000).noise, first)


def test_draws_are_in_range():
    (slot,) = open_slots(7)
    draw = slot.draw(2000, 10)
    assert draw.timesteps.unique().tolist() == list(range(10))
    assert draw.crops.unique().tolist() == [0, 1, 2]
    assert draw.noise.std().item() == pytest.approx(1, abs=0.02)


def test_held_out_rows_are_fixed_and_over_all_noise_levels():
    (slot,) = open_slots(7, early_stop=EarlyStop(rows=10))
    parts = slot.draw_held_out(4, 1200)
    assert [len(part.noise) for part in parts] == [4, 4, 4]
    timesteps = torch.cat([part.timesteps for part in parts])
    assert (timesteps // 100).tolist() == list(range(12))
    trained = [slot.draw(4, 1200).noise]
    slot.step = 3
    trained.append(slot.draw(4, 1200).noise)
    for part, again in zip(parts, slot.draw_held_out(4, 1200), strict=True):
        assert torch.equal(part.noise, again.noise)
        assert torch.equal(part.crops, again.crops)
        assert not any(torch.equal(part.noise, noise) for noise in trained)


def test_it_looks_every_so_many_steps_and_stops_early(tmp_path):
    (slot,) = open_slots(7, early_stop=EarlyStop(every=2, patience=1, smoothing=0.0))
    seen = []
    while not slot.done:
        train(slot, steps=1)
        if slot.due:
            slot.held_out.append([1.0, 0.5, 0.6][len(seen)])
            seen.append(slot.step)
    assert (seen, slot.step, slot.stopped) == ([2, 4, 6], 6, True)
    slot.saving()(tmp_path / "state.pt")
    (resumed,) = open_slots(7, early_stop=EarlyStop(every=2, patience=1, smoothing=0.0))
    resumed.restore(tmp_path / "state.pt")
    assert resumed.stopped
    assert not resumed.due


def test_training_learns_each_row_apart():
    slots, (alone,) = open_slots(1, 7), open_slots(7)
    before = [slot.weights.detach().clone() for slot in slots]
    train(*slots, steps=3)
    train(alone, steps=3)
    torch.testing.assert_close(slots[1].weights, alone.weights)
    assert torch.equal(slots[1].pack.flat[1], slots[1].weights)
    assert not any(torch.equal(slot.weights, b) for slot, b in zip(slots, before, strict=True))
    assert [slot.step for slot in slots] == [3, 3]
    assert len(slots[0].losses) == 3
    train(alone, steps=3)
    assert alone.done


def adamw(**numbers):
    """Makes one AdamW after the other, the last of these numbers each."""
    lists = {name: list(values) for name, values in numbers.items()}
    return lambda weights: torch.optim.AdamW(weights, **{name: values.pop(0) for name, values in lists.items()})


@pytest.mark.parametrize(
    "make",
    {
        "equal numbers": lambda: adamw(lr=[0.1, 0.1, 0.1]),
        "other rates": lambda: adamw(lr=[0.1, 0.2, 0.1]),
        "other moments": lambda: adamw(betas=[(0.9, 0.99), (0.5, 0.9), (0.9, 0.99)], weight_decay=[0.1, 0.1, 0.3]),
        "other flags": lambda: adamw(amsgrad=[True, True, False], maximize=[True, False, False], eps=[1e-3] * 3),
        "fused": lambda: adamw(fused=[True] * 3, lr=[0.1] * 3),
        "foreach": lambda: adamw(foreach=[True] * 3),
        "rates in tensors": lambda: adamw(lr=[torch.tensor(0.1)] * 3),
        "another kind": lambda: torch.optim.NAdam,
    }.items(),
    ids=lambda item: item[0],
)
def test_steps_together_are_those_of_each_optimizer_alone(make, tmp_path):
    """From their first step on, after an interruption, and where one is some steps ahead."""
    together, apart = (open_slots(1, 7, 9, optimizer=make[1]()) for _ in range(2))
    for step in range(6):
        for slots in (together, apart):
            backward(slots)
            cut(*slots)
        due = together if step % 3 else together[:2]
        take_steps(due)
        for slot in apart[: len(due)]:
            slot.weights.grad = slot.gradient
            slot.optimizer.step()
            slot.scheduler.step()
        if step == 2:
            together[1].saving()(tmp_path / "state.pt")
            together[1].restore(tmp_path / "state.pt")
        assert torch.equal(together[0].pack.flat, apart[0].pack.flat)
    for one, other in zip(together, apart, strict=True):
        assert str(one.optimizer.state_dict()) == str(other.optimizer.state_dict())


def test_equal_adamws_step_in_one_call(monkeypatch):
    called = []
    monkeypatch.setattr("diffstyler.fit.slot.adamw", lambda weights, *args, **numbers: called.append(len(weights)))
    slots = open_slots(1, 7, 9)
    train(*slots, steps=3)
    assert called == [3, 3]  # the first step makes the states


def test_a_hook_on_an_optimizer_is_called():
    slots, called = open_slots(1, 7), []
    slots[1].optimizer.register_step_post_hook(lambda *_: called.append(1))
    train(*slots, steps=3)
    assert len(called) == 3


def test_an_interruption_leaves_no_trace(tmp_path):
    (through,), (interrupted,) = open_slots(7), open_slots(7)
    train(through, steps=6)
    train(interrupted, steps=3)
    interrupted.saving()(tmp_path / "new" / "state.pt")
    (resumed,) = open_slots(7)
    resumed.restore(tmp_path / "new" / "state.pt")
    train(resumed, steps=3)
    assert torch.equal(resumed.weights, through.weights)
    assert torch.equal(resumed.pack.flat, through.pack.flat)
    assert resumed.losses == through.losses
    assert resumed.optimizer.param_groups[0]["lr"] == through.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["state.pt"]


@pytest.mark.parametrize("clip", [None, 0.1, 1e6])
def test_the_gradient_is_unscaled_and_clipped(clip):
    (slot,) = open_slots(
        7, optimizer=lambda weights: torch.optim.SGD(weights, lr=1.0), gradient_clip=clip, value=8.0, dynamic=True
    )
    before = slot.weights.detach().clone()
    backward([slot])
    gradient = slot.pack.flat.grad[0].clone() / 8
    (norm,) = cut(slot)
    assert norm == pytest.approx(gradient.norm().item())
    assert norm > 0.1
    take_scaled_steps([slot], [norm])
    expected = gradient * min(1, (clip or math.inf) / norm)
    torch.testing.assert_close(before - slot.weights, expected)


@pytest.mark.parametrize("first", [True, False])
def test_an_overflow_skips_the_step_and_halves_the_scale(first):
    (slot,) = open_slots(7, value=1024.0, dynamic=True)
    if not first:
        train(slot, steps=1)
    before = slot.weights.detach().clone()
    backward([slot])
    slot.pack.flat.grad[0, 0] = torch.inf
    take_scaled_steps([slot], cut(slot))
    assert slot.loss_scale.value == 512
    assert torch.equal(slot.weights, before)
    train(slot, steps=1)
    assert not torch.equal(slot.weights, before)


def test_loss_scale_grows_after_steps_without_overflow():
    scale = LossScale(8.0, dynamic=True, growth_interval=3)
    values = []
    for finite in [True, True, True, False, True, True, True]:
        scale.update(finite)
        values.append(scale.value)
    assert values == [8, 8, 16, 8, 8, 8, 16]


def test_loss_scale_gives_up():
    scale = LossScale(2.0, dynamic=True)
    scale.update(False)
    with pytest.raises(NonFiniteLossError, match="the gradient is not finite"):
        scale.update(False)
    fixed = LossScale()
    fixed.update(True)
    assert fixed.value == 1
    with pytest.raises(NonFiniteLossError):
        fixed.update(False)


def test_closing_empties_the_row_alone():
    slots = open_slots(1, 7)
    train(*slots, steps=1)
    kept = slots[1].weights.detach().clone()
    slots[0].close()
    assert not slots[0].pack.flat[0].any()
    assert slots[0].pack.scale.tolist() == [0, 1]
    assert torch.equal(slots[0].pack.flat[1], kept)
