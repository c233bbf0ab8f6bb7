"""The real ways on CUDA: what they give is what the CPU gives, to a stated bound."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from unittest import mock

import pytest
import torch
from peft import LoraConfig
from runs import KillAt, KilledError, finetune, row, stylize

from diffstyler.adapters import LoRAPack
from diffstyler.backbones import StableDiffusion
from diffstyler.backbones.parking import Parking
from diffstyler.cuda import Captured
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.injection import CrossLoRAInjection
from diffstyler.diffusion.inversion import Clean, invert
from diffstyler.diffusion.matching import Part, PatchTransport
from diffstyler.diffusion.sampling import Canvas, Region, denoise
from diffstyler.fit.bench import FitBench
from diffstyler.images import to_tensor
from diffstyler.types import NoiseLevel, Step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:GPU available but not used"),  # these compare it with the CPU
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),  # the compiler would like to round to ten bits
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def full_precision():
    """TF32 rounds to ten bits."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def distance(a: dict, b: dict) -> float:
    flat = [torch.cat([matrices[name].flatten() for name in sorted(b)]).double() for matrices in (a, b)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


def made(model, device: str, **settings) -> torch.Tensor:
    """x_0 of a picture with two regions, injected, under two random adapters, inverted first."""
    model = copy.deepcopy(model).to(device)
    pack = LoRAPack(model.network, LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), 2)
    pack.flat.copy_(torch.randn(pack.flat.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    pack.scale.fill_(1)
    denoiser, schedule = Denoiser(model, pack, **settings), model.sampling_schedule(5)
    clean = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    prompts = [model.encode_prompt([text]) for text in ("", "a red tree", "ugly")]
    (way,) = invert(denoiser, [Clean(clean, prompts[0], 1)], schedule)
    mask = torch.zeros(8, 8, device=device)
    mask[:, :4] = 1
    regions = [
        Region(slot, prompts[1], prompts[2], 3.0, mask=own, injection=CrossLoRAInjection())
        for slot, own in ((0, None), (1, mask))
    ]
    return denoise(denoiser, [Canvas(way.latents[0], way, tuple(regions))], schedule, prompts[0])[0].cpu()


@pytest.mark.parametrize("tiny_dir", ["epsilon", "v_prediction"], indirect=True)
def test_the_method_gives_what_the_cpu_gives(tiny):
    expected = made(tiny, "cpu")
    actual = made(tiny, "cuda")
    assert ((actual - expected).norm() / expected.norm()).item() < 1e-3


def test_a_matching_gives_what_the_cpu_gives():
    clean, look = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(1))
    cells = torch.arange(300)
    step = Step(1, 50, 500, 0.5, NoiseLevel(0.7, 0.7), NoiseLevel(0.8, 0.6))
    expected = PatchTransport()(step, Part(clean, cells), Part(2 * look), 1.0, look)
    with torch.autocast("cuda", torch.bfloat16):
        actual = PatchTransport()(step, Part(clean.cuda(), cells.cuda()), Part(2 * look.cuda()), 1.0, look.cuda())
    torch.testing.assert_close(actual.cpu(), expected, atol=1e-4, rtol=1e-4)


def test_a_fit_gives_what_the_cpu_gives_whatever_its_neighbors(tiny_dir, pictures, tmp_path):
    cpu = finetune(tiny_dir, tmp_path / "cpu", pictures[:2], pack_size=2)
    together = finetune(tiny_dir, tmp_path / "cuda", pictures[:2], pack_size=2, flags={"accelerator": "gpu"})
    alone = finetune(tiny_dir, tmp_path / "alone", pictures[:2], pack_size=1, flags={"accelerator": "gpu"})
    for name in cpu:
        assert distance(together[name], cpu[name]) < 1e-2  # of three steps of Adam, which divides by small numbers
        assert distance(together[name], alone[name]) < 1e-2


@pytest.mark.parametrize(("kind", "bound"), [("nf4", 0.15), ("int8", 0.12)])
def test_quantized_bases_carry_loras_under_eight_bit_adamw(families, pictures, tmp_path, kind, bound):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    path = families["sd1"] / "model"
    settings = {"pack_size": 2, "steps": 6, "rank": 4, "precision": "bf16-mixed", "flags": {"accelerator": "gpu"}}
    settings["optimizer"] = lambda parameters: bitsandbytes.optim.AdamW8bit(parameters, lr=1e-3)
    quantized = StableDiffusion(str(path), quantization=kind)
    fitted = finetune(path, tmp_path, pictures[:2], backbone=quantized, **settings)
    for own in fitted.values():
        assert all(torch.isfinite(matrix).all() for matrix in own.values())
        assert any(matrix.norm() > 0 for name, matrix in own.items() if name.endswith("up"))
    outputs = []
    for backbone in (StableDiffusion(str(path)), StableDiffusion(str(path), quantization=kind)):
        backbone = backbone.load(torch.bfloat16).to("cuda")
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).cuda()
        with torch.no_grad():
            outputs.append(
                backbone.predict(latents, torch.tensor([401, 20]).cuda(), backbone.encode_prompt(["a", "b"]))
            )
    assert 0 < ((outputs[1] - outputs[0]).norm() / outputs[0].norm()).item() < bound


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precisions_and_automatic_packs_fit(tiny_dir, pictures, tmp_path, precision):
    flags = {"accelerator": "gpu"}
    fitted = finetune(tiny_dir, tmp_path, pictures, pack_size="auto", precision=precision, flags=flags)
    assert len(fitted) == 3
    assert all(torch.isfinite(matrix).all() for own in fitted.values() for matrix in own.values())


def test_predict_gives_what_the_cpu_gives(studio: Path, tiny_dir: Path):
    rows = [row(studio), row(studio, style="tomato")]
    expected = stylize(studio, tiny_dir, *rows, out="cpu", batch_size=2)
    actual = stylize(studio, tiny_dir, *rows, out="cuda", batch_size=2, accelerator="gpu")
    for ours, theirs in zip(actual, expected, strict=True):
        assert (to_tensor(ours) - to_tensor(theirs)).abs().mean() < 0.01


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_predict_runs_in_half_precisions(studio: Path, tiny_dir: Path, precision: str):
    """A random network makes much of rounding: that the pictures are there and whole is what can be said."""
    (picture,) = stylize(studio, tiny_dir, row(studio), precision=precision, accelerator="gpu")
    assert picture.size == (72, 64)
    assert to_tensor(picture).std() > 0.05


@pytest.fixture
def eagerly(monkeypatch):
    """Calling it turns recordings off."""
    return lambda: monkeypatch.setattr(Captured, "__call__", lambda own, inputs, kind=None: own.function(inputs))


@pytest.mark.parametrize("tiny_dir", ["epsilon", "v_prediction"], indirect=True)
def test_recorded_calls_give_what_eager_ones_give(tiny, eagerly):
    recorded = made(tiny, "cuda")
    eagerly()
    torch.testing.assert_close(recorded, made(tiny, "cuda"), atol=1e-4, rtol=1e-4)


def test_a_recorded_fit_gives_what_an_eager_one_gives(tiny_dir, pictures, tmp_path, eagerly):
    settings = {"pack_size": 2, "steps": 6, "flags": {"accelerator": "gpu"}}
    recorded = finetune(tiny_dir, tmp_path / "recorded", pictures, **settings)  # the third takes over a slot
    eagerly()
    eager = finetune(tiny_dir, tmp_path / "eager", pictures, **settings)
    assert all(distance(recorded[name], eager[name]) < 1e-3 for name in eager)


def test_half_precision_is_no_worse_recorded_than_eager(tiny_dir, eagerly):
    def error() -> float:
        half = made(StableDiffusion(str(tiny_dir)).load(torch.bfloat16), "cuda")
        return (half - exact).double().norm().item()

    exact = made(StableDiffusion(str(tiny_dir)).load(torch.float64), "cpu")
    recorded = error()
    eagerly()
    assert recorded < 1.1 * error()


def test_full_calls_give_the_same_compiled(tiny):
    """Inversion, injected and free steps are one kind of call then, filled up to the limit."""
    expected = made(tiny, "cpu")
    with mock.patch.object(Denoiser, "_predict", autospec=True, side_effect=Denoiser._predict) as calls:
        actual = made(tiny, "cuda", max_rows=5, compiled=True)
    assert ((actual - expected).norm() / expected.norm()).item() < 1e-3
    shapes = {(len(call.args[1].latents), call.args[1].sources is None) for call in calls.call_args_list}
    assert (5, False) in shapes
    assert all(rows < 5 for rows, plain in shapes if plain)


def test_where_memory_ends_calls_are_halved_and_it_is_said_once(tiny, monkeypatch, caplog):
    expected, predict = made(tiny, "cuda"), Denoiser._predict

    def short_of_memory(denoiser, call):
        if len(call.latents) > 3:
            raise torch.cuda.OutOfMemoryError
        return predict(denoiser, call)

    monkeypatch.setattr(Denoiser, "_predict", short_of_memory)
    torch.testing.assert_close(made(tiny, "cuda"), expected, atol=1e-4, rtol=1e-4)
    assert [r.message for r in caplog.records if "memory" in r.message] == [
        "the device's memory ends: at most 2 rows a call from now on"
    ]


def test_pictures_do_not_depend_on_their_batch(studio: Path, tiny_dir: Path):
    rows = [row(studio), row(studio, style="tomato"), row(studio, style="gold", strength=0.5, id="half")]
    alone = stylize(studio, tiny_dir, *rows, out="alone", batch_size=1, accelerator="gpu")
    together = stylize(studio, tiny_dir, *rows, out="together", batch_size="auto", accelerator="gpu")
    for ours, theirs in zip(together, alone, strict=True):
        assert (to_tensor(ours) - to_tensor(theirs)).abs().mean() < 0.01


def test_a_run_gives_back_what_its_recordings_held(studio: Path, tiny_dir: Path, pictures, tmp_path, monkeypatch):
    """At once, without the garbage collector's own turns: a process that fits and predicts has one card for both."""
    recorded, record = [], Captured._record
    monkeypatch.setattr(Captured, "_record", lambda own, inputs: recorded.append(own) or record(own, inputs))
    gc.disable()
    try:
        finetune(tiny_dir, tmp_path / "loras", pictures[:2], pack_size=2, steps=4, flags={"accelerator": "gpu"})
        fits = len(recorded)
        stylize(studio, tiny_dir, row(studio), row(studio, style="tomato"), out="cuda", accelerator="gpu")
    finally:
        gc.enable()
    assert 0 < fits < len(recorded)
    assert all(segment["segment_pool_id"] == (0, 0) for segment in torch.cuda.memory_snapshot())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_of_a_fit_waits_for_nothing(tiny_dir, pictures, tmp_path, monkeypatch):
    """But where losses are looked at, every sixteenth step."""
    waits, draw, update = [], FitBench.draw, FitBench.update

    def watched(function, bench, *args):
        looks = len(bench._unseen) + 1 >= bench.look_every or any(slot.step < 2 for slot in bench.busy)
        torch.cuda.set_sync_debug_mode("default" if looks else "error")
        try:
            return function(bench, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits.append(looks)

    monkeypatch.setattr(FitBench, "draw", lambda bench: watched(draw, bench))
    monkeypatch.setattr(FitBench, "update", lambda bench, losses: watched(update, bench, losses))
    finetune(tiny_dir, tmp_path / "loras", pictures[:2], steps=16, pack_size=2, flags={"accelerator": "gpu"})
    assert waits.count(False) > 20


def test_a_fit_goes_on_after_a_kill(tiny_dir, pictures, tmp_path):
    settings = {"pack_size": 2, "steps": 6, "flags": {"accelerator": "gpu"}, "checkpoint_every": 2}
    whole = finetune(tiny_dir, tmp_path / "whole", pictures[:2], **settings)
    with pytest.raises(KilledError):
        finetune(tiny_dir, tmp_path / "cut", pictures[:2], callbacks=[KillAt(5)], **settings)
    states = sorted((tmp_path / "cut" / ".unfinished").glob("*.pt"))
    assert [torch.load(state)["step"] for state in states] == [4, 4]
    resumed = finetune(tiny_dir, tmp_path / "cut", pictures[:2], **settings)
    assert all(distance(resumed[name], whole[name]) < 1e-3 for name in whole)


def test_parked_weights_come_back_without_a_copy_and_unchanged():
    parking, module = Parking(), torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    module.requires_grad_(False)[0].bias.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    parking.move(module, "cuda")
    assert all(tensor.is_cuda for tensor in module.state_dict().values())
    parking.move(module, "cpu")
    places = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    for _ in range(2):
        parking.move(module, "cuda")
        with torch.no_grad():
            module[0].bias += 1  # what is trained must not be forgotten
        parking.move(module, "cpu")
        after = module.state_dict()
        assert all(tensor.data_ptr() == places[name] for name, tensor in after.items() if name != "0.bias")
    before["0.bias"] += 1
    before["0.bias"] += 1  # not 2, which is rounded once
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)
    parking.move(module, "cuda")
    module.to(torch.float64)  # of another kind now: what is kept does not count
    parking.move(module, "cpu")
    assert module[0].weight.dtype == torch.float64
