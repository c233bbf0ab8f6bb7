"""Forecasts: what is counted without data is what is alive with data, and plans stay below their ceilings."""

import gc
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from runs import row, stylize
from tiny_models import FAMILIES
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffstyler.backbones import StableDiffusion
from diffstyler.backbones.quantization import quantizable
from diffstyler.memory import forecast
from diffstyler.memory.forecast import AliveBytes, FitForecast, Growth, PredictForecast, forecast_fit, forecast_predict
from diffstyler.memory.plan import GIB, MemoryBudgetError, PredictPlan, largest_of, plan_fit, plan_predict
from diffstyler.predict import stylizer as stylization

LORA = LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])


def square(resolution: int, multiple: int) -> tuple[int, int]:
    return resolution, resolution


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_is_counted_without_data_is_what_is_there(families, family):
    path = str(families[family] / "model")
    found = forecast_predict(FAMILIES[family](path), square, torch.float32, LORA)
    backbone = FAMILIES[family](path).load()
    parts = {"unet": backbone.unet, "vae": backbone.vae, "text": torch.nn.ModuleList(backbone.text_encoders.values())}
    sizes = {name: 4 * sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert (found.network_bytes, found.vae_bytes, found.text_bytes) == tuple(sizes.values())
    inputs = torch.randn(5, 4, 8, 8), torch.full((5,), 501), backbone.blank_prompt(5)
    # of the CPU's fused attention no operations are counted
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone.predict(*inputs)
    assert found.row_flops * 5 == pytest.approx(counter.get_total_flops())
    gc.collect()
    with torch.no_grad(), AliveBytes() as alive:
        backbone.predict(torch.randn(5, 4, 8, 8), torch.full((5,), 501), backbone.blank_prompt(5))
    assert found.forward.at(5) == pytest.approx(alive.peak, rel=0.15)


def test_views_of_what_was_there_before_take_nothing():
    weight = torch.ones(100, 100)
    with torch.no_grad(), AliveBytes() as alive:
        product = weight.t() @ weight[:, :1]
        assert alive.peak == product.nbytes
        turned = [product.t() for _ in range(3)]
        assert alive.peak == product.nbytes
        del product, turned
        assert alive.now == 0


def test_known_shapes_count_as_those_that_are_worked_out(monkeypatch):
    layers = (nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(2), nn.Linear(36, 5), nn.LayerNorm(5))
    network = nn.Sequential(*layers).to("meta")
    network[1].requires_grad_(False)  # whose gradients are None then

    def counted() -> tuple[int, int]:
        network.zero_grad()
        with AliveBytes() as alive:
            network(torch.zeros(3, 4, 8, 8, device="meta")).sum().backward()
        return alive.peak, alive.now

    monkeypatch.setattr(forecast.Shapes, "known", {})
    first = counted()
    known = len(forecast.Shapes.known)
    assert first == counted()
    assert len(forecast.Shapes.known) == known > 5
    monkeypatch.setattr(forecast, "_shapes_of", lambda *_: None)
    assert first == counted()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_rate_is_that_of_the_networks_own_forwards(families, family, monkeypatch):
    """On a clock that goes on by 0.4 s at each look."""
    ticks = itertools.count()
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: 0.4 * next(ticks))
    backbone = FAMILIES[family](str(families[family] / "model"))
    monkeypatch.setattr(type(backbone), "load", lambda *_: pytest.fail("weights were loaded"))
    rows, run = [], type(backbone).predict
    monkeypatch.setattr(type(backbone), "predict", lambda self, x, *more: rows.append(x) or run(self, x, *more))
    found = forecast_predict(backbone, square, torch.float32, LORA)
    rows.clear()
    rate = forecast.network_rate(backbone, found, torch.float32, 3, seconds=1.9)
    assert rate == pytest.approx(3 * found.row_flops / 0.4)
    assert [tuple(x.shape) for x in rows] == [(3, *found.latents)] * 5


def test_checkpointing_and_rows_cost_what_they_should(families):
    found = forecast_fit(StableDiffusion(str(families["sd1"] / "model")), square, torch.bfloat16, LORA)
    assert found.training.each > 2 * found.checkpointed.each > 0
    assert found.bytes(4, 2, checkpointing=True) < found.bytes(4, 2, checkpointing=False)
    assert found.bytes(8, 2, checkpointing=False) > found.bytes(4, 2, checkpointing=False)


@pytest.mark.parametrize(("kind", "bytes_each"), [("nf4", 4.5 / 8), ("int8", 8.1 / 8)])
def test_a_quantized_base_is_forecast_smaller_where_it_is_quantized(families, kind, bytes_each):
    path = str(families["sd1"] / "model")
    models = (StableDiffusion(path, quantization=chosen) for chosen in (None, kind))
    plain, small = (forecast_predict(model, square, torch.float32, LORA).network_bytes for model in models)
    layers = quantizable(StableDiffusion(path).load().unet).values()
    assert layers
    assert plain - small == pytest.approx(sum(layer.weight.numel() for layer in layers) * (4 - bytes_each))


def predicting(**changes) -> PredictForecast:
    values = {
        "network_bytes": 1.0 * GIB,
        "vae_bytes": 0.25 * GIB,
        "text_bytes": 0.25 * GIB,
        "row_flops": 1e12,
        "forward": Growth(0.1 * GIB, 0.1 * GIB),
        "decode_bytes": 4 * GIB,
        "lora_parameters": 1000,
        "latents": (4, 8, 8),
    }
    return PredictForecast(**{**values, **changes})


def fitting() -> FitForecast:
    return FitForecast(1.0 * GIB, 1e12, Growth(0.1 * GIB, 1.0 * GIB), Growth(0.1 * GIB, 0.2 * GIB), 1000, (4, 8, 8))


@pytest.mark.parametrize(
    ("gib", "rows", "tiling", "offload"), [(20, 64, False, False), (7.5, 41, False, False), (6, 29, True, False)]
)
def test_predict_takes_what_fits(gib, rows, tiling, offload):
    plan = plan_predict(predicting(), gib * GIB, styles=1)
    assert (plan.tiling, plan.offload) == (tiling, offload)
    assert plan.rows == pytest.approx(rows, abs=1)
    assert plan.bytes <= gib * GIB


def test_predict_leaves_the_device_last():
    plan = plan_predict(predicting(decode_bytes=0.1 * GIB, text_bytes=2 * GIB), 2.5 * GIB, styles=1)
    assert plan.offload
    with pytest.raises(MemoryBudgetError, match=r"max_memory 1 GiB: two rows, tiles and offloading still take \d"):
        plan_predict(predicting(), 1 * GIB, styles=1)


@pytest.mark.parametrize(("gib", "slots", "checkpointing"), [(40, 16, False), (4.5, 2, False), (2.5, 2, True)])
def test_fit_takes_what_fits(gib, slots, checkpointing):
    plan = plan_fit(fitting(), gib * GIB, batch_size=1, slots=16)
    assert (plan.slots, plan.checkpointing) == (slots, checkpointing)
    with pytest.raises(MemoryBudgetError, match="one LoRA with gradient checkpointing still take"):
        plan_fit(fitting(), 1 * GIB, batch_size=1, slots=16)


def test_the_largest_picture_decides(tmp_path):
    for name, size in {"wide.png": (200, 100), "square.png": (50, 50)}.items():
        Image.new("RGB", size).save(tmp_path / name)
    pictures = [*sorted(tmp_path.iterdir()), Path("missing.png")]
    assert largest_of(pictures, None)(64, 8) == (64, 128)
    assert largest_of(pictures[:1], 32)(64, 8) == (32, 32)
    assert largest_of([Path("missing.png")], None)(64, 8) == (64, 64)


def test_a_run_follows_its_plan_and_gives_the_same_picture(studio, tiny_dir, monkeypatch):
    rows, original = [], UNet2DConditionModel.forward

    def forward(self, sample, *args, **kwargs):
        if not sample.is_meta:  # the forecast's own
            rows.append(len(sample))
        return original(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    (plain,) = stylize(studio, tiny_dir, row(studio))
    assert max(rows) == 3
    rows.clear()
    monkeypatch.setattr(stylization, "plan_predict", lambda *_: PredictPlan(2, tiling=False, offload=True, bytes=1.0))
    (bounded,) = stylize(studio, tiny_dir, row(studio), out="bounded", max_memory=1.0)
    assert max(rows) == 2
    assert np.abs(np.asarray(plain, int) - np.asarray(bounded, int)).max() <= 1
    with pytest.raises(ValueError, match=r"model.rows_per_call 3: model.max_memory 1 leaves room for 2"):
        stylize(studio, tiny_dir, row(studio), out="both", max_memory=1.0, rows_per_call=3)


def test_a_run_that_cannot_fit_ends_before_loading(studio, tiny_dir, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(MemoryBudgetError, match="two rows, tiles and offloading still take"):
        stylize(studio, tiny_dir, row(studio), max_memory=0.001)


@pytest.mark.parametrize("forecast", [forecast_fit, forecast_predict])
def test_a_forecast_leaves_a_loaded_model_as_it_is(tiny, forecast):
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    parts = dict(tiny.named_modules())
    forecast(tiny, square, torch.float32, LORA)
    assert dict(tiny.named_modules()).keys() == parts.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())
    assert not any(module._forward_hooks for module in tiny.modules())
