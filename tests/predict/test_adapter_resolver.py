"""Rows -> their LoRAs: each file and picture is read as often as it must be, and what is missing can be made."""

import os
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import row, stylize

from diffstyler.adapters import WEIGHTS_NAME, LoRALibrary
from diffstyler.adapters.library import RECORD_NAME
from diffstyler.backbones import StableDiffusion, StableDiffusionXL
from diffstyler.backbones.attention import AttentionBackend, AutoAttention
from diffstyler.cli.main import main
from diffstyler.errors import DiffstylerError
from diffstyler.predict import adapter_cache, adapter_resolver, row_check, stylizer
from diffstyler.predict.adapter_resolver import fit_options_of, resolve_adapters


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """How often which kind of file was read."""
    counted = Counter()

    def count(name: str, *modules) -> None:
        for module in modules:
            real = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, real=real, **k: counted.update([name]) or real(*a, **k))

    count("load_image", adapter_resolver, row_check, stylizer)
    count("file_sha256", adapter_resolver)
    count("read_lora", adapter_resolver, adapter_cache)
    count("read_record", adapter_resolver)
    entries = LoRALibrary.entries
    monkeypatch.setattr(LoRALibrary, "entries", lambda library: counted.update(["entries"]) or entries(library))
    return counted


def test_many_rows_read_what_few_rows_read(studio, tiny_dir, reads):
    """Resolving depends on the pictures and LoRAs, not on the rows."""
    library, model = LoRALibrary(studio / "loras"), StableDiffusion(str(tiny_dir)).fingerprint()
    seen = []
    for times in (1, 500):
        names = [("photo", "gold"), ("photo", "tomato"), ("tall", "gold"), ("tall", "tomato")] * times
        reads.clear()
        adapters = resolve_adapters([row(studio, *pair) for pair in names], library, model=model)
        assert (len(adapters.styles), len(adapters.contents), len(adapters.outlines)) == (2, 1, 3)
        seen.append(dict(reads))
    assert seen[0] == seen[1]
    # two styles and two contents; three LoRAs; and the files of two styles
    assert seen[0] == {"entries": 1, "load_image": 4, "read_lora": 3, "read_record": 3, "file_sha256": 5}


def test_contents_are_not_opened_where_no_content_has_a_lora(studio, tiny_dir, reads):
    library, model = LoRALibrary(studio / "loras"), StableDiffusion(str(tiny_dir)).fingerprint()
    for how in ({"content_lora": "off"}, {}):
        reads.clear()
        resolve_adapters([row(studio), row(studio, "tall")], library, model=model, **how)
        assert reads["load_image"] == 1
        for folder in (studio / "loras").glob("photo-*"):
            shutil.rmtree(folder)


def test_a_picture_costs_two_reads_of_each_file(studio, tiny_dir, reads):
    """One before the run, one for the picture itself."""
    stylize(studio, tiny_dir, row(studio))
    assert reads["entries"] == 1
    assert reads["read_lora"] == 2 * 2  # style and content
    assert reads["load_image"] <= 2 * 2
    assert reads["file_sha256"] == 3  # two LoRAs and the style picture


def test_a_lora_and_a_picture_of_it_are_one(studio, tiny_dir, reads):
    library, model = LoRALibrary(studio / "loras"), StableDiffusion(str(tiny_dir)).fingerprint()
    (folder,) = (studio / "loras").glob("gold-*")
    by_folder = row(studio, id="folder")
    region = by_folder.regions[0].__class__(folder)
    rows = [row(studio), by_folder.__class__("folder", studio / "photo.png", (region,))]
    adapters = resolve_adapters(rows, library, model=model, content_lora="off")
    one, other = (adapters.style(r.regions[0]) for r in rows)
    assert (one.path, one.sha256, one.prompt) == (other.path, other.sha256, "painting of gold")
    assert one.picture is not None
    assert other.picture is None  # this folder has no thumbnail
    assert reads["read_lora"] == 1


# ---- the command for what is missing


class OwnAttention(AttentionBackend):
    def __init__(self, gain: float = 0.5) -> None:
        self.gain = gain

    def apply(self, unet: torch.nn.Module, device: torch.device) -> str:
        return "own"


@pytest.mark.parametrize(
    ("backbone", "precision", "expected"),
    [
        (StableDiffusion(), "32-true", ""),
        (StableDiffusion("embedded", vae_tiling=False), "32-true", ""),
        (StableDiffusion(), "bf16-mixed", "--trainer.precision bf16-mixed"),
        (StableDiffusion(), "bf16-true", "--trainer.precision bf16-mixed"),
        (
            StableDiffusion("a/b", revision="main", variant="fp16", quantization="nf4", offload=True),
            "32-true",
            "--model.backbone StableDiffusion --model.backbone.model a/b --model.backbone.revision main "
            "--model.backbone.variant fp16 --model.backbone.quantization nf4 --model.backbone.offload true",
        ),
        (
            StableDiffusionXL("a/b", vae="c/d", attention=AutoAttention(gain=0.2)),
            "32-true",
            "--model.backbone StableDiffusionXL --model.backbone.model a/b --model.backbone.vae c/d "
            "--model.backbone.attention AutoAttention --model.backbone.attention.gain 0.2",
        ),
    ],
    ids=["default", "said", "mixed", "16 bits", "options", "objects"],
)
def test_the_options_of_the_fit_are_those_of_the_run(backbone, precision, expected):
    assert shlex.join(fit_options_of(backbone, precision, None)) == expected


def test_classes_of_others_are_named_in_full():
    words = fit_options_of(StableDiffusion(attention=OwnAttention()), "32-true", Path("m.csv"))
    assert words[:2] == ["--data.manifest", "m.csv"]
    assert words[4:] == [
        "--model.backbone.attention",
        f"{__name__}.OwnAttention",
        "--model.backbone.attention.gain",
        "0.5",
    ]


def test_followed_to_the_letter_the_command_makes_what_was_missing(studio, tiny_dir, tmp_path, capsys, monkeypatch):
    """Another model and precision: predict fails, the commands that it names are run, predict works."""
    (studio / "rows.csv").write_text("content,style\nphoto.png,gold.png\n")
    model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]
    loras = ["--lora_dir", str(tmp_path / "new"), "--trainer.accelerator", "cpu"]
    predict = ["predict", "--data.manifest", str(studio / "rows.csv"), *model, "--trainer.precision", "bf16-true"]
    predict += [*loras, "--output_dir", str(tmp_path / "out"), "--model.num_inference_steps", "2"]
    predict += ["--model.content_lora", "required", "--model.backbone.vae_slicing", "true", "--trainer.logger", "false"]
    assert main(predict) == 1
    lines = capsys.readouterr().err.splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("  diffstyler fit")]
    assert [command[3] for command in commands] == ["configs/style.yaml", "configs/content.yaml"]
    quick = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "1", "--trainer.logger", "false"]
    for command in commands:
        assert main([*command[1:], *quick, "--model.batch_size", "1"]) == 0
    assert main(predict) == 0
    assert (tmp_path / "out" / "photo-gold.png").is_file()


def test_rows_without_a_manifest_name_their_pictures(studio, tmp_path, capsys):
    (studio / "gold.png").rename(studio / "my gold.png")
    rows, library = [row(studio, style="my gold")], LoRALibrary(tmp_path / "new")
    model = StableDiffusion().fingerprint()
    how = resolve_adapters(rows, library, model=model, content_lora="required").how
    commands = [shlex.split(line)[1:] for line in how.splitlines() if "diffstyler fit" in line]
    assert len(commands) == 2
    quick = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "1", "--trainer.logger", "false"]
    for command in commands:
        assert main([*command, *quick, "--data.crops.resolution", "64", "--data.crops.crop_size", "64"]) == 0
    adapters = resolve_adapters(rows, library, model=model, content_lora="required")
    assert (len(adapters.styles), len(adapters.contents)) == (1, 1)


def test_one_of_several_loras_of_a_picture_is_chosen(studio, tiny_dir):
    library, model = LoRALibrary(studio / "loras"), StableDiffusion(str(tiny_dir)).fingerprint()
    (gold,) = (entry for entry in library.entries() if entry.identity.name == "gold")
    (tomato,) = (entry for entry in library.entries() if entry.identity.name == "tomato")
    other = replace(gold.identity, settings={"prompt": "another"})
    library.publish(other, lambda folder: shutil.copy(tomato.folder / WEIGHTS_NAME, folder))

    def chosen(lora: str | None) -> str:
        return resolve_adapters([row(studio)], library, model=model, lora=lora).style(row(studio).regions[0]).prompt

    os.utime(gold.folder / RECORD_NAME, (10, 10))
    assert chosen("newest") == chosen(other.key[:6]) == chosen(other.key) == "another"
    assert chosen(gold.identity.key[:12]) == "painting of gold"
    os.utime(gold.folder / RECORD_NAME)
    assert chosen("newest") == "painting of gold"
    for wrong in (None, "0000"):
        (problem,) = resolve_adapters([row(studio)], library, model=model, lora=wrong).problems
        assert problem.column == "style"
        assert "set model.lora to newest, or to an id" in problem.reason
        assert gold.identity.key[:12] in problem.reason
        assert other.key[:12] in problem.reason
    assert resolve_adapters([row(studio, style="tomato")], library, model=model, lora="0000")
    with pytest.raises(DiffstylerError, match="expected 'newest' or 4 digits"):
        stylizer.Stylizer(StableDiffusion(str(tiny_dir)), lora="latest")
