"""A packed LoRA equals the same LoRA fitted alone by peft and a plain loop."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from low_rank import by_peft
from peft import LoraConfig, get_peft_model_state_dict
from runs import finetune
from torch.nn.functional import mse_loss

from diffstyler.adapters import LoRAPack, Rows
from diffstyler.backbones import StableDiffusion
from diffstyler.fit.crops import Crops, take_crops
from diffstyler.fit.jobs import FitJob, FitPicture, FitSettings
from diffstyler.fit.slot import LossScale, open_slot

DTYPES = {"64-true": torch.float64, "32-true": torch.float32}


def fit_with_peft(folder: Path, path: Path, *, steps: int, dtype: torch.dtype, rank: int = 4, alpha: int = 4, lr=1e-3):
    """As the field fits one LoRA: add_adapter, AdamW, clip; only the draws and the initial A are ours."""
    backbone = StableDiffusion(str(folder)).load(dtype)
    settings = FitSettings(prompt="painting of <sss>", steps=steps, rank=rank, alpha=alpha)
    config = settings.config
    with torch.no_grad():
        pixels, _ = take_crops([path], Crops(resolution=64, crop_size=64, count=3), 0, resolution=64, multiple=8)
        latents = torch.cat([backbone.encode_image(crop[None]) for crop in pixels])
        prompt = backbone.encode_prompt([settings.prompt])
    pack = LoRAPack(backbone.unet, config, 1, dtype=dtype)
    slot = open_slot(
        FitJob(FitPicture((path,), "", path.stem), settings, None),
        0,
        pack,
        latents,
        prompt,
        loss_scale=LossScale(),
    )
    initial = {name: tensor.to(dtype) for name, tensor in by_peft(pack.export(0)).items()}
    pack.detach()
    backbone.unet.add_adapter(config)
    weights = {n.replace(".default", ""): p for n, p in backbone.unet.named_parameters() if p.requires_grad}
    assert weights.keys() == initial.keys()
    for name, parameter in weights.items():
        parameter.data = initial[name].clone().to(dtype)
    optimizer = torch.optim.AdamW(weights.values(), lr=lr)
    for slot.step in range(steps):
        draw = slot.draw(2, len(backbone.alphas_cumprod))
        alphas = backbone.alphas_cumprod[draw.timesteps].to(dtype).view(-1, 1, 1, 1)
        clean, noise = latents[draw.crops].to(dtype), draw.noise.to(dtype)
        noised = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise
        tokens = prompt.tokens.expand(2, -1, -1)
        loss = mse_loss(backbone.unet(noised, draw.timesteps, encoder_hidden_states=tokens).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
    return get_peft_model_state_dict(backbone.unet)


@pytest.mark.parametrize(
    ("precision", "steps", "bound"), [("64-true", 6, 1e-10), ("32-true", 20, 6e-5)], ids=["fp64", "fp32"]
)
def test_a_packed_lora_equals_pefts_own(tiny_dir, pictures, tmp_path, precision, steps, bound, monkeypatch):
    expected = fit_with_peft(tiny_dir, pictures[0], steps=steps, dtype=DTYPES[precision])
    rows, kept = [], LoRAPack.exporting

    def remember(pack, slot, *more):  # in the pack's own precision, before a file rounds it
        rows.append(pack.flat.detach()[slot].clone())
        return kept(pack, slot, *more)

    monkeypatch.setattr(LoRAPack, "exporting", remember)
    finetune(tiny_dir, tmp_path, pictures, steps=steps, pack_size=3, precision=precision)
    names = [key.removesuffix(".lora_A.weight") for key in expected if ".lora_A." in key]
    oracle = torch.cat([expected[f"{name}.lora_{m}.weight"].flatten() for name in names for m in "AB"])
    errors = sorted(((row - oracle).norm() / oracle.norm()).item() for row in rows)
    assert len(errors) == 3
    assert errors[0] < bound
    assert errors[1] > 0.01


@pytest.fixture
def small(tiny) -> StableDiffusion:
    """Around a UNet of two levels: to trace it takes a third of the time."""
    torch.manual_seed(0)
    tiny.unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    tiny.requires_grad_(False).eval()
    return tiny


@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor")  # Dynamo looks at every input
def test_a_refilled_slot_compiles_nothing_again(small):
    """The adapters' hooks are part of the compiled layers, and equal the eager ones; slots are their inputs, and
    layers that are alike are compiled once."""
    from torch._dynamo.utils import counters

    pack = LoRAPack(small.unet, LoraConfig(r=4, target_modules=["to_q", "to_v"]), 2)
    pack.train()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps, prompts = torch.tensor([1, 700]), small.encode_prompt(["a red tree", "the sea"])

    def gradient(seed: int) -> torch.Tensor:
        for slot in range(2):
            pack.init_slot(slot, seed=seed + slot, scale=0.5 + seed)
        pack.flat.grad = None
        with pack.rows(Rows(None)):
            small.predict(latents, timesteps, prompts).square().sum().backward()
        return pack.flat.grad

    eager = [gradient(seed) for seed in (0, 5)]
    counters.clear()
    small.compile(backend="eager")
    compiled, graphs = [], []
    for seed in (0, 5):
        compiled.append(gradient(seed))
        graphs.append(counters["stats"]["unique_graphs"])
    small.uncompile()
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)
    layers = [module for module in small.unet.modules() if type(module).__name__ in small.repeated_layers]
    assert graphs[0] == graphs[1] < len(layers)
    assert not counters["graph_break"]


@torch.no_grad()
def test_a_network_is_compiled_as_a_whole_where_it_is_asked_for(small):
    """With the hooks that are there, and not outside."""
    from torch._dynamo.utils import counters

    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given = latents, torch.tensor([1, 700]), small.encode_prompt(["a red tree", "the sea"])
    eager = small.predict(*given)
    pack = LoRAPack(small.unet, LoraConfig(r=4, target_modules=["to_q", "to_v"]), 1)
    pack.flat.copy_(torch.randn(pack.flat.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    pack.scale.fill_(1)
    counters.clear()
    rows = Rows(torch.zeros(2, dtype=torch.int64))
    with pack.rows(rows):
        adapted = small.predict(*given)
    assert not counters["stats"]["unique_graphs"]
    with pack.rows(rows), small.compiled(backend="eager"):
        torch.testing.assert_close(small.predict(*given), adapted, atol=1e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    torch.testing.assert_close(small.predict(*given), eager, atol=0, rtol=0)
    assert counters["stats"]["unique_graphs"] == 1
