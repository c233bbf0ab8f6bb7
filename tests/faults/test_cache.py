"""The cache of trajectories gives what was put there, or nothing: it is a comfort, not a need."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffstyler.predict.inverter import TrajectoryCache
from diffstyler.types import Trajectory

KEY, OTHER = ({"picture": name, "steps": 3, "adapter": None} for name in ("a", "b"))


def trajectory(seed: int = 0, steps: int = 3) -> Trajectory:
    latents = torch.randn(steps + 1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Trajectory(torch.arange(steps).flip(0), latents)


def stored(folder: Path, key: dict = KEY, seed: int = 0) -> Path:
    """The file that a run leaves."""
    before = set(folder.rglob("*.safetensors"))
    TrajectoryCache(folder).put(key, trajectory(seed))
    (path,) = set(folder.rglob("*.safetensors")) - before
    return path


def rewrite(path: Path, **changes: torch.Tensor) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor.numel()}, path, metadata)


WHOLE = trajectory()

CHANGES = {
    "a number": {"latents": WHOLE.latents.clone().index_fill_(0, torch.tensor([1]), 0.5)},
    "NaN": {"latents": WHOLE.latents * float("nan")},
    "infinity": {"latents": WHOLE.latents * float("inf")},
    "fewer steps": {"latents": WHOLE.latents[:3].clone()},
    "another size": {"latents": WHOLE.latents[..., :4].contiguous()},
    "another type": {"latents": WHOLE.latents.half()},
    "other timesteps": {"timesteps": WHOLE.timesteps + 1},
    "timesteps of two dimensions": {"timesteps": WHOLE.timesteps[None].clone()},
    "more": {"color": torch.ones(1)},
    "no latents": {"latents": torch.zeros(0)},
}


def not_known(folder: Path, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told, counts as none, and is put right."""
    cache = TrajectoryCache(folder)
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY) is None
    assert f"{path} is no trajectory of this picture (" in caplog.text
    cache.put(KEY, WHOLE)
    assert torch.equal(TrajectoryCache(folder).get(KEY).latents, WHOLE.latents)


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_content_counts_as_none(tmp_path, caplog, kind):
    path = stored(tmp_path)
    rewrite(path, **CHANGES[kind])
    not_known(tmp_path, path, caplog)


@pytest.mark.parametrize("kind", ["another entry", "cut", "empty", "garbage", "no metadata", "other keys"])
def test_what_is_not_its_file_counts_as_none(tmp_path, caplog, kind):
    path = stored(tmp_path)
    if kind == "another entry":
        path.write_bytes(stored(tmp_path, OTHER, seed=1).read_bytes())
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind in {"empty", "garbage"}:
        path.write_bytes(b"" if kind == "empty" else b"garbage" * 99)
    elif kind == "no metadata":
        save_file(load_file(path), path)
    else:
        save_file({"x": torch.zeros(2)}, path, {"key": json.dumps(KEY, sort_keys=True)})
    not_known(tmp_path, path, caplog)


@pytest.mark.parametrize("place", ["file", "folder", "cache"])
def test_a_disk_that_does_not_take_it_costs_no_picture(tmp_path, caplog, place):
    path = stored(tmp_path / "cache")
    path.unlink()
    if place == "file":
        path.mkdir()
    elif place == "folder":
        path.parent.rmdir()
        path.parent.write_text("")
    else:
        path.parent.rmdir()
        (tmp_path / "cache").rmdir()
        (tmp_path / "cache").write_text("")
    cache = TrajectoryCache(tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY) is None
        cache.put(KEY, WHOLE)
    assert "cannot be kept" in caplog.text
    assert torch.equal(cache.get(KEY).latents, WHOLE.latents)


def test_what_is_not_finite_is_not_kept(tmp_path):
    TrajectoryCache(tmp_path).put(KEY, Trajectory(WHOLE.timesteps, WHOLE.latents * float("nan")))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_bound_holds_and_what_was_used_last_stays(tmp_path):
    size = stored(tmp_path, {"picture": "first"}).stat().st_size
    cache = TrajectoryCache(tmp_path, most_bytes=4.5 * size, in_memory=1)
    for name in "bcd":
        cache.put({"picture": name}, trajectory())
    again = TrajectoryCache(tmp_path, most_bytes=4.5 * size, in_memory=1)
    assert again.get({"picture": "first"})
    for name in "efghij":
        again.put({"picture": name}, trajectory())
        assert again.get({"picture": "first"}, start_only=False) is not None
        assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) <= 4.5 * size
    fresh = TrajectoryCache(tmp_path)
    assert fresh.get({"picture": "j"}) is not None
    assert fresh.get({"picture": "b"}) is None


def test_what_killed_runs_left_is_swept(tmp_path):
    left = stored(tmp_path).with_name(".x.safetensors.01234567.tmp")
    left.write_text("half")
    TrajectoryCache(tmp_path).put(OTHER, WHOLE)
    assert not left.exists()
