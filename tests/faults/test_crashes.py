"""Runs that are killed: files under their final names are whole, and after a rerun all is as if nothing had been."""

import crashes
import pytest


def command(kind, studio, tiny_dir) -> list[str]:
    (studio / "rows.csv").write_text(
        "content,style,mask\nphoto.png,gold.png,\nphoto.png,tomato.png,left\ntall.png,gold.png,\ntall.png,tomato.png,\n"
    )
    model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]
    here = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--data.manifest", str(studio / "rows.csv")]
    if kind == "predict":
        steps = ["--model.num_inference_steps", "2", "--model.cache_dir", str(studio / "cache")]
        return [kind, *model, *here, "--lora_dir", str(studio / "loras"), *steps]
    size = ["--data.crops.resolution", "64", "--data.crops.crop_size", "64", "--model.rank", "2"]
    return [kind, *model, *here, *size, "--trainer.max_steps", "4", "--model.checkpoint_every", "2"]


@pytest.mark.parametrize("kind", ["fit", "predict"])
def test_killed_at_random_moments(studio, tiny_dir, tmp_path, kind):
    """Long, for it is six runs; 30 kills each: tools/reliability/crashes.py."""
    crashes.survive(command(kind, studio, tiny_dir), tmp_path / "runs", kills=3, seed=len(kind))


@pytest.mark.parametrize("kind", ["fit", "predict"])
def test_two_runs_on_one_folder_do_every_job_and_harm_nothing(studio, tiny_dir, tmp_path, kind):
    words = command(kind, studio, tiny_dir)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert crashes.ended(crashes.start(words, alone)) == 0
    processes = [crashes.start(words, shared) for _ in range(2)]
    assert [crashes.ended(process) for process in processes] == [0, 0]
    assert crashes.files(kind, alone) == crashes.files(kind, shared) != {}
    crashes.check_whole(kind, shared)
    assert not list(shared.glob("**/.*.tmp"))
