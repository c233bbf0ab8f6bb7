"""Attention backends: tried before they are trusted, and the same numbers under each, injection included."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, XFormersAttnProcessor
from torch.nn import functional

from diffstyler.backbones import AutoAttention, SDPAttention, StableDiffusion, XFormersAttention, attention
from diffstyler.diffusion.denoiser import Denoiser, Group, Row
from diffstyler.diffusion.injection import Rates
from diffstyler.types import NoiseLevel

CPU = torch.device("cpu")


def processors(unet) -> set[str]:
    return {type(processor).__name__ for processor in unet.attn_processors.values()}


@pytest.fixture
def kernel(monkeypatch):
    """xformers' entry with torch's attention behind it: (B·heads, L, d), and what it was called with."""
    xformers = pytest.importorskip("xformers.ops")
    calls = []

    def memory_efficient_attention(q, k, v, attn_bias=None, op=None, scale=None):
        calls.append(q.shape)
        return functional.scaled_dot_product_attention(q, k, v, attn_bias, scale=scale)

    monkeypatch.setattr(xformers, "memory_efficient_attention", memory_efficient_attention)
    return calls


def test_an_explicit_wish_that_cannot_run_is_an_error(tiny):
    before = tiny.unet.attn_processors
    with pytest.raises(ValueError, match=r"XFormersAttention does not run on cpu here \(.+\); use SDPA"):
        XFormersAttention().apply(tiny.unet, CPU)
    assert tiny.unet.attn_processors == before


def test_auto_takes_what_runs_and_says_it(tiny):
    assert AutoAttention().apply(tiny.unet, CPU) == "sdpa"
    assert processors(tiny.unet) == {"AttnProcessor2_0"}


@pytest.mark.parametrize(("faster", "chosen"), [(0.5, "xformers"), (0.99, "sdpa"), (2.0, "sdpa")])
def test_auto_takes_xformers_where_it_is_faster(tiny, kernel, monkeypatch, faster, chosen):
    times = iter([faster, 1.0])
    monkeypatch.setattr(attention, "_seconds", lambda work: next(times))
    assert AutoAttention(gain=0.05).apply(tiny.unet, CPU) == chosen
    assert kernel, "the probe was made"


def test_the_models_setting_decides(tiny_dir, kernel):
    backbone = StableDiffusion(str(tiny_dir), attention=XFormersAttention()).load()
    backbone.prepare(CPU)
    assert processors(backbone.unet) == {"XFormersAttnProcessor"}
    StableDiffusion(str(tiny_dir), attention=SDPAttention()).load()


@torch.no_grad()
def test_injection_gives_the_same_numbers_under_each(tiny, kernel):
    prompts, latents = tiny.encode_prompt(["", "a red tree"]), torch.randn(2, 4, 8, 8)
    level = NoiseLevel(0.6, 0.8)
    source, target = (Row(latents[i], 501, level, prompts[[i]], rates=Rates(1.0, 0.7)) for i in (0, 1))
    found = []
    for processor in (AttnProcessor(), XFormersAttnProcessor(), None):
        if processor is None:
            SDPAttention().apply(tiny.unet, CPU)
        else:
            tiny.unet.set_attn_processor(processor)
        denoiser = Denoiser(tiny)
        plain = denoiser([Group(source, (target,))])[0]
        with denoiser.injecting():
            found.append(denoiser([Group(source, (target,))])[0])
        assert not torch.allclose(plain, found[-1], atol=1e-3)
    assert kernel
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gain", [-0.1, 1.0])
def test_a_wrong_gain(gain):
    with pytest.raises(ValueError, match=r"attention.gain: expected a share in 0 … 1"):
        AutoAttention(gain=gain)
