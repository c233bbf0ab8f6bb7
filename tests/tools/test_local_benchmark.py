"""The shipped benchmark is what its script renders, and its masks are measured as they should be."""

import json

import numpy as np
import pytest
from evaluate_base import HELD_OUT_SEED
from local_make import FIRST_SEED, main, usable
from local_run import BENCHMARK, ious
from local_run import main as run
from PIL import Image

from diffstyler.images import load_image
from diffstyler.manifests.pictures import read_manifest
from diffstyler.masking import check_masks


def test_the_manifest_can_be_read_and_every_word_mask_has_its_exact_one():
    triples = read_manifest(BENCHMARK / "manifest.csv")
    check_masks(triples)
    exact = {path.stem: load_image(path) for path in (BENCHMARK / "masks").glob("*.png")}
    assert {t.id for t in triples if not t.regions[0].mask.startswith("box")} == set(exact)
    for triple in triples:
        if triple.id in exact:
            levels = np.asarray(exact[triple.id])
            assert load_image(triple.content).size == exact[triple.id].size
            assert set(np.unique(levels)) == {0, 255}
            assert 0.05 < (levels == 255).mean() < 0.75


def test_what_is_shipped_is_what_the_script_renders(tmp_path, monkeypatch):
    """Masks bit by bit; pictures are JPEGs, whose encoders differ."""
    scene = next(usable())
    assert FIRST_SEED == HELD_OUT_SEED
    monkeypatch.setattr("local_make.SCENES", 1)
    monkeypatch.setattr("sys.argv", ["local_make.py", str(tmp_path)])
    main()
    masks = sorted((tmp_path / "masks").glob("*.png"))
    assert len(masks) == 2
    for mask in masks:
        there = np.asarray(load_image(mask))
        np.testing.assert_array_equal(there, np.asarray(load_image(BENCHMARK / "masks" / mask.name)))
        np.testing.assert_array_equal(there[..., 0] > 0, scene.masks[mask.stem.split("-")[1]])
    shipped = np.asarray(load_image(BENCHMARK / "contents/scene0.jpg")).astype(float)
    assert np.abs(shipped - scene.image * 255).mean() < 4


def test_iou_of_equal_half_and_other_masks(tmp_path):
    """A half of the exact mask is 0.5; soft borders count from a half."""
    (tmp_path / "exact").mkdir()
    whole = np.zeros((8, 8), np.uint8)
    whole[:4] = 255
    found = {
        "equal": whole,
        "half": np.where(np.arange(8) < 4, whole, 0),
        "other": 255 - whole,
        "soft": whole // 255 * 130,
    }
    for name, levels in found.items():
        Image.fromarray(whole).save(tmp_path / f"exact/{name}.png")
        Image.fromarray(levels.astype(np.uint8)).save(tmp_path / f"{name}.mask.png")
        (tmp_path / f"{name}.json").write_text(json.dumps({"regions": [{"mask_file": f"{name}.mask.png"}]}))
    Image.fromarray(whole).save(tmp_path / "exact/unmade.png")
    expected = {"equal": 1, "half": 0.5, "other": 0, "soft": 1}
    assert ious(tmp_path, tmp_path / "exact", [*expected]) == expected
    assert ious(tmp_path, tmp_path / "exact", ["half"]) == {"half": 0.5}  # others lie there from before


def test_the_script_predicts_measures_and_writes_a_table(studio, tiny_dir, capsys):
    (studio / "rows.csv").write_text('id,content,style,mask\none,photo.png,gold.png,"box: 0.2,0.2,0.8,0.8"\n')
    (studio / "masks").mkdir()
    exact = np.zeros((64, 72), np.uint8)
    exact[13:51, 14:58] = 255
    Image.fromarray(exact).save(studio / "masks/one.png")
    words = ["--manifest", str(studio / "rows.csv"), "--lora_dir", str(studio / "loras")]
    options = [
        "--model.backbone.model",
        str(tiny_dir),
        "--model.num_inference_steps",
        "2",
        "--trainer.accelerator",
        "cpu",
    ]
    code = run(
        [
            *words,
            "--output_dir",
            str(studio / "out"),
            "--",
            "--config",
            "configs/predict.yaml",
            *options,
            "--model.num_inference_steps",
            "2",
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert (studio / "out/local.md").read_text() in printed
    iou = float(printed.split("| mask_iou | ")[1].split(" ")[0])
    assert iou == pytest.approx(1, abs=0.08)
    assert "| outside_largest | 0.000 |" in printed
    model = json.loads((studio / "out/one.json").read_text())["settings"]["model"]
    assert f"model {tiny_dir} ({model['sha256'][:12]}); predict" in printed
    nowhere = ["--manifest", str(studio / "rows.csv"), "--lora_dir", str(studio / "none"), "--output_dir"]
    assert run([*nowhere, str(studio / "out"), "--", *options]) == 1
    assert "mask_iou" not in capsys.readouterr().out  # of pictures that other settings made
