"""The preset `reference` against an independent transcription of the authors' way."""

from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig
from reference_transcription import circle, transcribe

from diffstyler.adapters import LoRAPack
from diffstyler.denoiser import Denoiser
from diffstyler.fusion import FuseNoise
from diffstyler.injection import CrossLoRAInjection
from diffstyler.sampling import Canvas, Region, denoise
from diffstyler.types import Trajectory

PRESET = yaml.safe_load((Path(__file__).parents[1] / "configs" / "reference.yaml").read_text())["model"]
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
    state = pack.state_dict(slot)
    names = {key.rsplit(".lora_", 1)[0] for key in state}
    scale = pack.scale[slot].item()
    return {n: scale * state[f"{n}.lora_B.weight"] @ state[f"{n}.lora_A.weight"] for n in names}


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
        schedule.alphas.tolist(),
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
        "alphas": schedule.alphas.tolist(),
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
