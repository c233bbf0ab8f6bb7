"""fit's and predict's settings: from YAML of today and of before, from flags, and those that cannot be honored."""

import copy
from collections.abc import Iterator
from pathlib import Path

import jsonargparse
import pytest
import yaml

from diffstyler.cli.lightning_cli import FIT, PREDICT
from diffstyler.cli.main import main
from diffstyler.cli.settings import owners
from diffstyler.diffusion.fusion import FuseNoise
from diffstyler.diffusion.initial import FromContent
from diffstyler.diffusion.injection import CrossLoRAInjection
from diffstyler.fit.crops import Crops

CONFIGS = [path for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")) if path.stem != "test"]
CPU = ["--trainer.accelerator", "cpu", "--data.manifest", "m.csv"]

# configs/reference.yaml of version 0.1, when modules had no rooms; the rate was adaptive without a word
REFERENCE_OF_BEFORE = """
lora_dir: loras
output_dir: stylized
trainer:
  logger: false
model:
  num_inference_steps: 50
  inversion_steps: 999
  guidance_scale: 10.5
  negative_prompt: ugly, blurry, black, low res, unrealistic
  injection:
    class_path: diffstyler.injection.CrossLoRAInjection
    init_args:
      features: 0.6
      attention: 0.5
      source_under_style: true
      plain_self_attention_at_sites: true
  initial: diffstyler.sampling.FromContent
  content_lora: "off"
  fusion:
    class_path: diffstyler.fusion.FuseNoise
    init_args:
      hard_masks: true
      outside:
        class_path: diffstyler.injection.CrossLoRAInjection
        init_args: {features: 1.0, attention: 1.0, adaptive: true, source_under_style: true}
  feather: 0
  keep_outside: false
data:
  manifest: null
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_reference_preset_of_before_is_the_one_of_today(tmp_path):
    (tmp_path / "before.yaml").write_text(REFERENCE_OF_BEFORE)
    before = PREDICT.cli(["--config", str(tmp_path / "before.yaml"), *CPU]).model
    today = PREDICT.cli(["--config", str(next(c for c in CONFIGS if c.stem == "reference")), *CPU]).model
    sources = CrossLoRAInjection(0.6, 0.5, source_under_style=True, plain_self_attention_at_sites=True)
    outside = CrossLoRAInjection(1.0, 1.0, adaptive=True, source_under_style=True)
    for model in (before, today):
        assert model.injection == sources
        assert model.fusion == FuseNoise(outside, hard_masks=True)
        assert model.initial == FromContent()
    names = ("num_inference_steps", "inversion_steps", "guidance_scale", "negative_prompt", "content_lora", "feather")
    assert [getattr(before, name) for name in names] == [getattr(today, name) for name in names]
    assert before.keep_outside is today.keep_outside is False


OF_BEFORE = [
    "diffstyler.backbones.stable_diffusion.StableDiffusion",
    "diffstyler.backbones.StableDiffusionXL",
    "diffstyler.crops.Crops",
    "diffstyler.early_stop.EarlyStop",
    "diffstyler.fusion.FuseClean",
    "diffstyler.fusion.FuseLatents",
    "diffstyler.fusion.FuseNoise",
    "diffstyler.injection.CrossLoRAInjection",
    "diffstyler.injection.NoInjection",
    "diffstyler.losses.CleanLoss",
    "diffstyler.losses.MinSNRLoss",
    "diffstyler.losses.NoiseLoss",
    "diffstyler.masking.AttentionMasker",
    "diffstyler.masking.fastsam.FastSAMMasker",
    "diffstyler.sampling.FromContent",
    "diffstyler.sampling.FromContentAdaIN",
    "diffstyler.sampling.FromStyle",
]


@pytest.mark.parametrize("path", OF_BEFORE)
def test_classes_are_found_by_the_paths_that_they_had(path):
    found = jsonargparse._util.import_object(path)
    assert found.__name__ == path.rpartition(".")[2]


def test_a_notebook_of_before_runs():
    from diffstyler.crops import Crops as CropsOfBefore

    assert CropsOfBefore is Crops
    with pytest.raises(ImportError, match="cannot import name 'Crosp'"):
        from diffstyler.crops import Crosp  # noqa: F401


def test_a_fit_of_before_runs(tmp_path):
    path = tmp_path / "before.yaml"
    path.write_text(
        "model:\n  loss: {class_path: diffstyler.losses.MinSNRLoss, init_args: {gamma: 3.0}}\n"
        "  early_stop: {class_path: diffstyler.early_stop.EarlyStop}\n"
        "data:\n  crops: {class_path: diffstyler.crops.Crops, init_args: {crop_size: 64}}\n"
    )
    cli = FIT.cli(["--config", str(path), *CPU])
    assert cli.model.run.loss.gamma == 3
    assert cli.datamodule.crops == Crops(crop_size=64)


def test_a_parser_reads_one_line_after_another():
    first, second = (FIT.cli([*CPU, *words]) for words in (["--model.rank", "3", "--lora_dir", "mine"], []))
    assert first.parser is second.parser
    assert (first.model.run.rank, first.config.lora_dir) == (3, Path("mine"))
    assert second.model.run.rank == FIT.model().run.rank != 3
    assert second.config.lora_dir == Path("loras")
    assert PREDICT.cli(CPU).parser is not first.parser


STATED_ALL_THE_SAME = {
    "predict": {"output_dir"},  # by this one line `check` knows whose settings they are
}


def leaves(settings: dict, *path: str) -> Iterator[tuple[str, ...]]:
    for name, value in settings.items():
        yield from leaves(value, *path, name) if isinstance(value, dict) else [(*path, name)]


def without(settings: dict, path: tuple[str, ...]) -> dict:
    pruned = copy.deepcopy(settings)
    place = pruned
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    return pruned


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.stem)
def test_a_shipped_config_holds_differences_only(config):
    settings = yaml.safe_load(config.read_text())
    run = PREDICT if config.stem in {"predict", "draft", "reference"} else FIT
    parser = run.cli(CPU).parser
    whole = parser.parse_object(settings)
    restated = set()
    for path in leaves(settings):
        if path[-1] == "class_path":
            continue  # says whose arguments come next
        try:
            if parser.parse_object(without(settings, path)) == whole:
                restated.add(".".join(path))
        except SystemExit:  # cannot do without
            continue
    assert restated == STATED_ALL_THE_SAME.get(config.stem, set())


def spelled(way: str, config: str) -> list[str]:
    return [f"{way}{config}"] if way.endswith("=") else [way, config]


@pytest.mark.parametrize("way", ["--config", "--config=", "-c"])
@pytest.mark.parametrize(
    ("config", "command"),
    [("style", "fit"), ("content", "fit"), ("predict", "predict"), ("draft", "predict"), ("reference", "predict")],
)
def test_a_shipped_config_decides_from_any_folder(way, config, command):
    (owner,) = owners(spelled(way, f"configs/{config}.yaml"))
    assert owner == command


@pytest.mark.parametrize("way", ["--config", "--config="])
@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ("model: {rank: 4}", "fit"),
        ("data: {role: content}", "fit"),
        ("output_dir: made", "predict"),
        ("model: {feather: 0}", "predict"),
        ("data: {batch_size: 2}", "predict"),
        ("# num_inference_steps, output_dir\nmodel: {batch_size: 2}", "fit"),
        ("model: {negative_prompt: no rank}", "predict"),
    ],
)
def test_keys_of_a_config_decide_whatever_its_words(way, settings, command, tmp_path):
    (tmp_path / "my.yaml").write_text(settings)
    assert list(owners(spelled(way, "my.yaml"))) == [command]


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        (["--model.rank", "4"], "fit"),
        (["--model.rank=4"], "fit"),
        (["--model.optimizer.lr=1e-3"], "fit"),
        (["--output_dir=out"], "predict"),
        (["--model.injection", "NoInjection"], "predict"),
    ],
)
def test_flags_decide_as_well(flags, command):
    assert list(owners(["--data.manifest", "output_dir.csv", *flags])) == [command]


def test_a_config_written_on_the_command_line_decides_as_well():
    assert list(owners(["--config", '{"model": {"rank": 4}}'])) == ["fit"]
    assert list(owners(['--config={"output_dir": "out"}'])) == ["predict"]


@pytest.mark.parametrize("devices", ["some", "0.5.1", "1-3", "gpu:0", ",", "two,three"])
def test_devices_that_are_none_are_told_whatever_the_accelerator(devices, capsys):
    for accelerator in ("cpu", "gpu"):
        with pytest.raises(SystemExit, match="2"):
            FIT.cli(["--trainer.accelerator", accelerator, "--data.pictures", "p", "--trainer.devices", devices])
        told = f"trainer.devices: expected a number, indices as in 0,1 or auto, got '{devices}'"
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--trainer.devices", "0"], "not a valid input"),
        (["--trainer.accelerator", "gpu"], "No supported gpu backend"),
        (["--trainer.precision", "transformer-engine"], "transformer_engine"),
        (["--trainer.callbacks", "ModelCheckpoint"], "enable_checkpointing"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_what_the_trainer_cannot_be_here_is_told_in_a_line(flags, told, command, capsys):
    data = ["--data.manifest", "rows.csv", *(["--trainer.max_steps", "1"] if command == "fit" else [])]
    assert main(["check", command, *data, "--trainer.accelerator", "cpu", *flags]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("diffstyler: "))
    assert line.startswith("diffstyler: trainer: ")
    assert told in line


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (FIT, {"backbone": "StableDiffusion"}),
        (
            PREDICT,
            {
                "backbone": "StableDiffusion",
                "injection": "CrossLoRAInjection",
                "initial": "FromContentAdaIN",
                "masker": "AttentionMasker",
                "fusion": "FuseLatents",
            },
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_classes_that_run_are_printed(run, expected, capsys):
    with pytest.raises(SystemExit):
        run.cli(["--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["model"]
    told = {name: printed[name]["class_path"].rsplit(".", 1)[-1] for name in expected}
    assert told == expected
    model = run.cli(CPU).model
    assert {name: type(getattr(model, name)).__name__ for name in expected} == expected


@pytest.mark.parametrize(
    ("flag", "word", "told"),
    [
        ("--model.backbone", "Flux", "known: StableDiffusion, StableDiffusionXL, or your own"),
        (
            "--model.masker",
            "SAM",
            "known: AttentionMasker, CLIPSegMasker, FastSAMMasker, GroundedSAMMasker, SAMMasker, or",
        ),
        ("--model.injection", "CrossLoRAInjektion", "did you mean 'CrossLoRAInjection'?"),
        ("--model.masker", "json.JSONDecoder", "known: AttentionMasker"),
    ],
)
def test_an_unknown_class_is_told_with_the_known_ones(flag, word, told, capsys):
    with pytest.raises(SystemExit) as caught:
        PREDICT.cli([*CPU, flag, word])
    assert caught.value.code == 2
    first, *rest = capsys.readouterr().err.strip().splitlines()
    assert first.startswith(f"diffstyler predict: {flag[2:]}: no class '{word}'")
    assert told in first
    assert rest == ["see diffstyler predict --help"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--model.resolution abc", "model.resolution: expected a whole number or null, got abc"),
        ("--model.max_memory abc", "model.max_memory: expected a number or null, got abc"),
        ("--model.num_inference_steps 2.5", "model.num_inference_steps: expected a whole number, got 2.5"),
        ("--model.compile maybe", "model.compile: expected true or false or one of ['auto'], got maybe"),
        ("--model.keep_outside 7", "model.keep_outside: expected true or false, got 7"),
        ("--on_error maybe", "on_error: expected one of ['stop', 'skip'], got maybe"),
        ("--model.promt x", "'model.promt' is not a setting; did you mean 'model.prompt'?"),
        ("--trainer.manifest x.csv", "'trainer.manifest' is not a setting; did you mean 'data.manifest'?"),
    ],
)
def test_a_wrong_value_is_told_with_its_setting_and_what_it_may_be(words, told, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["predict", *CPU, *words.split()])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines() == [f"diffstyler predict: {told}", "see diffstyler predict --help"]


def test_a_model_that_is_not_there_is_told_alone(capsys):
    assert main(["predict", *CPU, "--data.manifest", "rows.csv", "--model.backbone.model", "nowhere"]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("diffstyler: "))
    assert line.startswith("diffstyler: model 'nowhere': no such directory or file")
    assert "Given value" not in line


def test_a_model_without_a_class_is_of_the_one_that_its_folder_names(tmp_path, families):
    for spelling in (["--model.backbone.model", "{}"], ["--model.backbone.model={}"]):
        for family, expected in (("sd1", "StableDiffusion"), ("sdxl", "StableDiffusionXL")):
            flags = [word.format(families[family] / "model") for word in spelling]
            assert type(PREDICT.cli([*CPU, *flags]).model.backbone).__name__ == expected
    assert PREDICT.cli([*CPU, "--model.backbone.model", str(tmp_path)]).model.backbone.model == str(tmp_path)
    (tmp_path / "my.yaml").write_text("model: {backbone: {class_path: StableDiffusion}}")
    told = ["--config", str(tmp_path / "my.yaml"), "--model.backbone.model", str(families["sdxl"] / "model")]
    assert type(PREDICT.cli([*CPU, *told]).model.backbone).__name__ == "StableDiffusion"


def test_a_picture_or_a_folder_is_named_in_a_flag(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    for flag, names in (
        ("a.png", ["a.png"]),
        (str(tmp_path), ["a.png", "b.png"]),
        ("[a.png, b.png]", ["a.png", "b.png"]),
    ):
        data = FIT.cli(["--trainer.accelerator", "cpu", "--data.pictures", flag]).datamodule
        assert [path.name for path in data.paths] == names


def test_two_configs_are_read_both(tmp_path):
    (tmp_path / "shared.yaml").write_text("lora_dir: loras\nmodel: {max_memory: 4}")
    assert owners(["--config", "shared.yaml"]) == {}
    assert list(owners(["--config", "shared.yaml", "--config=configs/reference.yaml"])) == ["predict"]
    assert list(owners(["--config=configs/style.yaml", "--config", "shared.yaml"])) == ["fit"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data.manifest", "rows.csv"], "no setting here is of one of them alone"),
        (["--config=configs/style.yaml", "--output_dir", "out"], "output_dir of predict"),
    ],
)
def test_what_could_be_either_is_asked_for(arguments, told, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["check", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert "diffstyler check fit" in error
    assert "diffstyler check predict" in error


@pytest.mark.parametrize(
    ("text", "told"), [(None, "nowhere.yaml: expected a YAML file"), ("[1]", "got a list"), ("a: [", "expected a YAML")]
)
def test_a_config_that_cannot_be_read_is_named(text, told, tmp_path, capsys):
    if text is not None:
        (tmp_path / "nowhere.yaml").write_text(text)
    assert main(["check", "--config", "nowhere.yaml"]) == 1
    assert told in capsys.readouterr().err


def test_the_first_word_decides_over_all_keys(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["check", "predict", "--config=configs/style.yaml"])
    assert caught.value.code == 2
    assert "diffstyler predict: 'model." in capsys.readouterr().err


@pytest.mark.parametrize("setting", PREDICT.refused)
def test_what_predict_cannot_honor_is_an_error(setting, tmp_path, capsys):
    value = "00:01:00:00" if setting == "max_time" else "1"
    (tmp_path / "c.yaml").write_text(f"trainer: {{{setting}: {value if value == '1' else repr(value)}}}")
    for arguments in ([f"--trainer.{setting}", value], ["--config", str(tmp_path / "c.yaml")]):
        for command in (["predict"], ["check", "predict"]):
            with pytest.raises(SystemExit) as caught:
                main([*command, *arguments, *CPU])
            assert caught.value.code == 2
            assert f"trainer.{setting}: predict cannot honor it" in capsys.readouterr().err
