"""The preset `reference` against an independent transcription of the authors' way."""

from pathlib import Path

import numpy as np
import pytest
import reference_transcription
import torch
import yaml
from peft import LoraConfig
from reference_transcription import FEATURES, INJECTED, circle, three_rows, transcribe, with_lora

from diffstyler.adapters import LoRAPack
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.fusion import FuseNoise
from diffstyler.diffusion.injection import CrossLoRAInjection
from diffstyler.diffusion.sampling import Canvas, Region, denoise
from diffstyler.types import Trajectory

PRESET = yaml.safe_load((Path(__file__).parents[2] / "configs" / "reference.yaml").read_text())["model"]
STEPS = 10
MASKS = [circle(64, (24, 30), 18), circle(64, (40, 34), 16)]  # they overlap


@pytest.fixture
def pack(tiny) -> LoRAPack:
    """Two random adapters on all attention projections."""
    pack = LoRAPack(tiny.unet, LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), 2)
    pack.flat.normal_(0, 0.15, generator=torch.Generator().manual_seed(3))
    pack.scale.copy_(torch.tensor([1.0, 0.7]))
    return pack


def merged(pack: LoRAPack, slot: int) -> dict[str, torch.Tensor]:
    return {name: module.update for name, module in pack.export(slot).items()}


@pytest.mark.parametrize("styles", [1, 2])
def test_engine_agrees_with_the_transcription(tiny, pack, styles):
    texts = tiny.encode_prompt(["a red tree", "the sea", PRESET["negative_prompt"], ""])
    prompts, negative, empty = [texts[[0]], texts[[1]]][:styles], texts[[2]], texts[[3]]
    schedule = tiny.sampling_schedule(STEPS)
    way = torch.randn(STEPS + 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    content, guidance = Trajectory(schedule.timesteps, way), PRESET["guidance_scale"]

    injection = CrossLoRAInjection(**PRESET["injection"]["init_args"])
    fusion_settings = PRESET["fusion"]["init_args"]
    outside = CrossLoRAInjection(**fusion_settings["outside"]["init_args"])
    fusion = FuseNoise(outside, hard_masks=fusion_settings["hard_masks"])
    regions = [Region(None, empty, negative, guidance, injection=outside)]
    for slot in range(styles):
        mask = fusion.latent_mask(torch.from_numpy(MASKS[slot]) / 255, (8, 8))
        regions.append(Region(slot, prompts[slot], negative, guidance, mask=mask, injection=injection))
    denoiser = Denoiser(tiny, pack, plain_sites=injection.plain_self_attention_at_sites)
    ours = denoise(denoiser, [Canvas(way[0], content, tuple(regions))], schedule, empty, fusion)[0]

    loras = [merged(pack, slot) for slot in range(styles)]
    pack.detach()
    theirs = transcribe(
        tiny.unet,
        loras,
        MASKS[:styles],
        [prompt.tokens for prompt in prompts],
        negative.tokens,
        empty.tokens,
        {t: way[k] for k, t in enumerate(schedule.timesteps.tolist())},
        schedule.timesteps.tolist(),
        [level.signal**2 for level in schedule.levels],
        way[0],
        guidance,
    )
    assert (ours - theirs).norm() / theirs.norm() < 1e-4
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-4


def test_the_transcription_notices_what_makes_the_reference(tiny, pack):
    """It is no check if everything passes it: each of its parts moves the result by far more than the tolerance."""
    texts = tiny.encode_prompt(["a red tree", "ugly", ""])
    schedule = tiny.sampling_schedule(4)
    way = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    settings = {
        "loras": [merged(pack, 0)],
        "masks": MASKS[:1],
        "prompts": [texts.tokens[:1]],
        "negative": texts.tokens[1:2],
        "empty": texts.tokens[2:],
        "content": {t: way[k] for k, t in enumerate(schedule.timesteps.tolist())},
        "timesteps": schedule.timesteps.tolist(),
        "alphas": [level.signal**2 for level in schedule.levels],
        "start": way[0],
        "guidance_scale": 3.0,
    }
    pack.detach()
    plain = transcribe(tiny.unet, **settings)
    changes = {
        "loras": [{name: 0 * update for name, update in settings["loras"][0].items()}],
        "masks": MASKS[1:],
        "prompts": [texts.tokens[2:]],
        "guidance_scale": 4.0,
        "content": {t: 0 * z for t, z in settings["content"].items()},
    }
    for name, value in changes.items():
        changed = transcribe(tiny.unet, **{**settings, name: value})
        assert (changed - plain).norm() / plain.norm() > 1e-2, name


# ---- the transcription itself: identities that follow from the method's text alone


@pytest.fixture
def reference(tiny, pack) -> dict:
    """Two styles, ten steps, masks that overlap."""
    texts = tiny.encode_prompt(["a red tree", "the sea", "ugly", ""]).tokens
    schedule = tiny.sampling_schedule(STEPS)
    way = torch.randn(STEPS, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    loras = [merged(pack, 0), merged(pack, 1)]
    pack.detach()
    return {
        "unet": tiny.unet,
        "loras": loras,
        "masks": MASKS,
        "prompts": [texts[[0]], texts[[1]]],
        "negative": texts[[2]],
        "empty": texts[[3]],
        "content": dict(zip(schedule.timesteps.tolist(), way, strict=True)),
        "timesteps": schedule.timesteps.tolist(),
        "alphas": [level.signal**2 for level in schedule.levels],
        "start": way[0],
        "guidance_scale": 3.0,
    }


@pytest.fixture
def first_steps(reference) -> dict:
    """Four of them, where more tell nothing more."""
    return {**reference, "timesteps": reference["timesteps"][:4]}


NO_STYLE = {"loras": [], "masks": [], "prompts": []}
EVERYWHERE = np.full((64, 64), 255, np.uint8)


@torch.no_grad()
def test_a_picture_steered_by_itself_is_plain_ddim(tiny, reference):
    """Source rows equal to the target rows change nothing, so that diffusers' own DDIM comes out."""
    x, way = reference["start"], {}
    tiny.scheduler.set_timesteps(STEPS)
    for t in tiny.scheduler.timesteps:
        way[int(t)] = x
        noise_pred = tiny.unet(x[None], t, encoder_hidden_states=reference["empty"]).sample[0]
        x = tiny.scheduler.step(noise_pred, t, x).prev_sample
    assert list(way) == reference["timesteps"]
    own = {**reference, **NO_STYLE, "content": way, "negative": reference["empty"]}
    torch.testing.assert_close(transcribe(**own), x, atol=1e-4, rtol=1e-4)
    steered = transcribe(**{**own, "content": reference["content"]})
    assert (steered - x).norm() / x.norm() > 1e-2


def test_the_last_writer_wins_and_an_empty_mask_is_no_style(first_steps):
    base, second = (
        transcribe(**{**first_steps, **NO_STYLE}),
        transcribe(**{**first_steps, **{name: first_steps[name][1:] for name in NO_STYLE}, "masks": [EVERYWHERE]}),
    )
    assert torch.equal(transcribe(**{**first_steps, "masks": [0 * EVERYWHERE] * 2}), base)
    assert torch.equal(transcribe(**{**first_steps, "masks": [EVERYWHERE] * 2}), second)
    assert not torch.allclose(base, second, atol=1e-2)


def test_a_faint_mask_is_inside(first_steps):
    faint = [np.minimum(mask, 8) for mask in MASKS]
    assert torch.equal(transcribe(**{**first_steps, "masks": faint}), transcribe(**first_steps))


def test_an_empty_style_is_the_base_until_its_injection_ends(reference):
    """Without LoRA and prompt only the schedules tell a style from the base, which is steered to the end."""
    one = {**reference, "masks": [EVERYWHERE], "prompts": [reference["empty"]]}
    one["loras"] = [{name: 0 * update for name, update in reference["loras"][0].items()}]
    late = {t: z if k < 6 else 0 * z for k, (t, z) in enumerate(reference["content"].items())}
    earlier = {t: z if k < 5 else 0 * z for k, (t, z) in enumerate(reference["content"].items())}
    assert torch.equal(transcribe(**{**one, "content": late}), transcribe(**one))
    assert not torch.allclose(transcribe(**{**one, "content": earlier}), transcribe(**one), atol=1e-3)
    base = {**reference, **NO_STYLE}
    assert not torch.allclose(transcribe(**{**base, "content": late}), transcribe(**base), atol=1e-3)


def test_fifty_steps_follow_the_authors_schedule(reference, monkeypatch):
    """Base: to the end; style: features 30 steps, queries and keys 25; the rate 2t/1000, at most 1."""
    calls = {"base": [], "style": []}

    def record(unet, z, x, t, texts, features, attention, rate):
        calls["base" if unet is reference["unet"] else "style"].append((t, features, attention, rate))
        return torch.zeros(4, 8, 8), torch.zeros(4, 8, 8)

    monkeypatch.setattr(reference_transcription, "three_rows", record)
    steps = list(range(981, 0, -20))
    content, alphas = dict.fromkeys(steps, reference["start"]), [0.5] * 51
    one = {"loras": reference["loras"][:1], "masks": MASKS[:1], "prompts": reference["prompts"][:1]}
    transcribe(**{**reference, **one, "timesteps": steps, "content": content, "alphas": alphas})
    rates = [2 * t / 1000 if t < 500 else 1.0 for t in steps]
    assert calls["base"] == [(t, True, True, rate) for t, rate in zip(steps, rates, strict=True)]
    assert calls["style"] == [(t, k < 30, k < 25, rates[k]) for k, t in enumerate(steps)]
    assert rates[:25] == [1.0] * 25  # so that a style's queries and keys are replaced, never blended


@torch.no_grad()
def test_the_source_row_writes_where_the_method_says(tiny, reference):
    """In a target row: the source's own features, the blend r q_src + (1 - r) q, values as they were."""
    z, x, t = reference["content"][reference["timesteps"][0]], torch.ones(4, 8, 8), 401
    texts = (reference["empty"], reference["negative"], reference["prompts"][0])
    first = INJECTED[0]  # its inputs do not depend on any other injected query
    watched = (FEATURES, f"{first}.to_q", f"{first}.to_k", f"{first}.to_v")

    def watch(features: bool, attention: bool) -> dict[str, torch.Tensor]:
        seen, handles = {}, []

        def start(*_) -> None:  # last of all hooks, so that these see what steering made of the output
            for name in watched:
                hook = lambda _, __, out, name=name: seen.update({name: out.clone()})  # noqa: E731
                handles.append(tiny.unet.get_submodule(name).register_forward_hook(hook))

        handles.append(tiny.unet.register_forward_pre_hook(start))
        seen["eps"] = torch.stack(three_rows(tiny.unet, z, x, t, texts, features, attention, 0.802))
        for handle in handles:
            handle.remove()
        return seen

    plain, queries, both = watch(False, False), watch(False, True), watch(True, True)
    for part in ("to_q", "to_k"):
        name = f"{first}.{part}"
        source, target = plain[name][:1], plain[name][1:]
        torch.testing.assert_close(queries[name][1:], 0.802 * source + 0.198 * target, atol=1e-5, rtol=1e-4)
    assert torch.equal(queries[f"{first}.to_v"], plain[f"{first}.to_v"])
    assert torch.equal(both[FEATURES][1:], plain[FEATURES][:1].expand(2, -1, -1, -1))
    assert torch.equal(queries[FEATURES], plain[FEATURES])
    expected = tiny.unet(torch.stack([z, x, x]), t, encoder_hidden_states=torch.cat(texts)).sample[1:]
    assert torch.equal(plain["eps"], expected)


def test_the_adapter_stays_out_of_the_injected_self_attention(tiny, reference):
    before = {name: value.clone() for name, value in tiny.unet.state_dict().items()}
    styled = with_lora(tiny.unet, reference["loras"][0]).state_dict()
    changed = {name for name, value in styled.items() if not torch.equal(value, before[name])}
    attention = {f"{name}.weight" for name in reference["loras"][0]}
    at_sites = {name for name in attention if name.startswith(tuple(f"{layer}." for layer in INJECTED))}
    assert len(at_sites) == 8 * 4
    assert changed == attention - at_sites
    assert all(torch.equal(value, before[name]) for name, value in tiny.unet.state_dict().items())
