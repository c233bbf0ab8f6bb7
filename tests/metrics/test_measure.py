"""`diffstyler test`: every figure of every picture is written, or named with the reason why not."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from runs import row, stylize

from diffstyler.cli.main import main
from diffstyler.errors import DiffstylerError
from diffstyler.metrics.base import FIGURES_NAME
from diffstyler.metrics.measure import TABLE_NAME, Battery, bootstrap, measure
from diffstyler.metrics.networks import Networks
from diffstyler.predict.contact_sheet import write_sheet
from diffstyler.types import StyleRegion, Triple


@pytest.fixture
def results(studio, tiny_dir):
    """A whole picture and one with a mask."""
    box = StyleRegion(studio / "gold.png", mask="box: 0.25,0.25,0.75,0.75")
    triples = [row(studio), Triple("boxed", studio / "photo.png", (box,))]
    stylize(studio, tiny_dir, *triples)
    return studio / "out"


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / FIGURES_NAME).read_text().splitlines()]


def test_the_command_writes_a_line_for_each_picture_and_one_of_all_and_a_table(results, capsys):
    assert main(["test", "--config", "configs/test.yaml", "--output_dir", str(results), "--resolution", "64"]) == 0
    boxed, whole, together = lines(results)
    assert [boxed["id"], whole["id"], together["pictures"]] == ["boxed", "photo-gold", 2]
    assert together["ssim"] == pytest.approx((boxed["ssim"] + whole["ssim"]) / 2)
    assert boxed["outside_largest"] == 0
    assert "outside_largest" not in whole
    assert "networks.alexnet" in together["not_computed"]["lpips"]
    printed = capsys.readouterr().out
    assert (results / TABLE_NAME).read_text() in printed
    assert f"| ssim | more | {together['ssim']:.4g} |" in printed
    assert "| fid | | not computed: networks.inception is not given" in printed
    assert (results / "index.html").is_file()


def test_every_figure_is_computed_or_named(results):
    figures = measure(results, resolution=64)
    named = {f for m in Battery.of(Networks()).metrics for f in m.figures} | set(figures.missing)
    assert named >= {"ssim", "lpips", "cfsd", "dino", "edge_agreement"}
    assert named >= {"gram_relu1_1", "fid", "artfid", "clip_image", "clip_text", "patch_distance", "palette_distance"}
    assert named >= {"outside_largest", "outside_mean", "seam"}
    assert named == set(figures.more_is_better) | set(figures.missing)
    assert not set(figures.more_is_better) & set(figures.missing)
    assert all(name in figures.table() for name in named)


def test_a_manifest_chooses_and_a_picture_that_is_not_there_is_an_error(results, studio):
    (studio / "rows.csv").write_text("id,content,style\nboxed,photo.png,gold.png\n")
    assert list(measure(results, studio / "rows.csv", resolution=64).rows) == ["boxed"]
    (studio / "rows.csv").write_text("id,content,style\nboxed,photo.png,gold.png\ntwo,photo.png,gold.png\n")
    with pytest.raises(DiffstylerError, match=r"1 of 2 pictures of .*rows.csv are not there \(two\)"):
        measure(results, studio / "rows.csv")


def test_a_picture_that_cannot_be_measured_is_told_and_left_out(results, studio, caplog):
    Image.new("RGB", (5, 5)).save(results / "boxed.png")
    assert list(measure(results, resolution=64).rows) == ["photo-gold"]
    assert "boxed.json is not measured: its content is 72 x 64, the result 5 x 5" in caplog.text
    rows = "id,content,style\nboxed,photo.png,gold.png\nphoto-gold,photo.png,gold.png\n"
    (studio / "rows.csv").write_text(rows)
    with pytest.raises(DiffstylerError, match=r"1 of 2 pictures of .*rows.csv could not be measured \(boxed\)"):
        measure(results, studio / "rows.csv", resolution=64)
    (studio / "photo.png").unlink()
    with pytest.raises(DiffstylerError, match="none of 2 pictures could be measured"):
        measure(results)
    (studio / "empty").mkdir()
    with pytest.raises(DiffstylerError, match="expected pictures and their sidecars"):
        measure(studio / "empty")


def test_the_report_shows_no_figures_of_pictures_that_were_made_again(results, studio, tiny_dir):
    def told() -> int:
        return write_sheet(results).read_text().count("edge_agreement")

    measure(results, resolution=64)
    measured = told()
    stylize(studio, tiny_dir, row(studio), num_inference_steps=2)
    again = told()
    assert measured > again > 0  # the other picture's are true still
    measure(results, resolution=64)
    assert told() >= measured


def test_resolution_has_an_effect(results):
    assert (
        measure(results, resolution=64).rows["boxed"]["ssim"] != measure(results, resolution=72).rows["boxed"]["ssim"]
    )


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = bootstrap(rng.normal(3, 1, 40).tolist(), draws=500)
        hits += low < 3 < high
    assert 180 <= hits <= 199
    assert bootstrap([2.0, 2.0]) == (2, 2)
    assert torch.is_grad_enabled()
