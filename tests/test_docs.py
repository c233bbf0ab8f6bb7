"""The documents' code runs, and the names they speak of are there."""

import importlib
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from runs import row, stylize

from diffstyler.cli.main import main
from diffstyler.errors import DiffstylerError
from diffstyler.images import load_image
from diffstyler.masking import find_masks
from diffstyler.masking.prompt_parser import parse_mask_prompt

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))


def test_the_masker_of_the_guide_finds_masks(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding-a-masker.md").read_text(), re.DOTALL)
    (tmp_path / "luminance.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = importlib.import_module("luminance").LuminanceMasker
    picture = Image.new("RGB", (8, 6), "black")
    picture.paste("white", (0, 0, 4, 6))
    left = torch.zeros(6, 8)
    left[:, :4] = 1
    prompts = ["light", "not light", "point: 6,3", "point: 1,1 not 6,3"]
    masks = find_masks(kind(threshold=0.9), picture, [parse_mask_prompt(prompt) for prompt in prompts])
    assert [mask.tolist() for mask in masks] == [mask.tolist() for mask in (left, 1 - left, 1 - left, left)]
    with pytest.raises(DiffstylerError, match=r"masker\.threshold"):
        kind(threshold=2.0)
    with pytest.raises(DiffstylerError, match="knows 'light' and 'dark' alone"):
        find_masks(kind(), picture, [parse_mask_prompt("the sky")])


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_files_and_names_that_documents_speak_of_are_there(document):
    text = document.read_text()
    for path in re.findall(r"`([\w/]+(?:\.py|\.yaml|\.toml|/))`", text):
        assert any((base / path).exists() for base in (ROOT, ROOT / "diffstyler", document.parent)), path
    for room, name in re.findall(r"`((?:[a-z_]+\.)+)([A-Za-z_]\w*)\b[^`/]*`", text):
        module = room.rstrip(".")
        if name != "py" and (ROOT / "diffstyler" / f"{module.replace('.', '/')}.py").is_file():
            assert hasattr(importlib.import_module(f"diffstyler.{module}"), name), f"{room}{name}"
    for link in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text):
        assert (document.parent / link).exists(), link


def test_every_page_is_in_the_site_and_every_name_on_the_api_page_is_there():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = [page for entry in site["nav"] for page in entry.values()]
    assert sorted(pages) == [document.name for document in DOCS]
    named = re.findall(r"^::: ([\w.]+)", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert len(named) > 5
    for name in named:
        module, _, kind = name.rpartition(".")
        found = (
            importlib.import_module(name)
            if name == "diffstyler.api"
            else getattr(importlib.import_module(module), kind)
        )
        assert found.__doc__


def test_what_the_workflow_and_the_images_name_is_there():
    """No container is built here: what they copy and call must exist."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    calls = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert calls == [".ci/run", "make docs"]
    assert (ROOT / ".ci/run").is_file()
    assert "\ndocs:" in (ROOT / "Makefile").read_text()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    images = sorted((ROOT / "docker").glob("*.Dockerfile"))
    assert [image.stem for image in images] == ["cpu", "cuda"]
    for image in images:
        lines = image.read_text().splitlines()
        copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
        assert copied == kept
        assert all((ROOT / name).exists() for name in copied)
        assert f"-f docker/{image.name}" in lines[0]
        assert lines[-1] == 'ENTRYPOINT ["diffstyler"]'
        assert any(line.startswith("USER ") for line in lines)


COMMANDS = {
    "fit": "--trainer.max_steps 1 --trainer.logger false --model.preview_steps 0 --model.rank 2 "
    "--data.crops.crop_size 64",
    "predict": "--model.num_inference_steps 2 --model.resolution 64",
    "test": "--resolution 64",
    "sweep": "--resolution 64",
}


@pytest.mark.parametrize("document", ["metrics.md", "recipes.md", "figures.md"])
def test_every_command_runs_as_it_stands(document, studio, tiny_dir, families, monkeypatch, capsys):
    """In one folder, in order, on tiny models, one device and with little work; a grid of many cells is cut to two."""
    text = (ROOT / "docs" / document).read_text()
    commands = re.findall(r"^diffstyler (.*)$", text, re.MULTILINE)
    (studio / "my.csv").write_text("content,style\nphoto.png,gold.png\n")
    for name, manifest in re.findall(r"`(\w+\.csv)` is\n\n```csv\n(.*?)```", text, re.DOTALL):
        (studio / name).write_text(manifest)
    for name, picture in {"photo.jpg": "photo.png", "painting.jpg": "gold.png"}.items():
        load_image(studio / picture).save(studio / name)
    monkeypatch.chdir(studio)
    if any(command.startswith("fit ") for command in commands):
        shutil.rmtree("loras")  # the document makes its own
    else:
        stylize(studio, tiny_dir, row(studio), out="stylized")
        (studio / "demo").symlink_to(studio)  # what `make demo` leaves
        (studio / "examples").mkdir()
        (studio / "examples/cat.csv").write_text("content,style\n../photo.png,../gold.png\n")
    models = {"sdxl": str(families["sdxl"] / "model"), "": str(tiny_dir)}
    for command in commands:
        fitted = next(Path("loras").glob("painting-*"), Path())
        name, *words = shlex.split(command.replace("loras/painting-0123456789ab", str(fitted)))
        kind, given = words[0] if name == "check" else name, dict(itertools.pairwise(words))
        model = models[given.get("--model.backbone.model", "")]
        if kind in {"fit", "predict"}:
            words += ["--model.backbone.model", model, "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
        if name == "masks":
            words += ["--backbone.model", model, "--device", "cpu"]
        if name == "sweep":
            config = given.get("--config")
            axes = yaml.safe_load((ROOT / config).read_text())["axes"] if config else json.loads(given["--axes"])
            settings = json.loads(given.get("--settings", "{}"))
            settings |= {"model.backbone.model": model, "trainer.accelerator": "cpu", "model.num_inference_steps": 2}
            words += ["--settings", json.dumps(settings), "--axes", json.dumps(_ends(axes))]
        assert main([name, *words, *COMMANDS.get(kind, "").split()]) == 0, capsys.readouterr().err
        if name == "sweep":
            assert capsys.readouterr().out.strip().endswith(f"{given['--output_dir']}/sweep.html")
            assert len((Path(given["--output_dir"]) / "sweep.jsonl").read_text().splitlines()) == 2


def test_every_grid_that_is_shipped_is_swept_in_a_document():
    named = set(re.findall(r"^diffstyler sweep .*--config (\S+)", (ROOT / "docs/figures.md").read_text(), re.MULTILINE))
    assert named == {str(path.relative_to(ROOT)) for path in (ROOT / "configs/figures").glob("*.yaml")}


def _ends(axes: dict) -> dict:
    """The last two values of the first axis, the last one of the other."""
    cut = {}
    for count, (name, values) in zip((2, 1), axes.items(), strict=False):
        cut[name] = values[-count:] if isinstance(values, list) else dict(list(values.items())[-count:])
    return cut
