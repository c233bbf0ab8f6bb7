"""Whole pictures: settings have effects, batches do not, failures stay with their rows."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from runs import pixels, row, stylize

from diffstyler.adapters import LoRAIdentity, LoRALibrary, LowRank, save_lora
from diffstyler.backbones import StableDiffusion
from diffstyler.diffusion.fusion import FuseClean
from diffstyler.diffusion.initial import FromContent, FromStyle
from diffstyler.diffusion.injection import CrossLoRAInjection, NoInjection
from diffstyler.diffusion.matching import NoMatching, PatchTransport, StyleMatching
from diffstyler.diffusion.solver import DPMSolverMultistep
from diffstyler.errors import RowsError
from diffstyler.images import load_image, to_tensor
from diffstyler.predict.row_check import MissingLoRAError
from diffstyler.predict.stylizer import Stylizer
from diffstyler.predict.writer import PredictError
from diffstyler.types import StyleRegion, Triple

FIXED = CrossLoRAInjection(0.6, 1.0)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"num_inference_steps": 4}),
        ({}, {"inversion_refinements": 2}),
        ({}, {"guidance_scale": 4.0}),
        ({}, {"guidance_interval": (0.0, 0.4)}),
        ({}, {"solver": DPMSolverMultistep()}),
        ({}, {"negative_prompt": "ugly"}),
        ({}, {"prompt": "sky"}),
        ({}, {"injection": NoInjection()}),
        ({"injection": FIXED}, {"injection": replace(FIXED, features=0.0)}),
        ({"injection": FIXED}, {"injection": replace(FIXED, attention=0.0)}),
        ({"injection": FIXED}, {"injection": replace(FIXED, adaptive=True)}),
        ({"injection": FIXED}, {"injection": replace(FIXED, source_under_style=True)}),
        ({"injection": FIXED}, {"injection": replace(FIXED, plain_self_attention_at_sites=True)}),
        ({"initial": FromContent()}, {"initial": FromContent(noise=0.5)}),
        ({}, {"initial": FromContent()}),
        ({}, {"initial": FromStyle()}),
        ({}, {"matching": NoMatching()}),
        ({}, {"matching": PatchTransport(0.5)}),
        ({}, {"matching": PatchTransport(patch=1)}),
        ({}, {"content_lora": "off"}),
        ({}, {"resolution": 128}),
    ],
    ids=lambda change: "-".join(f"{k}-{v}" for k, v in change.items()) or "default",
)
def test_every_setting_has_an_effect(studio, tiny_dir, plain, base, change):
    """One thing is changed at a time."""
    changed = stylize(studio, tiny_dir, row(studio), out="changed", **{**base, **change})
    assert plain(row(studio), **base) != pixels(changed[0])


def test_a_second_run_makes_the_same_picture(studio, tiny_dir, plain):
    """Else the others would say nothing of a setting's effect."""
    assert plain(row(studio)) == pixels(stylize(studio, tiny_dir, row(studio))[0])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"injection": CrossLoRAInjection(attention=0.3, adaptive=True)}, ["injection.adaptive"]),
        ({"injection": CrossLoRAInjection(0.0, 0.0, source_under_style=True)}, ["injection.source_under_style"]),
        ({"guidance_scale": 1.0, "negative_prompt": "ugly"}, ["negative_prompt"]),
        ({"guidance_scale": 1.0, "guidance_interval": (0.5, 1.0)}, ["guidance_interval"]),
        ({"feather": 0.1}, ["feather"]),
        ({"fusion": FuseClean(), "on_empty_mask": "skip"}, ["fusion", "on_empty_mask"]),
        ({"keep_outside": False}, ["keep_outside"]),
        ({"injection": CrossLoRAInjection(0.6, 1.0, adaptive=True)}, []),
        ({"negative_prompt": "ugly"}, []),
        ({}, []),
    ],
)
def test_a_setting_without_effect_is_told(studio, tiny_dir, caplog, settings, told):
    with caplog.at_level("WARNING", "diffstyler"):
        stylize(studio, tiny_dir, row(studio), **settings)
    names = [m.split(";")[0].removeprefix("no effect in this run: ") for m in caplog.messages if "no effect" in m]
    assert names == ([", ".join(f"model.{name}" for name in told)] if told else [])


@pytest.mark.parametrize(("scale", "told"), [(1.0, True), (None, True), (2.0, False)])
def test_a_negative_prompt_that_nothing_asks_is_told(studio, tiny_dir, caplog, scale, told):
    region = StyleRegion(studio / "gold.png", negative_prompt="ugly", guidance_scale=scale)
    with caplog.at_level("WARNING", "diffstyler"):
        stylize(studio, tiny_dir, Triple("r", studio / "photo.png", (region,)), guidance_scale=1.0)
    assert any("no effect at guidance_scale 1: the rows' negative_prompt" in m for m in caplog.messages) is told


def test_masks_make_their_settings_effective(studio, tiny_dir, caplog):
    with caplog.at_level("WARNING", "diffstyler"):
        masked = StyleRegion(studio / "gold.png", mask="box: 0,0,30,64")
        stylize(studio, tiny_dir, Triple("r", studio / "photo.png", (masked,)), feather=0.1, fusion=FuseClean())
    assert not [m for m in caplog.messages if "no effect" in m]


@pytest.mark.parametrize("interval", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (1.0, 0.0)])
def test_an_interval_that_cannot_be_is_refused(interval):
    with pytest.raises(ValueError, match=r"guidance_interval: expected \[low, high\]"):
        Stylizer(guidance_interval=interval)


@pytest.mark.parametrize(
    "change",
    [
        {"strength": 0.5},
        {"prompt": "sky"},
        {"guidance_scale": 4.0},
        {"negative_prompt": "ugly"},
        {"content_prompt": "cup"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_column_has_an_effect(studio, tiny_dir, plain, change):
    changed = stylize(studio, tiny_dir, row(studio, **change), out="changed")
    assert plain(row(studio)) != pixels(changed[0])


def test_the_seed_draws_the_fresh_noise(studio, tiny_dir):
    first, again, other = (
        stylize(studio, tiny_dir, row(studio, seed=seed), out=f"out{i}", initial=FromContent(noise=0.5))[0]
        for i, seed in enumerate((1, 1, 2))
    )
    assert pixels(first) == pixels(again) != pixels(other)


def test_zero_strength_equals_no_adapter(studio, tiny_dir):
    prompt = {"prompt": "sky", "strength": 0.0}
    start = FromContent()
    gold = stylize(studio, tiny_dir, row(studio, style="gold", **prompt), out="gold", initial=start)
    tomato = stylize(studio, tiny_dir, row(studio, style="tomato", **prompt), out="tomato", initial=start)
    assert pixels(gold[0]) == pixels(tomato[0])


def test_a_picture_is_the_same_alone_in_a_batch_and_in_another_order(studio, tiny_dir):
    rows = [row(studio), row(studio, style="tomato"), row(studio, content="tall")]
    how = {"rows_per_call": 4, "num_inference_steps": 2}
    alone = [stylize(studio, tiny_dir, r, out=f"alone{i}", **how)[0] for i, r in enumerate(rows)]
    together = stylize(studio, tiny_dir, *rows, out="together", batch_size=3, **how)
    backward = stylize(studio, tiny_dir, *rows[::-1], out="backward", batch_size=2, **how)[::-1]
    for a, b, c in zip(alone, together, backward, strict=True):
        assert pixels(a) == pixels(b) == pixels(c)


@pytest.mark.parametrize(("matching", "levels"), [(NoMatching(), 1), (PatchTransport(), 4)])
def test_without_fixed_rows_batches_agree_within_rounding(studio, tiny_dir, matching, levels):
    """Which a matching enlarges, as every map that widens what is flat."""
    rows = [row(studio), row(studio, style="tomato")]
    alone = [stylize(studio, tiny_dir, r, out=f"alone{i}", matching=matching)[0] for i, r in enumerate(rows)]
    together = stylize(studio, tiny_dir, *rows, out="together", batch_size=2, matching=matching)
    for a, b in zip(alone, together, strict=True):
        assert max(abs(x - y) for x, y in zip(pixels(a), pixels(b), strict=True)) <= levels


@dataclass(frozen=True)
class Watched(StyleMatching):
    """Keeps what it is given."""

    given: ClassVar[list] = []

    def __call__(self, step, clean, style, strength, content):
        assert content.shape == clean.latents.shape
        self.given.append((clean, style, strength))
        return clean.latents


@pytest.mark.parametrize("start", [1.0, 0.5])
def test_a_region_and_the_part_of_its_style_are_matched(studio, tiny_dir, start):
    """In a run that takes the style picture for nothing else; of a style that comes late, too."""
    (folder,) = (studio / "loras").glob("gold-*")
    look = {"style_mask": "box: 0.0,0.0,0.5,1.0", "style_picture": studio / "gold.png"}
    half = StyleRegion(folder, start=start, mask="box: 0.0,0.0,1.0,0.5", strength=0.5, **look)
    Watched.given.clear()
    made = stylize(studio, tiny_dir, Triple("half", studio / "photo.png", (half,)), matching=Watched())
    assert len(Watched.given) == (3 if start == 1 else 2)
    clean, style, strength = Watched.given[-1]
    assert strength == 0.5
    height, width = clean.latents.shape[1:]
    assert clean.cells.tolist() == list(range(height * width // 2))  # the upper half
    backbone = StableDiffusion(str(tiny_dir)).load()
    gold = to_tensor(load_image(studio / "gold.png"), tuple(8 * side for side in style.latents.shape[1:]))
    torch.testing.assert_close(style.latents, backbone.encode_image(gold[None])[0])
    assert {int(cell) % style.latents.shape[2] for cell in style.cells} == set(range(style.latents.shape[2] // 2))
    assert json.loads((studio / "out" / "half.json").read_text())["settings"]["matching"] == {"class": "Watched"}
    assert made[0].size == load_image(studio / "photo.png").size


def test_the_cached_trajectory_gives_the_same_picture(studio, tiny_dir):
    first = stylize(studio, tiny_dir, row(studio), out="a", cache_dir=studio / "cache")
    files = {file: file.stat().st_mtime_ns for file in (studio / "cache").rglob("*.safetensors")}
    assert len(files) == 2  # the content's and the style's
    again = stylize(studio, tiny_dir, row(studio), out="b", cache_dir=studio / "cache")
    assert pixels(first[0]) == pixels(again[0])
    assert files == {file: file.stat().st_mtime_ns for file in (studio / "cache").rglob("*.safetensors")}


def test_sizes_come_back(studio, tiny_dir):
    assert [image.size for image in stylize(studio, tiny_dir, row(studio), row(studio, content="tall"))] == [
        (72, 64),
        (64, 88),
    ]


def test_a_style_may_be_a_lora_folder(studio, tiny_dir, caplog):
    caplog.set_level("WARNING")
    folder = next((studio / "loras").glob("gold-*"))
    direct = Triple("direct", studio / "photo.png", (StyleRegion(folder),))
    alone = {"initial": FromContent(), "matching": NoMatching()}
    assert pixels(stylize(studio, tiny_dir, row(studio), out="a", **alone)[0]) == pixels(
        stylize(studio, tiny_dir, direct, out="b", **alone)[0]
    )
    assert not caplog.messages
    stylize(studio, tiny_dir, direct, out="c", initial=FromContent())
    assert sum(f"no matching with {folder}, which has no style picture" in told for told in caplog.messages) == 1
    with pytest.raises(ValueError, match="this LoRA has none beside it"):
        stylize(studio, tiny_dir, direct, out="d")


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(studio, tiny_dir):
    (studio / "broken.png").write_bytes(b"not a picture")
    rows = row(studio, content="broken"), row(studio)
    with pytest.raises(RowsError, match=r"broken\.png"):
        stylize(studio, tiny_dir, *rows)
    assert not (studio / "out").exists()
    with pytest.raises(PredictError, match=r"broken\.png"):
        stylize(studio, tiny_dir, *rows, on_error="skip")
    assert (studio / "out" / "photo-gold.png").is_file()
    failure = json.loads((studio / "out" / "failures.jsonl").read_text())
    assert failure["id"] == "broken-gold"


def test_missing_loras_are_all_listed_before_anything_is_made(studio, tiny_dir):
    for name in ("one", "two"):
        Image.new("RGB", (64, 64), "navy" if name == "one" else "black").save(studio / f"{name}.png")
    with pytest.raises(MissingLoRAError) as missing:
        stylize(studio, tiny_dir, row(studio), row(studio, style="one"), row(studio, style="two"))
    text = str(missing.value)
    assert "one.png" in text
    assert "two.png" in text
    assert "diffstyler fit --config configs/style.yaml" in text
    assert not (studio / "out").exists()


def test_two_loras_for_one_picture_are_not_guessed_between(studio, tiny_dir):
    library = LoRALibrary(studio / "loras")
    entry = next(e for e in library.entries() if e.identity.name == "gold")
    other = LoRAIdentity("style", "gold", entry.identity.picture, entry.identity.model, {"prompt": "another"})
    weights = (entry.folder / "pytorch_lora_weights.safetensors").read_bytes()
    library.publish(other, lambda folder: (folder / "pytorch_lora_weights.safetensors").write_bytes(weights))
    with pytest.raises(ValueError, match="2 style LoRAs of different settings"):
        stylize(studio, tiny_dir, row(studio))


def test_the_text_encoder_part_of_a_lora_acts_by_its_strength(studio, tiny_dir):
    """With it and without it, at strength 1 and 0: only the whole LoRA at strength 1 gives another picture."""
    backbone = StableDiffusion(str(tiny_dir)).load()
    where = {
        "unet": (backbone.unet, "up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_q", 0.0),
        "text_encoder": (backbone.text_encoder, "encoder.layers.1.mlp.fc1", 1.0),
    }
    parts = {}
    for part, (model, name, size) in where.items():
        module = model.get_submodule(name)
        update = LowRank(torch.ones(1, module.in_features) * size, torch.ones(module.out_features, 1) * size)
        parts[part] = {name: update}
    configs = dict.fromkeys(parts, LoraConfig(r=1, lora_alpha=1))
    save_lora(studio / "plain", {"unet": parts["unet"]}, {"unet": configs["unet"]})
    save_lora(studio / "whole", parts, configs)
    rows = [
        Triple(
            f"{name}-{strength:g}", studio / "photo.png", (StyleRegion(studio / name, prompt="sky", strength=strength),)
        )
        for name in ("plain", "whole")
        for strength in (1.0, 0.0)
    ]
    settings = {"initial": FromContent(), "content_lora": "off"}
    pictures = stylize(studio, tiny_dir, *rows, **settings)
    assert pixels(pictures[0]) == pixels(pictures[1]) == pixels(pictures[3])
    assert pixels(pictures[2]) != pixels(pictures[3])


@pytest.mark.parametrize(
    ("precision", "like"),
    [("64-true", "32-true"), ("bf16-true", "bf16-mixed"), ("16-true", "32-true")],
)
def test_every_precision_of_the_trainer_runs(studio, tiny_dir, precision, like):
    local = Triple("r", studio / "photo.png", (StyleRegion(studio / "gold.png", mask="box: 0,0,40,40"),))
    settings = {"initial": FromContent(), "guidance_scale": 1.0, "num_inference_steps": 1}
    one, other = (
        stylize(studio, tiny_dir, row(studio), local, out=name, precision=name, **settings)
        for name in (precision, like)
    )
    assert torch.get_default_dtype() == torch.float32
    for a, b in zip(one, other, strict=True):
        assert np.abs(np.asarray(a).astype(float) - np.asarray(b)).mean() < 1


def test_an_interrupted_run_leaves_the_model_as_it_was(studio, tiny_dir, monkeypatch):
    class LostError(BaseException):
        pass

    def lose(*_, **__) -> None:
        raise LostError

    backbone = StableDiffusion(str(tiny_dir))
    monkeypatch.setattr("diffstyler.predict.stylizer.finish", lose)
    with pytest.raises(LostError):
        stylize(studio, tiny_dir, row(studio), backbone=backbone, num_inference_steps=1)
    assert not any(module._forward_hooks for module in backbone.modules())
