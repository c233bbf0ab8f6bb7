"""Settings that save memory: quantized bases, tiles, slices, parked encoders: what each changes and what it may not."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from diffstyler.adapters import LoRAPack, Rows
from diffstyler.backbones import StableDiffusion
from diffstyler.backbones.parking import Parking
from diffstyler.backbones.quantization import quantize

pytest.importorskip("bitsandbytes")


def wide_unet() -> UNet2DConditionModel:
    """Widths that are multiples of 64, as 4-bit blocks ask for."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    ).requires_grad_(False)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor(401), torch.randn(2, 5, 64, generator=generator)


@pytest.mark.parametrize(("kind", "bound", "stored"), [("nf4", 0.1, torch.uint8), ("int8", 0.01, torch.int8)])
def test_a_quantized_base_is_near_and_carries_lora(kind, bound, stored):
    unet = wide_unet()
    expected = unet(*inputs()).sample
    weights = unet.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q").weight
    count = quantize(unet, kind, torch.float32)
    linears = [m for n, m in unet.named_modules() if ".attentions." in n and isinstance(m, nn.Linear)]
    assert count == len(linears) > 20
    assert {layer.weight.dtype for layer in linears} == {stored}
    layer = unet.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    assert layer.weight.nelement() * layer.weight.element_size() <= weights.nelement() * (1 if kind == "int8" else 0.5)
    found = unet(*inputs()).sample
    error = ((found - expected).norm() / expected.norm()).item()
    assert 0 < error < bound
    pack = LoRAPack(unet, LoraConfig(r=2, target_modules=["to_q", "to_v"]), 2)
    for slot in range(2):
        pack.init_slot(slot, seed=slot, scale=1.0)
    pack.train()
    with pack.rows(Rows(None)):
        packed = unet(*inputs()).sample
        assert torch.allclose(packed, found, atol=1e-5)  # B is zero
        packed.square().sum().backward()
    assert (pack.flat.grad.norm(dim=1) > 0).all()


def test_eight_bit_weights_and_their_scales_stay_together_where_a_model_is_moved():
    unet = wide_unet()
    quantize(unet, "int8", torch.float32)
    expected = unet(*inputs()).sample
    unet._apply(lambda tensor: tensor.clone())  # as a move to another device does
    layer = unet.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    held = layer.state.CB if layer.weight.CB is None else layer.weight.CB
    assert held.data_ptr() == layer.weight.data_ptr()
    torch.testing.assert_close(unet(*inputs()).sample, expected)


def test_a_quantized_model_says_so_and_makes_other_loras(families):
    path = str(families["sd1"] / "model")
    plain, quantized = StableDiffusion(path), StableDiffusion(path, quantization="nf4")
    assert plain.fingerprint() == quantized.fingerprint()
    assert quantized.identity()["quantization"] == "nf4"
    assert "quantization" not in plain.identity()
    assert quantized.load().unet.get_submodule("mid_block.attentions.0.proj_in") is not None


def test_tiles_and_slices_are_switched_on(families):
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    path = str(families["sd1"] / "model")
    with torch.no_grad():
        plain = StableDiffusion(path).load()
        expected = plain.decode_latents(plain.encode_image(pixels))
        sliced = StableDiffusion(path, vae_slicing=True).load()
        torch.testing.assert_close(sliced.decode_latents(sliced.encode_image(pixels)), expected, atol=1e-5, rtol=1e-5)
        tiled = StableDiffusion(path, vae_tiling=True).load()
        assert tiled.vae.use_tiling
        tiled.vae.tile_sample_min_size, tiled.vae.tile_latent_min_size = 32, 4
        assert not torch.equal(tiled.decode_latents(plain.encode_image(pixels)), expected)


def test_channels_last_gives_the_same_numbers(families):
    path = str(families["sd1"] / "model")
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([801, 21])
    with torch.no_grad():
        one, other = StableDiffusion(path).load(), StableDiffusion(path, channels_last=True).load()
        prompt = one.encode_prompt(["a", "b"])
        expected = one.predict(latents, timesteps, prompt)
        torch.testing.assert_close(other.predict(latents, timesteps, prompt), expected, atol=1e-5, rtol=1e-4)
    assert other.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_parked_encoders_come_back_for_a_moment(families, family, monkeypatch):
    from tiny_models import FAMILIES

    backbone = FAMILIES[family](str(families[family] / "model"), offload=True).load()
    backbone.prepare(torch.device("cpu"))
    moves, names = [], {id(module): name for name, module in {"vae": backbone.vae, **backbone.text_encoders}.items()}
    monkeypatch.setattr(Parking, "move", lambda _, module, place: moves.append((names[id(module)], str(place))))
    with torch.no_grad():
        backbone.encode_prompt(["a house"])
        backbone.decode_latents(torch.randn(1, 4, 8, 8))
    awake = [(name, "cpu") for name in backbone.text_encoders for _ in range(2)]
    assert moves == [*awake, ("vae", "cpu"), ("vae", "cpu")]
