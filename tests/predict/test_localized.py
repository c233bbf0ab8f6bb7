"""Whole pictures with masks: an untouched outside, several styles and intervals, two ways to write them."""

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import pixels, row, stylize

from diffstyler.backbones import StableDiffusion
from diffstyler.diffusion.fusion import FuseClean, FuseLatents, FuseNoise
from diffstyler.diffusion.initial import FromContent
from diffstyler.diffusion.injection import CrossLoRAInjection
from diffstyler.images import load_image
from diffstyler.manifests.pictures import read_manifest
from diffstyler.memory.forecast import AliveBytes
from diffstyler.predict.writer import PredictError
from diffstyler.types import StyleRegion, Triple

SOFT = 0.02 * 64  # pixels that the default feather reaches to each side


def regions(studio: Path, *rows: dict, content: str = "photo", id: str = "r", **fields) -> Triple:
    made = tuple(StyleRegion(studio / f"{values.pop('style', 'gold')}.png", **values) for values in map(dict, rows))
    return Triple(id, studio / f"{content}.png", made, **fields)


def sidecar(studio: Path, name: str = "r", out: str = "out") -> dict:
    return json.loads((studio / out / f"{name}.json").read_text())


def test_outside_the_feathered_mask_the_pixels_are_the_inputs(studio, tiny_dir):
    result = stylize(studio, tiny_dir, regions(studio, {"mask": "box: 20,10,50,40 [feather 5]"}))[0]
    before, after = (np.asarray(image).astype(int) for image in (load_image(studio / "photo.png"), result))
    difference = np.abs(before - after).max(-1)
    outside = np.ones(difference.shape, bool)
    outside[5:45, 15:55] = False
    assert difference[outside].max() == 0
    assert difference[15:35, 25:45].mean() > 5
    report = sidecar(studio)["outside"]
    assert report["largest_difference"] == 0
    assert report["pixels"] >= outside.sum()
    assert set(report["seam"]) == {"content", "result"}


def test_the_mask_lies_beside_the_picture_and_on_the_sheet(studio, tiny_dir):
    stylize(studio, tiny_dir, regions(studio, {"mask": "box: 20,10,50,40"}, {"style": "tomato", "mask": "background"}))
    described = sidecar(studio)["regions"]
    assert [region["mask"] for region in described] == ["box: 20,10,50,40", "background"]
    first, second = (np.asarray(Image.open(studio / "out" / region["mask_file"])) for region in described)
    assert first.shape == (64, 72)
    assert np.abs(first.astype(int) + second - 255).max() <= 1
    assert described[0]["mask_share"] == pytest.approx(30 * 30 / (64 * 72), abs=0.01)
    page = (studio / "out" / "index.html").read_text()
    assert described[0]["mask_file"] in page
    assert f"box: 20,10,50,40 ({described[0]['mask_share']:.3g} of the picture)" in page


def test_mask_and_share_are_recorded_also_of_a_mask_that_covers_all(studio, tiny_dir):
    whole, plain = {"mask": "box: 0,0,72,64"}, {"style": "tomato"}
    stylize(studio, tiny_dir, regions(studio, whole), regions(studio, plain, id="plain"))
    (told,), (everything,) = (sidecar(studio, name)["regions"] for name in ("r", "plain"))
    assert told["mask_share"] == everything["mask_share"] == 1
    assert np.asarray(Image.open(studio / "out" / told["mask_file"])).min() == 255
    assert "mask_file" not in everything


def test_a_mask_of_everything_is_no_mask(studio, tiny_dir):
    prompts = ["everything", "box: 0,0,72,64", "background", "not (box: 0,0,9,9 - box: 0,0,9,9)"]
    results = stylize(studio, tiny_dir, *(regions(studio, {"mask": p}, id=f"r{i}") for i, p in enumerate(prompts)))
    assert len({pixels(result) for result in results}) == 1


@pytest.mark.parametrize("policy", ["error", "skip", "whole"])
def test_an_empty_mask_follows_the_policy(studio, tiny_dir, policy):
    empty = regions(studio, {"mask": "box: 0,0,9,9 - box: 0,0,9,9"})
    if policy == "error":
        with pytest.raises(PredictError, match="r: mask 'box: 0,0,9,9 - box: 0,0,9,9' is empty in this picture"):
            stylize(studio, tiny_dir, empty, on_empty_mask=policy)
        return
    result = stylize(studio, tiny_dir, empty, on_empty_mask=policy)[0]
    whole = stylize(studio, tiny_dir, regions(studio, {}, id="whole"))[0]
    expected = load_image(studio / "photo.png") if policy == "skip" else whole
    assert pixels(result) == pixels(expected)


def test_disjoint_regions_commute_and_overlapping_ones_do_not(studio, tiny_dir):
    left = {"style": "gold", "mask": "box: 0,0,30,64"}
    for mask, commutes in {"box: 42,0,72,64": True, "box: 10,0,72,64": False}.items():
        right = {"style": "tomato", "mask": mask}
        pair = [regions(studio, left, right, id="a"), regions(studio, right, left, id="b")]
        one, other = stylize(studio, tiny_dir, *pair, out=f"out-{commutes}", rows_per_call=5)
        assert (pixels(one) == pixels(other)) == commutes


def test_csv_rows_and_nested_regions_make_the_same_picture(studio, tiny_dir):
    table = [
        ("id", "content", "style", "mask", "start", "stop", "guidance_scale", "inject_features"),
        ("r", "photo.png", "gold.png", '"box: 0,0,30,64"', "1.0", "0.5", "3", "0.2"),
        ("r", "photo.png", "tomato.png", '"box: 0,0,30,64"', "0.5", "0.0", "", ""),
        ("r", "photo.png", "tomato.png", "background", "", "", "1.5", ""),
    ]
    (studio / "rows.csv").write_text("\n".join(",".join(cells) for cells in table) + "\n")
    nested = [
        {"style": "gold.png", "mask": "box: 0,0,30,64", "stop": 0.5, "guidance_scale": 3, "inject_features": 0.2},
        {"style": "tomato.png", "mask": "box: 0,0,30,64", "start": 0.5},
        {"style": "tomato.png", "mask": "background", "guidance_scale": 1.5},
    ]
    (studio / "rows.jsonl").write_text(json.dumps({"id": "r", "content": "photo.png", "regions": nested}) + "\n")
    results = [
        stylize(studio, tiny_dir, *read_manifest(studio / f"rows.{kind}"), out=kind)[0] for kind in ("csv", "jsonl")
    ]
    assert pixels(results[0]) == pixels(results[1])
    assert sidecar(studio, out="csv")["key"] == sidecar(studio, out="jsonl")["key"]


@pytest.mark.parametrize(
    "change",
    [
        {"feather": 0.2},
        {"keep_outside": False},
        {"fusion": FuseNoise()},
        {"fusion": FuseClean()},
        {"fusion": FuseNoise(hard_masks=True)},
        {"fusion": FuseNoise(CrossLoRAInjection(1.0, 1.0))},
    ],
    ids=lambda change: "-".join(f"{k}-{getattr(v, '__dict__', v)}" for k, v in change.items())[:40],
)
def test_every_setting_of_localized_transfer_has_an_effect(studio, tiny_dir, plain, change):
    local = regions(studio, {"mask": "box: 11,9,50,43"})
    changed = stylize(studio, tiny_dir, local, **{"keep_outside": False, **change})[0]
    assert plain(local, keep_outside=True, fusion=FuseLatents()) != pixels(changed)


@pytest.mark.parametrize("change", [{"inject_features": 0.0}, {"inject_attention": 0.0}, {"start": 0.5}, {"stop": 0.4}])
def test_every_field_of_a_region_has_an_effect(studio, tiny_dir, plain, change):
    box = {"mask": "box: 11,9,50,43"}
    (changed,) = stylize(studio, tiny_dir, regions(studio, {**box, **change}))
    assert plain(regions(studio, box)) != pixels(changed)


def test_a_region_alone_is_the_same_beside_another_picture(studio, tiny_dir):
    local = regions(studio, {"mask": "box: 11,9,50,43"}, {"style": "tomato", "mask": "background"})
    alone = stylize(studio, tiny_dir, local, rows_per_call=4)[0]
    both = stylize(studio, tiny_dir, row(studio, id="other"), local, rows_per_call=4, batch_size=2, out="both")[1]
    assert pixels(alone) == pixels(both)


def test_a_changed_mask_file_makes_the_picture_again(studio, tiny_dir):
    mask = studio / "mask.png"
    local = regions(studio, {"mask": f"file: {mask}"})
    results = []
    for edge in (30, 40):
        Image.fromarray((np.arange(72) < edge)[None].repeat(64, 0)).convert("L").save(mask)
        results.append(pixels(stylize(studio, tiny_dir, local)[0]))
    assert results[0] != results[1]


def test_wrong_masks_end_the_run_before_it_starts(studio, tiny_dir):
    rows = [regions(studio, {"mask": mask}, id=f"r{i}") for i, mask in enumerate(["box: 1,2,3", "point: 99,1"])]
    with pytest.raises(ValueError, match="expected four numbers") as error:
        stylize(studio, tiny_dir, *rows)
    assert "r1, column 'mask': mask 'point: 99,1': expected x within the picture's 72 pixels" in str(error.value)
    assert not list(studio.glob("out/*.png"))


def test_shares_sum_to_one_at_most():
    from diffstyler.diffusion.fusion import shares

    a, b = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))
    below, above = shares([a, b])
    assert torch.equal(above, b)
    assert torch.equal(below, torch.minimum(a, 1 - b))
    whole, half = shares([None, a])
    assert torch.equal(whole, 1 - a)
    assert torch.equal(half, a)
    assert [w.item() for w in shares([None, None])] == [0, 1]
    assert shares([]) == []


def test_four_styles_take_little_more_memory_than_one(studio, tiny_dir):
    (gold,) = (studio / "loras").glob("gold-*")
    loras = [shutil.copytree(gold, studio / f"lora{index}") for index in range(4)]
    boxes = ["0.0,0.0,0.5,0.5", "0.5,0.0,1.0,0.5", "0.0,0.5,0.5,1.0", "0.5,0.5,1.0,1.0"]
    own = [StyleRegion(lora, mask=f"box: {box}", prompt="a") for lora, box in zip(loras, boxes, strict=True)]
    peaks = {}
    for count in (1, 4):
        triple = Triple(f"{count} styles", studio / "photo.png", tuple(own[:count]))
        gc.collect()
        with AliveBytes() as alive:
            # loaded there, as in a run of its own
            how = {"backbone": StableDiffusion(str(tiny_dir)), "num_inference_steps": 1}
            stylize(studio, tiny_dir, triple, out=str(count), rows_per_call=9, initial=FromContent(), **how)
        peaks[count] = alive.peak
    assert peaks[1] < peaks[4] < 1.3 * peaks[1]
