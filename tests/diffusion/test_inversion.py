"""Inversion: the same as diffusers', the way back leads home, and the cache tells keys apart."""

import pytest
import torch
from diffusers import DDIMInverseScheduler

from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.inversion import Clean, invert
from diffstyler.diffusion.sampling import Canvas, Region, denoise
from diffstyler.predict.inverter import TrajectoryCache
from diffstyler.types import Trajectory

KEY = {"content": "ab12", "model": "cd34", "adapter": None, "steps": 5, "refinements": 0, "prompt": ""}


def clean_latents(pictures: int = 1) -> list[torch.Tensor]:
    return list(torch.randn(pictures, 4, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("tiny_dir", ["epsilon", "v_prediction"], indirect=True)
@torch.no_grad()
def test_equals_diffusers(tiny):
    (z,), prompt = clean_latents(), tiny.encode_prompt([""])
    trajectory = invert(Denoiser(tiny), [Clean(z, prompt)], tiny.sampling_schedule(5))[0]
    scheduler = DDIMInverseScheduler.from_config(tiny.scheduler.config)
    scheduler.set_timesteps(5)
    assert trajectory.timesteps.tolist() == [801, 601, 401, 201, 1] == scheduler.timesteps.tolist()[::-1]
    assert torch.equal(trajectory.clean, z)
    for t in scheduler.timesteps:
        output = tiny.unet(z[None], t, encoder_hidden_states=prompt.tokens).sample[0]
        z = scheduler.step(output, t, z).prev_sample
        torch.testing.assert_close(trajectory.at(int(t)), z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tiny_dir", ["epsilon", "v_prediction"], indirect=True)
def test_sampling_returns_to_the_input(tiny):
    tiny.unet.conv_out.requires_grad_(False).weight.mul_(0.1)  # as smooth in z_t as trained models are
    (z,), prompt, denoiser = clean_latents(), tiny.encode_prompt([""]), Denoiser(tiny)
    schedule = tiny.sampling_schedule(8)
    errors = {}
    for refinements in (0, 3):
        way = invert(denoiser, [Clean(z, prompt)], schedule, refinements=refinements)[0]
        canvas = Canvas(way.latents[0], way, (Region(None, prompt, prompt, 1.0),))
        back = denoise(denoiser, [canvas], schedule, prompt)[0]
        errors[refinements] = ((back - z).norm() / z.norm()).item()
    assert errors[3] < 0.02
    assert errors[3] < errors[0] / 3


def test_pictures_inverted_together_equal_each_alone(tiny):
    pictures, prompt, schedule = clean_latents(2), tiny.encode_prompt([""]), tiny.sampling_schedule(3)
    denoiser = Denoiser(tiny, rows_per_call=2)
    together = invert(denoiser, [Clean(z, prompt) for z in pictures], schedule)
    for z, trajectory in zip(pictures, together, strict=True):
        assert torch.equal(invert(denoiser, [Clean(z, prompt)], schedule)[0].latents, trajectory.latents)


@pytest.fixture
def trajectory() -> Trajectory:
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return Trajectory(torch.tensor([801, 601, 401, 201, 1]), latents)


def test_the_cache_returns_what_was_put(tmp_path, trajectory):
    cache = TrajectoryCache(tmp_path / "cache")
    assert cache.get(KEY) is None
    cache.put(KEY, trajectory)
    found = TrajectoryCache(tmp_path / "cache").get(dict(reversed(KEY.items())))
    assert torch.equal(found.timesteps, trajectory.timesteps)
    assert torch.equal(found.latents, trajectory.latents)


@pytest.mark.parametrize("change", [{"content": "ff"}, {"adapter": "ff"}, {"steps": 6}, {"prompt": "a"}, {"more": 1}])
def test_other_keys_miss(tmp_path, trajectory, change):
    cache = TrajectoryCache(tmp_path)
    cache.put(KEY, trajectory)
    assert cache.get(KEY) is not None
    assert cache.get({**KEY, **change}) is None


@pytest.mark.parametrize("keep", [0, 4, 300])
def test_a_damaged_file_counts_as_none(tmp_path, trajectory, keep):
    TrajectoryCache(tmp_path).put(KEY, trajectory)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes()[:keep])
    assert TrajectoryCache(tmp_path).get(KEY) is None
    TrajectoryCache(tmp_path).put(KEY, trajectory)
    assert TrajectoryCache(tmp_path).get(KEY) is not None


def test_without_a_folder_the_latest_stay_in_memory(tmp_path, trajectory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = TrajectoryCache(None, in_memory=2)
    keys = [{**KEY, "content": content} for content in "abc"]
    cache.put(keys[0], trajectory)
    cache.put(keys[1], trajectory)
    assert torch.equal(cache.get(keys[0]).latents, trajectory.latents)
    cache.put(keys[2], trajectory)
    assert [cache.get(key) is not None for key in keys] == [True, False, True]
    assert not list(tmp_path.iterdir())
