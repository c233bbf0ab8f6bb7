"""The command: help, errors in a few lines, and the whole way from a picture to a stylized picture."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from low_rank import by_peft
from peft import LoraConfig
from PIL import Image
from safetensors.torch import save_file

from diffstyler.adapters import LowRank, kohya, save_lora
from diffstyler.cli import commands
from diffstyler.cli.main import COMMANDS, main
from diffstyler.images import load_image
from diffstyler.masking import fastsam

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
README = Path(__file__).parents[2] / "README.md"
FIT = ["--trainer.logger", "false", "--trainer.accelerator", "cpu", "--model.preview_steps", "2"]


def tiny_model(tiny_dir: Path) -> list[str]:
    return ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    for name, color in {"photo": "navy", "painting": "gold", "print": "tomato"}.items():
        image = Image.new("RGB", (72, 64), color)
        image.paste("white", (10, 10, 40, 30))
        image.save(tmp_path / f"{name}.png")
    path = tmp_path / "manifest.csv"
    path.write_text("id,content,style\none,photo.png,painting.png\ntwo,photo.png,print.png\n")
    return path


#: to import the lightest of them takes half a second, the heaviest ten
HEAVY = {"torch", "transformers", "diffusers", "lightning", "jsonargparse", "numpy"}


LIGHT = [
    ("--help", 0),
    ("inspect --help", 0),
    ("export --help", 0),
    ("fetch-fastsam --help", 0),
    ("demo --help", 0),
    ("studio --help", 0),
    ("check --help", 0),
    ("fit --help", 0),
    ("predict --config configs/predict.yaml -h", 0),
    ("check fit --help", 0),
    ("masks --help", 0),
    ("test --config configs/test.yaml --help", 0),
    ("sweep -h", 0),
    ("push --help", 0),
    ("fetch-masker --help", 0),
    ("fit --model.rnak=3", 2),
    ("check predict --data.manfest=rows.csv", 2),
    ("check --trainer.device 1 --model.rank 3", 2),
    ("masks --contnet photo.jpg --mask sky", 2),
    ("test --output_dri out", 2),
    ("sweep --axis.row.strength [0,1]", 2),
    ('sweep --config {"axis":{}}', 2),
    ("inspect", 2),
    ("export x", 2),
    ("fetch-fastsam x", 2),
    ("demo x", 2),
    ("predcit", 2),
]
#: the command is imported once, and a process forked of this for each line of words
ONE_BY_ONE = """
import json, os, sys
from pathlib import Path
from diffstyler.cli.main import main

folder, told = Path(sys.argv[1]), []
for number, words in enumerate(json.loads(sys.argv[2])):
    files = [folder / f"{number}.{name}" for name in ("out", "err")]
    if not (process := os.fork()):
        for descriptor, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
        try:
            code = main(words.split())
        except SystemExit as stopped:
            code = stopped.code
        print(*sys.modules)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    told.append([code, *(file.read_text() for file in files)])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> dict[str, tuple[int, str, str]]:
    """Of each line of words: exit code, what is said on stdout, with the modules that were imported, and on stderr."""
    lines = [words for words, _ in LIGHT]
    command = [sys.executable, "-c", ONE_BY_ONE, str(tmp_path_factory.mktemp("light")), json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(lines, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("words", "code"), LIGHT)
def test_help_and_wrong_words_import_nothing_heavy(light, words, code):
    ended, out, err = light[words]
    assert ended == code
    assert "diffstyler" in out + err
    assert "argparse" in out.splitlines()[-1].split()
    assert not HEAVY & set(out.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("words", "code"),
    [("fit", 1), ("predict", 1), ("check", 0), ("check fit", 1), ("check predict", 1), ("inspect", 2), ("export", 2)],
)
def test_a_command_without_arguments_ends_in_words_of_ours(words, code, capsys):
    try:
        ended = main(words.split())
    except SystemExit as stopped:
        ended = stopped.code
    told = capsys.readouterr()
    last = (told.out + told.err).strip().splitlines()[-1]
    assert ended == code
    assert re.search(
        "^diffstyler: nothing to (fit|predict): expected data.manifest|arguments are required|--help", last
    )


def test_the_help_of_every_command_is_among_those_tried():
    asked = {words.split()[0] for words, _ in LIGHT if re.search("--help|-h$", words)}
    assert asked == {"--help", *COMMANDS}


def test_every_command_is_in_the_help_in_one_line(capsys):
    assert main(["--help"]) == 0
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert set(COMMANDS) <= set(told)
    assert all(text in told[name] for name, (_, text) in COMMANDS.items())


def test_choices_that_are_named_in_a_light_place_are_those_of_the_heavy_ones():
    assert tuple(kohya.FAMILIES) == commands.FAMILIES
    assert tuple(fastsam.WEIGHTS) == commands.FASTSAM_WEIGHTS


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "diffstyler", "--help"], capture_output=True, text=True, check=True)
    assert "predict" in done.stdout


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("diffstyler ")


def test_unknown_command_names_the_nearest(capsys):
    assert main(["predcit"]) == 2
    assert "did you mean 'predict'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.num_inference_step", "5"], "did you mean 'model.num_inference_steps'?"),
        (["--model.num_inference_steps", "many"], "model.num_inference_steps"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_settings_end_in_a_few_lines(arguments, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert expected in error
    assert len(error.splitlines()) <= 8
    assert "usage:" not in error


def test_misspelt_key_in_yaml(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("model:\n  guidance_scal: 3.0\n")
    with pytest.raises(SystemExit):
        main(["predict", "--config", str(path)])
    error = capsys.readouterr().err
    assert "model.guidance_scale" in error
    assert len(error.splitlines()) <= 8


def test_missing_loras_are_listed_with_the_command_that_makes_them(manifest, tiny_dir, capsys):
    config = next(c for c in CONFIGS if c.stem == "predict")
    arguments = ["--config", str(config), "--data.manifest", str(manifest), *tiny_model(tiny_dir)]
    assert main(["predict", *arguments, "--lora_dir", str(manifest.parent / "loras")]) == 1
    error = capsys.readouterr().err
    assert "painting.png" in error
    assert "print.png" in error
    assert "diffstyler fit --config configs/style.yaml" in error


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.stem in {"predict", "reference"}], ids=lambda c: c.stem)
def test_fit_then_predict_makes_pictures(config, manifest, tiny_dir, tmp_path, capsys):
    loras, output = tmp_path / "loras", tmp_path / "out"
    common = ["--data.manifest", str(manifest), "--lora_dir", str(loras), *tiny_model(tiny_dir)]
    style = next(c for c in CONFIGS if c.stem == "style")
    assert main(["fit", "--config", str(style), *common, *FIT, "--trainer.max_steps", "2"]) == 0
    folders = [folder for folder in loras.iterdir() if not folder.name.startswith(".")]
    assert {folder.name.split("-")[0] for folder in folders} == {"painting", "print"}
    files = {file.name for file in folders[0].iterdir()}
    assert files == {"README.md", "diffstyler.json", "loss.png", "preview.png", "thumbnail.png", cli_weights()}

    content = next(c for c in CONFIGS if c.stem == "content")
    assert main(["fit", "--config", str(content), *common, *FIT, "--trainer.max_steps", "2"]) == 0
    assert len(list(loras.glob("photo-*"))) == 1

    quick = ["--model.num_inference_steps", "2", "--output_dir", str(output), "--trainer.accelerator", "cpu"]
    if config.stem == "reference":
        quick = [*quick, "--model.inversion_steps", "2"]
    assert main(["predict", "--config", str(config), *common, *quick]) == 0
    for id in ("one", "two"):
        assert load_image(output / f"{id}.png").size == (72, 64)
        sidecar = json.loads((output / f"{id}.json").read_text())
        assert sidecar["settings"]["num_inference_steps"] == 2
        assert sidecar["regions"][0]["lora"]["sha256"]
    assert (output / "one.png").read_bytes() != (output / "two.png").read_bytes()
    assert "one" in (output / "index.html").read_text()
    assert str(output / "index.html") in capsys.readouterr().out


def test_a_second_run_makes_nothing_again(manifest, tiny_dir, tmp_path):
    loras, output = tmp_path / "loras", tmp_path / "out"
    common = ["--data.manifest", str(manifest), "--lora_dir", str(loras), *tiny_model(tiny_dir)]
    style, predict = (str(next(c for c in CONFIGS if c.stem == stem)) for stem in ("style", "predict"))
    quick = ["--model.num_inference_steps", "2", "--output_dir", str(output), "--trainer.accelerator", "cpu"]
    stamps = []
    for _ in range(2):
        assert main(["fit", "--config", style, *common, *FIT, "--trainer.max_steps", "1"]) == 0
        assert main(["predict", "--config", predict, *common, *quick]) == 0
        made = [*loras.glob("*/*.safetensors"), *output.glob("*.png")]
        stamps.append({file: file.stat().st_mtime_ns for file in made})
    assert stamps[0] == stamps[1]
    assert len(stamps[0]) == 4


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.stem)
def test_every_shipped_config_begins_with_its_command(config):
    first = config.read_text().splitlines()[0]
    assert first.startswith("# diffstyler ")
    assert f"configs/{config.name}" in first
    assert yaml.safe_load(config.read_text())


def cli_weights() -> str:
    return "pytorch_lora_weights.safetensors"


def test_inspect_and_export(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    update = LowRank(torch.randn(4, 768, generator=generator), torch.randn(320, 4, generator=generator), 8 / 4)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_k"])
    save_lora(tmp_path / "lora", {"unet": {module: update}}, {"unet": config})
    assert main(["inspect", str(tmp_path / "lora")]) == 0
    facts = json.loads(capsys.readouterr().out)
    expected = {"family": "sd1", "parts": {"unet": 1}, "ranks": [4], "alphas": [8.0], "targets": ["attn2.to_k"]}
    assert {name: facts[name] for name in expected} == expected
    assert facts["update_norm"]["largest"] == pytest.approx(update.update.norm().item(), rel=1e-5)
    assert (facts["matched_keys"], facts["unmatched_keys"], facts["problem"]) == (2, [], None)
    out = tmp_path / "for-others.safetensors"
    assert main(["export", str(tmp_path / "lora"), "--output", str(out)]) == 0
    assert main(["inspect", str(out)]) == 0
    exported = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert {name: exported[name] for name in expected} == expected
    broken = {key: tensor * torch.nan for key, tensor in by_peft({module: update}).items()}
    save_file({f"unet.{key}": tensor for key, tensor in broken.items()}, tmp_path / "broken.safetensors")
    assert main(["inspect", str(tmp_path / "broken.safetensors")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["not_finite"]) == 2
    assert "has NaN or infinite values" in facts["problem"]
    assert main(["export", str(tmp_path / "broken.safetensors"), "--output", str(out)]) == 1
    assert "NaN" in capsys.readouterr().err


def test_the_inspect_and_export_of_the_readme_run(studio, tmp_path, monkeypatch, capsys):
    block = next(b for b in re.findall(r"```\n(.*?)```", README.read_text(), re.DOTALL) if "diffstyler export" in b)
    lines = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert [line[0] for line in lines] == ["inspect", "export"]
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_k"])
    module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    save_lora(
        tmp_path / "LORA", {"unet": {module: LowRank(torch.ones(2, 768), torch.ones(320, 2), 1.0)}}, {"unet": config}
    )
    monkeypatch.chdir(tmp_path)
    assert [main(line) for line in lines] == [0, 0]
    assert list(tmp_path.glob("*.safetensors"))
    embedded = next((studio / "loras").glob("gold-*"))
    assert main([str(embedded) if word == "LORA" else word for word in lines[1]]) == 1
    assert "name one that others know by --family" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--config", "--config=", "-c"])
def test_the_shipped_configs_are_found_from_anywhere(flag, tmp_path, monkeypatch, capsys):
    def config(name: str) -> list[str]:
        return [f"{flag}{name}"] if flag.endswith("=") else [flag, name]

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["predict", *config("configs/reference.yaml"), "--data.manifest", "m.csv", "--print_config"])
    assert caught.value.code == 0
    assert "guidance_scale: 10.5" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["predict", *config("configs/nothing.yaml")])
    assert caught.value.code == 2
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/reference.yaml").write_text("model: {guidance_scale: 7.25}")
    with pytest.raises(SystemExit):
        main(["predict", *config("configs/reference.yaml"), "--data.manifest", "m.csv", "--print_config"])
    assert "guidance_scale: 7.25" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "requeues"), [("predict", False), ("fit", True)])
def test_on_slurm_only_fit_goes_on_from_a_checkpoint(command, requeues, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "farm")
    with pytest.raises(SystemExit):
        main([command, "--data.manifest", "m.csv", "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    plugins = settings["trainer"]["plugins"] or []
    assert all(plugin["init_args"]["auto_requeue"] is False for plugin in plugins)
    assert bool(plugins) is not requeues
