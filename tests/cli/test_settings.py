"""What is read off the sources is what the real parsers take."""

from inspect import signature

import pytest

from diffstyler.cli import lightning_cli, settings
from diffstyler.cli.sweep import sweep
from diffstyler.metrics.measure import measure
from diffstyler.predict.mask_preview import preview_masks

RUNS = [lightning_cli.FIT, lightning_cli.PREDICT]


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: run.name)
def run(request):
    return request.param


@pytest.fixture(scope="module")
def options(run) -> set[str]:
    """Of the real parser, two levels deep."""
    parser = run.cli(["--trainer.accelerator", "cpu", "--data.manifest", "m.csv"]).parser
    named = {o[2:] for action in parser._actions for o in action.option_strings if o.startswith("--")}
    return {name.rstrip("+") for name in named if not name.endswith(".help")}


def test_the_settings_are_those_of_the_real_parser(run, options):
    words = run.words
    known = {*words.settings, *words.trainer, *settings.GENERAL}
    assert options - {"model", "data", "trainer", "print_shtab"} == known


def test_the_classes_that_are_read_are_those_that_run(run):
    for (file, kind), real in ((run.words.model, run.model), (run.words.data, run.data)):
        assert (file.removesuffix(".py").replace("/", "."), kind) == (real.__module__[11:], real.__name__)


def test_every_setting_is_in_the_help_with_what_it_is(run):
    for name, setting in {**run.words.settings, **run.words.trainer}.items():
        assert f"  --{name}  {setting.kind}" in run.words.help
        assert setting.text, name
    assert "\n  --model.feather  float = 0.02\n" in settings.PREDICT.help
    assert "\n  --trainer.devices  Union[list[int], str, int] = 1\n" in settings.FIT.help
    assert "width of the soft border" in settings.PREDICT.help


@pytest.mark.parametrize(
    "words",
    [
        "--model.rank 3",
        "--model.rank=3",
        "--trainer.callbacks+ Timer",
        "--model c.yaml",
        "--model.backbone.model x",
        "--lora_dir x",
        "--model.masker.help SAMMasker",
        "--print_config=skip_default",
        "--config configs/style.yaml",
        "--model.lora_dir x",
    ],
)
def test_what_the_real_parser_is_to_judge_is_left_to_it(words):
    settings.FIT.read(words.split())


@pytest.mark.parametrize(
    ("words", "function", "more"),
    [
        (settings.MASKS, preview_masks, {"trust_config"}),
        (settings.TEST, measure, set()),
        (settings.SWEEP, sweep, set()),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_settings_of_a_function_are_its_arguments(words, function, more):
    assert words.known == {*signature(function).parameters, "config", "print_config", "help", *more}
    for name, setting in words.shown.items():
        assert f"  --{name}  {setting.kind}" in words.help or not setting.kind
        assert setting.text, name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (settings.MASKS, "--masker SAMMasker --masker.model x --mask sky --backbone.help StableDiffusion"),
        (settings.MASKS, "--trust_config --print_config"),
        (settings.TEST, "--networks.vgg vgg.pth --networks null"),
        (settings.SWEEP, "--settings.x 3 --axes+={} --config configs/figures/masks.yaml"),
    ],
)
def test_what_a_functions_parser_is_to_judge_is_left_to_it(words, said):
    words.read(said.split())


@pytest.mark.parametrize("words", ["--model.rnak 3", "--modle.rank 3", "--output_dir out", "--config {model:{rnak:3}}"])
def test_what_is_no_setting_ends_at_once(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        settings.FIT.read(words.split(" ", 1) if "{" in words else words.split())
    assert stopped.value.code == 2
    assert "is not a setting" in capsys.readouterr().err


def test_an_argument_without_a_default_or_a_docstring_is_read_too(tmp_path):
    (tmp_path / "own.py").write_text(
        "class Own:\n    def __init__(self, a, b: int = 3, *, c: str, d: str = 'x'): ...\n"
    )
    read = settings.settings_of(tmp_path / "own.py", "Own")
    assert {name: (setting.kind, setting.default) for name, setting in read.items()} == {
        "a": ("", None),
        "b": ("int", "3"),
        "c": ("str", None),
        "d": ("str", "'x'"),
    }
