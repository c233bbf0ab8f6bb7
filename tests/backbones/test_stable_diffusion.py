"""Backbones: numbers equal to diffusers', and errors that come before the weights."""

import json
import logging
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from runs import generate
from torch import nn

from diffstyler.backbones import StableDiffusion
from diffstyler.diffusion.ddim import ddim_step
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.sampling import Region
from diffstyler.types import NoiseLevel

BOTH = pytest.mark.parametrize("tiny_dir", ["epsilon", "v_prediction"], indirect=True)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pipe(tiny_dir) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_the_embedded_model_loads_and_has_all_sites():
    backbone = StableDiffusion().load(torch.float16)
    assert backbone.prediction.name in ("epsilon", "v_prediction")
    assert all(isinstance(backbone.unet.get_submodule(path), nn.Conv2d) for path in backbone.sites.features)
    for path in backbone.sites.attention:
        attention = backbone.unet.get_submodule(path)
        assert isinstance(attention.to_q, nn.Linear)
        assert isinstance(attention.to_k, nn.Linear)
    assert len(backbone.sites.attention) == 8
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert (backbone.unet.dtype, backbone.vae.dtype) == (torch.float16, torch.float32)
    assert backbone.identity() == {
        "name": "embedded",
        "family": "StableDiffusion",
        "sha256": StableDiffusion().fingerprint(),
    }


@torch.no_grad()
def test_parts_equal_the_pipelines(tiny, pipe):
    latents, timesteps, pixels = randn(2, 4, 8, 8), torch.tensor([981, 21]), randn(1, 3, 64, 64).clamp(-1, 1)
    prompt = tiny.encode_prompt(["a red tree", ""])
    theirs = torch.cat([pipe.encode_prompt(text, "cpu", 1, False)[0] for text in ("a red tree", "")])
    torch.testing.assert_close(prompt.tokens, theirs)
    expected = pipe.unet(latents, timesteps, encoder_hidden_states=theirs).sample
    torch.testing.assert_close(tiny.predict(latents, timesteps, prompt), expected, atol=1e-5, rtol=1e-4)
    mean = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    torch.testing.assert_close(tiny.encode_image(pixels), mean)
    decoded = pipe.vae.decode(mean / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(tiny.decode_latents(mean), decoded)
    assert (tiny.size_multiple, tiny.resolution) == (8, 64)


@BOTH
@torch.no_grad()
def test_text_to_image_equals_the_pipeline(tiny, pipe):
    latents = randn(1, 4, 8, 8)
    shared = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 64, "width": 64, "latents": latents}
    expected = pipe("a red tree", negative_prompt="ugly", output_type="latent", **shared).images[0]
    region = Region(None, tiny.encode_prompt(["a red tree"]), tiny.encode_prompt(["ugly"]), 3.0)
    actual = generate(Denoiser(tiny), latents[0], tiny.sampling_schedule(4), region)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@BOTH
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_the_schedule_is_the_schedulers(tiny, pipe, steps):
    schedule = tiny.sampling_schedule(steps)
    pipe.scheduler.set_timesteps(steps)
    assert torch.equal(schedule.timesteps, pipe.scheduler.timesteps)
    assert len(schedule) == steps
    assert len(schedule.levels) == steps + 1
    assert schedule.timesteps[-1] == 1
    alphas = torch.tensor([level.signal**2 for level in schedule.levels])
    torch.testing.assert_close(alphas[:-1], pipe.scheduler.alphas_cumprod[schedule.timesteps])
    assert alphas[-1].item() == pytest.approx(pipe.scheduler.alphas_cumprod[0].item())
    assert all(level.signal**2 + level.sigma**2 == pytest.approx(1) for level in schedule.levels)


def test_noise_levels_are_on_the_cpu_wherever_the_model_is_made(tiny_dir):
    """As a Trainer makes it: looking at levels elsewhere would be waiting for what runs there."""
    with torch.device("meta"):
        model = StableDiffusion(str(tiny_dir))
        model.check()
        timesteps = torch.tensor([5], device="cpu")
        level = model.noise_levels(timesteps)
    assert level.signal.device == level.sigma.device == model.scheduler.alphas_cumprod.device == torch.device("cpu")


@BOTH
@torch.no_grad()
def test_noise_from_the_unets_output(tiny):
    latents, timesteps = randn(2, 4, 8, 8), torch.tensor([801, 201])
    prompt, alphas = tiny.encode_prompt(["a red tree", ""]), tiny.alphas_cumprod[timesteps]
    level = tiny.noise_levels(timesteps)
    output = tiny.predict(latents, timesteps, prompt)
    noise_pred = tiny.predict_noise(latents, timesteps, prompt, level)
    if tiny.prediction.name == "epsilon":
        assert torch.equal(noise_pred, output)
        return
    share = alphas.float().view(-1, 1, 1, 1)
    torch.testing.assert_close(noise_pred, share.sqrt() * output + (1 - share).sqrt() * latents)
    tiny.scheduler.set_timesteps(5)  # 801, 601, …
    expected = tiny.scheduler.step(output[0], 801, latents[0]).prev_sample
    step = ddim_step(
        latents[0],
        noise_pred[0],
        *(NoiseLevel(*(v.item() for v in (a.sqrt(), (1 - a).sqrt()))) for a in tiny.alphas_cumprod[[801, 601]]),
    )
    torch.testing.assert_close(step, expected, atol=1e-5, rtol=1e-4)


def test_the_fingerprint_follows_the_files(tiny_dirs, tmp_path):
    prints = {kind: StableDiffusion(str(folder)).fingerprint() for kind, folder in tiny_dirs.items()}
    assert prints["epsilon"] != prints["v_prediction"]
    copied = shutil.copytree(tiny_dirs["epsilon"], tmp_path / "copy")
    assert StableDiffusion(str(copied)).fingerprint() == prints["epsilon"]


def test_a_long_prompt_is_cut_with_a_warning(tiny, caplog):
    with caplog.at_level(logging.WARNING, "diffstyler"):
        short, long = tiny.encode_prompt(["a red tree"]).tokens, tiny.encode_prompt(["tree " * 99]).tokens
    assert short.shape == long.shape
    assert [record.message for record in caplog.records] == [
        f"prompt '{'tree ' * 99}' has 101 tokens; the model reads the first 32"
    ]


@pytest.mark.parametrize("model", ["/no/such/place", "./nowhere", "~/nowhere", "nowhere", "a/b/c"])
def test_a_missing_path_is_named_at_once(model):
    with pytest.raises(
        ValueError, match=rf"model '{model}': no such directory or file; expected 'embedded', a diffusers"
    ):
        StableDiffusion(model)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json is missing; expected a diffusers directory"):
        StableDiffusion(str(tmp_path)).load()


def test_another_family_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match=r"is a FluxPipeline; expected a StableDiffusionPipeline: choose"):
        StableDiffusion(str(tmp_path)).load()
