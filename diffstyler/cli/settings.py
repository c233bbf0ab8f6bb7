"""Settings of commands, read off the sources without importing them -> their help, and which words are none."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import yaml
from docstring_parser import DocstringStyle, parse

from diffstyler.errors import DiffstylerError, did_you_mean
from diffstyler.examples import configs_dir

PACKAGE = Path(__file__).parents[1]
#: settings of the parser itself
GENERAL = {
    "config": "a YAML file with any of these settings; several are read one after another",
    "print_config": "print all settings as YAML, with what the other words change, and end",
    "on_error": "what wrong rows mean: stop, or skip them",
    "farm": "ray: on a Ray cluster, by RayFarm's settings: --farm ray --farm.address auto; folder: as by null, on this "
    "machine or all that share the folder, and a page there says how far they are (FolderFarm)",
    "trust_config": "import any class that settings name, not only those of known packages: they can run anything",
    "seed_everything": "Lightning's; fits and pictures have seeds of their own",
    "help": "this text",
}
FOLDERS = {
    "lora_dir": "the library of LoRAs: one folder each",
    "output_dir": "where pictures and sidecars go; what lies there already is not made again",
}
#: of the Trainer, where they differ from Lightning's
TRAINER_DEFAULTS: Mapping[str, object] = {
    "accelerator": "auto",
    "devices": 1,
    "enable_progress_bar": False,  # one bar over all LoRAs, or pictures, in its place
    "enable_checkpointing": False,
    "enable_model_summary": False,
}
WIDTH = 120


class Spoken(ABC):
    """What can be said to a command; ``depth``: of the dots in a setting's name that are looked at."""

    name: str
    about: str
    depth: int

    @property
    @abstractmethod
    def shown(self) -> Mapping[str, Setting]:
        """By name, as the help has them."""

    @property
    def known(self) -> set[str]:
        """The names that are no mistake."""
        return {*self.shown}

    def read(self, arguments: Sequence[str]) -> None:
        """Ends with the help where it is asked for, and with code 2 where a word or a config is wrong."""
        if {"-h", "--help"} & {*arguments}:
            print(self.help, end="")
            raise SystemExit(0)
        try:
            self._check(arguments)
        except DiffstylerError as error:
            print(f"diffstyler {self.name}: {error}\nsee diffstyler {self.name} --help", file=sys.stderr)
            raise SystemExit(2) from error

    @property
    def help(self) -> str:
        return (
            f"usage: diffstyler {self.name} [--config FILE] [--SETTING VALUE | --SETTING=VALUE] …\n\n{self.about}\n\n"
            + "".join(f"  --{name}{setting}\n" for name, setting in self.shown.items())
            + self.closing
        )

    @property
    @abstractmethod
    def closing(self) -> str:
        """What the help says in the end."""

    def _check(self, arguments: Sequence[str]) -> None:
        """Raises:
        DiffstylerError: a flag, or a key of a config, is no setting.
        """
        words, configs = with_presets(arguments)
        keys = [word[2:].partition("=")[0].rstrip("+") for word in words if word.startswith("--")]
        keys += [key for config in configs for key in keys_of(config)]
        known = self.known
        for key in keys:
            name = ".".join(key.split(".")[: self.depth])
            if name not in known and key:
                raise DiffstylerError(f"'{name}' is not a setting{did_you_mean(name, sorted(known))}")


@dataclass(frozen=True)
class Words(Spoken):
    """What can be said to fit or predict.

    Args:
        name: the command.
        about: what it does.
        model: where the class of ``model.…`` is, its file in the package and its name; so ``data``.
        folders: top-level names for ``model.<name>``, and their defaults.
        classes: of the objects that settings are, where none is named.
    """

    name: str
    about: str
    model: tuple[str, str]
    data: tuple[str, str]
    folders: Mapping[str, str]
    classes: Mapping[str, str]

    depth = 2

    @property
    def settings(self) -> dict[str, Setting]:
        """By name, without the Trainer's."""
        own = {name: Setting("Path", default, FOLDERS[name]) for name, default in self.folders.items()}
        linked = {*self.folders, "on_error"}  # to a top-level name
        for part, (file, kind) in {"model": self.model, "data": self.data}.items():
            read = settings_of(PACKAGE / file, kind).items()
            own |= {f"{part}.{name}": setting for name, setting in read if name not in linked}
        return {name: setting.with_default(self.classes.get(name)) for name, setting in own.items()}

    @property
    def trainer(self) -> dict[str, Setting]:
        """The Trainer's settings, by name."""
        lightning = find_spec("lightning")
        assert lightning is not None
        assert lightning.submodule_search_locations
        source = Path(lightning.submodule_search_locations[0], "pytorch/trainer/trainer.py")
        defaults = {name: str(value) for name, value in TRAINER_DEFAULTS.items()}
        return {
            f"trainer.{name}": setting.with_default(defaults.get(name))
            for name, setting in settings_of(source, "Trainer").items()
        }

    @property
    def shown(self) -> dict[str, Setting]:
        general = {name: Setting("", "", text) for name, text in GENERAL.items()}
        return {**general, **self.settings, **FARM, **self.trainer}

    @property
    def known(self) -> set[str]:
        grouped = {"model", "data", "trainer", "print_shtab", "farm.class_path", "farm.init_args"}
        return {*self.shown, *(f"model.{name}" for name in self.folders), *grouped}

    @property
    def closing(self) -> str:
        return (
            "\nA setting that is an object takes its class, and the class's own settings: --model.masker SAMMasker\n"
            f"--model.masker.model DIR. `diffstyler {self.name} --model.masker.help SAMMasker` lists them.\n"
        )


@dataclass(frozen=True)
class FunctionWords(Spoken):
    """What can be said to a command that is one function.

    Args:
        name: the command.
        about: what it does.
        function: where it is, its file in the package and its name.
        closing: what the help says in the end.
        told: of settings that are the command's own.
        classes: of the objects that settings are, where none is named.
    """

    name: str
    about: str
    function: tuple[str, str]
    closing: str = ""
    told: Mapping[str, Setting] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)

    depth = 1

    @property
    def shown(self) -> dict[str, Setting]:
        file, name = self.function
        own = settings_of(PACKAGE / file, name).items()
        settings = {name: setting.with_default(self.classes.get(name)) for name, setting in own}
        general = {name: Setting("", "", GENERAL[name]) for name in ("config", "print_config", "help")}
        return {**general, **settings, **self.told}


@dataclass(frozen=True)
class Setting:
    """The type of one setting and its default as the source writes them, and what its class's docstring says."""

    kind: str
    default: str | None
    text: str

    def __str__(self) -> str:
        default = {"None": "null", "True": "true", "False": "false"}.get(self.default or "", self.default)  # as YAML
        facts = " = ".join(word for word in (self.kind, default) if word)
        text = textwrap.fill(self.text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
        return f"  {facts}\n{text}" if facts else f"\n{text}"

    def with_default(self, default: str | None) -> Setting:
        return self if default is None else Setting(self.kind, default, self.text)


@cache
def settings_of(source: Path, kind: str) -> dict[str, Setting]:
    """The arguments of a class, or a function, by its source, which is not run."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    owners = [node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == kind]
    init = owner = owners[0]
    if isinstance(owner, ast.ClassDef):
        init = next(node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    assert isinstance(init, ast.FunctionDef)
    told = {p.arg_name: p.description for p in _docstring(owner).params + _docstring(init).params}
    positional = init.args.args[1:] if init is not owner else init.args.args
    arguments, defaults = [*positional, *init.args.kwonlyargs], [*init.args.defaults, *init.args.kw_defaults]
    missing = len(arguments) - len(defaults)
    return {
        argument.arg: Setting(
            ast.unparse(argument.annotation) if argument.annotation else "",
            ast.unparse(default) if default else None,
            " ".join((told.get(argument.arg) or "").split()),
        )
        for argument, default in zip(arguments, [*[None] * missing, *defaults], strict=True)
    }


def _docstring(node: ast.ClassDef | ast.FunctionDef):  # noqa: ANN202
    return parse(inspect.cleandoc(ast.get_docstring(node) or ""), DocstringStyle.GOOGLE)


FARM = {
    f"farm.{name}": setting
    for source, kind in {"farm/folder.py": "FolderFarm", "farm/ray.py": "RayFarm"}.items()
    for name, setting in settings_of(PACKAGE / source, kind).items()
}
FIT = Words(
    "fit",
    "Fit a LoRA for every style (or content) picture that has none yet.",
    ("fit/finetuner.py", "LoRAFinetuner"),
    ("fit/data.py", "FitData"),
    {"lora_dir": "loras"},
    {"model.backbone": "StableDiffusion"},
)
PREDICT = Words(
    "predict",
    "Make the pictures of a manifest that are not made yet.",
    ("predict/stylizer.py", "Stylizer"),
    ("predict/data.py", "PredictData"),
    {"lora_dir": "loras", "output_dir": "stylized"},
    {
        "model.backbone": "StableDiffusion",
        "model.injection": "CrossLoRAInjection",
        "model.initial": "FromContentAdaIN",
        "model.masker": "AttentionMasker",
        "model.fusion": "FuseLatents",
        "model.solver": "DDIM",
        "model.matching": "PatchTransport",
    },
)
MASKS = FunctionWords(
    "masks",
    "Show what the mask prompts of a manifest, or of one picture, find.",
    ("predict/mask_preview.py", "preview_masks"),
    "\nA setting that is an object takes its class, and the class's own settings: --masker SAMMasker\n"
    "--masker.model DIR. `diffstyler masks --masker.help SAMMasker` lists them.\n",
    {"trust_config": Setting("", "", GENERAL["trust_config"])},
    {"backbone": "StableDiffusion", "masker": "AttentionMasker"},
)
TEST = FunctionWords(
    "test",
    "Measure the pictures of a folder: content, style, what happened outside the masks.",
    ("metrics/measure.py", "measure"),
    "\nNetworks are files by their names, as in configs/test.yaml: --networks.alexnet FILE.\n",
)
SWEEP = FunctionWords(
    "sweep",
    "Make the pictures of a manifest under each setting of a grid, with heat maps.",
    ("cli/sweep.py", "sweep"),
    "\nconfigs/figures/ has grids: diffstyler sweep --config configs/figures/injection.yaml --manifest my.csv\n",
)


def owners(arguments: Sequence[str]) -> dict[str, set[str]]:
    """fit, predict, both or none of them -> the settings among flags and configs that it alone has.

    Raises:
        DiffstylerError: a config cannot be read.
    """
    words, configs = with_presets(arguments)
    keys = [word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")]
    keys += [key for config in configs for key in keys_of(config)]
    named = {".".join(key.split(".")[:2]) for key in keys}
    fit, predict = FIT.settings.keys(), PREDICT.settings.keys()
    alone = {"fit": fit - predict, "predict": predict - fit}
    return {name: named & settings for name, settings in alone.items() if named & settings}


def keys_of(config: str) -> Iterator[str]:
    """The names of a config's settings, of its first two levels.

    Raises:
        DiffstylerError: it cannot be read.
    """
    try:
        text = config if config.lstrip().startswith("{") else Path(config).read_text(encoding="utf-8")
        settings = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DiffstylerError(f"--config {config}: expected a YAML file, got: {error}") from error
    if not isinstance(settings, dict):
        raise DiffstylerError(f"--config {config}: expected settings by name, got a {type(settings).__name__}")
    for key, value in settings.items():
        yield from [f"{key}.{inner}" for inner in value] if isinstance(value, dict) and value else [str(key)]


def with_presets(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """The words with each ``configs/<name>.yaml`` that is not here as the one of the package, and all configs."""
    words, configs, before = [], [], ""
    for word in arguments:
        flag, equals, value = word.partition("=")
        if before in {"-c", "--config"}:
            configs.append(_preset(word))
            words.append(configs[-1])
        elif flag in {"-c", "--config"} and equals:
            configs.append(_preset(value))
            words.append(f"{flag}={configs[-1]}")
        else:
            words.append(word)
        before = word
    return words, configs


def _preset(path: str) -> str:
    folder, *below = Path(path).parts or ("",)
    shipped = configs_dir().joinpath(*below)
    is_ours = folder == "configs" and not Path(path).is_file() and shipped.is_file()
    return str(shipped) if is_ours else path
