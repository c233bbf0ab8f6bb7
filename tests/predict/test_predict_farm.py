"""Pictures shared by ranks: each made once, none lost, failures told once, whoever is killed."""

import json
import os
import re
import signal
from pathlib import Path

import crashes
import pytest
from PIL import Image
from runs import DDP, children, row, start, stylize, two_ranks, wait_for

from diffstyler.cli.main import main
from diffstyler.farm.ranks import RankFarm, Told, sweep_ranks
from diffstyler.predict import adapter_cache as lookup
from diffstyler.predict.data import PredictData, Share
from diffstyler.types import StyleRegion, Triple


def triples(*names: str) -> list[Triple]:
    return [Triple(name, Path(name[0]), (StyleRegion(Path(name[1])),)) for name in names]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_row_is_one_ranks_and_contents_stay_together(ranks):
    rows = triples("a1", "b1", "c1", "a2", "b2", "c2", "a3")
    farms = [Share(rows, RankFarm(rank=rank, ranks=ranks)) for rank in range(ranks)]
    lengths = [len(share) for share in farms]
    shares = [[rows[i].id for i in share] for share in farms]
    assert [id for share in shares for id in share] == ["a1", "a2", "a3", "b1", "b2", "c1", "c2"]
    assert lengths == [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths[0] > 0  # it reports for all


def test_a_style_that_serves_several_contents_is_read_once(studio, tiny_dir, monkeypatch):
    read, real = [], lookup.read_lora
    monkeypatch.setattr(lookup, "read_lora", lambda path, **how: read.append(path) or real(path, **how))
    stylize(
        studio,
        tiny_dir,
        *(row(studio, content, style) for content in ("photo", "tall") for style in ("gold", "tomato")),
    )
    assert len(read) == len(set(read)) == 3


def test_without_a_trainer_the_data_are_whole():
    loader = PredictData(triples=triples("b1", "a1"), batch_size=2).predict_dataloader()
    assert [[row.id for row in batch] for batch in loader] == [["a1", "b1"]]


def test_the_first_rank_reads_what_all_ranks_told(tmp_path):
    folder = tmp_path / "ranks"
    dead = RankFarm(folder, "before", 1, 2)
    dead.finish("old")
    dead._lock.release()  # as the kernel does when its process is killed
    other_run = RankFarm(folder, "other", 1, 2)
    sweep_ranks(folder)
    assert [path.name for path in folder.iterdir()] == ["other-1.lock"]
    first, second, killed = (RankFarm(folder, "run", rank, 3) for rank in range(3))
    first.finish("a")
    second.fail("b", "broken")
    killed.finish("c")
    with (folder / "run-2.jsonl").open("a") as file:
        file.write('{"id": "d", "or')
    second.close()
    killed._lock.release()
    assert first.collect() == [Told("a"), Told("b", "broken"), Told("c")]
    assert [path.name for path in folder.iterdir()] == ["other-1.lock"]
    other_run.close()


# ---- the real command, with processes that are really killed


@pytest.fixture
def command(studio, tiny_dir) -> list[str]:
    """Two styles on two photographs and on two that cannot be read, the tiny model."""
    lines = ["id,content,style"]
    for content in ("photo", "bad1", "tall", "bad2"):
        lines += [f"{content}-{style},{content}.png,{style}.png" for style in ("gold", "tomato")]
    for name in ("bad1", "bad2"):
        (studio / f"{name}.png").write_bytes(b"not a picture")
    (studio / "all.csv").write_text("\n".join(lines))
    (studio / "good.csv").write_text("\n".join(line for line in lines if "bad" not in line))
    (studio / "one.csv").write_text("\n".join(lines[:2]))
    options = {
        "data.manifest": str(studio / "all.csv"),
        "output_dir": str(studio / "out"),
        "on_error": "skip",
        "model.backbone": "StableDiffusion",
        "model.backbone.model": str(tiny_dir),
        "model.num_inference_steps": "3",
        "model.rows_per_call": "6",
        "trainer.logger": "false",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    return ["predict", *(part for name, value in options.items() for part in (f"--{name}", value))]


def alone(command: list[str], studio: Path, *more: str) -> int:
    return main([*command, "--lora_dir", str(studio / "loras"), *more])


def pictures(folder: Path) -> dict[str, bytes]:
    return {file.name: Image.open(file).tobytes() for file in folder.glob("*.png")}


def test_two_ranks_make_the_pictures_and_tell_failures_once(command, studio):
    process = start(command, studio / "loras", *DDP)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert error.count("4 pictures could not be made") == 1
    failures = [json.loads(line) for line in (studio / "out" / "failures.jsonl").read_text().splitlines()]
    assert sorted(failure["id"] for failure in failures) == ["bad1-gold", "bad1-tomato", "bad2-gold", "bad2-tomato"]
    assert {failure["origin"] for failure in failures} == {f"all.csv row {row}" for row in (4, 5, 8, 9)}
    made = pictures(studio / "out")
    assert all(name.removesuffix(".png") in (studio / "out" / "index.html").read_text() for name in made)
    assert not (studio / "out" / ".ranks").exists()
    good = ("--data.manifest", str(studio / "good.csv"), "--output_dir", str(studio / "alone"))
    assert alone(command, studio, *good) == 0
    assert made == pictures(studio / "alone")


def test_fewer_rows_than_ranks(command, studio):
    codes, _, error = two_ranks(command, studio / "loras", "--data.manifest", str(studio / "one.csv"))
    assert codes == [0, 0], error
    assert list(pictures(studio / "out")) == ["photo-gold.png"]


def test_a_killed_rank_is_noticed_and_only_its_rows_are_made_again(command, studio):
    options = ("--data.manifest", str(studio / "good.csv"), "--model.num_inference_steps", "20")
    process = start([*command, *options], studio / "loras", *DDP)
    wait_for(studio / "out", "*.png")
    os.kill(children(process)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert re.search(r"a rank ended early, \d pictures are missing \(.*run the same again", error)
    assert not (studio / "out" / ".ranks").exists()
    before = {file: file.stat().st_mtime_ns for file in (studio / "out").glob("*.png")}
    before = {file: time for file, time in before.items() if file.with_suffix(".json").is_file()}
    assert 0 < len(before) < 4
    assert alone(command, studio, *options) == 0
    assert len(pictures(studio / "out")) == 4
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_a_terminated_run_says_so(command, studio):
    more = ["--lora_dir", str(studio / "loras"), "--model.num_inference_steps", "20"]
    process = crashes.start([*command, *more], studio / "out")
    wait_for(studio / "out", "*.png")
    os.kill(process, signal.SIGTERM)
    assert crashes.ended(process) == 128 + signal.SIGTERM
