"""Lightning's CLI over our modules: the words of fit or predict in, its Trainer, model and data out."""

from __future__ import annotations

import inspect
import json
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pydoc import locate

import yaml
from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from diffstyler.cli.messages import telling
from diffstyler.errors import DiffstylerError
from diffstyler.examples import configs_dir
from diffstyler.fit.data import FitData
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.predict.data import PredictData
from diffstyler.predict.stylizer import Stylizer

#: classes of models, which are named like their pipelines in diffusers
FAMILIES = ("StableDiffusion", "StableDiffusionXL")


@dataclass(frozen=True)
class Run:
    """A command that Lightning's Trainer runs.

    Args:
        model: its settings are ``model.…``.
        data: its settings are ``data.…``.
        folders: top-level names for ``model.<name>``, and their defaults.
        trainer_defaults: of the Trainer, where they differ between commands.
        refused: settings of the Trainer that the command cannot honor, and why.
        classes: of the objects that settings are, where none is named.
    """

    name: str
    model: type[LightningModule]
    data: type[LightningDataModule]
    folders: Mapping[str, str]
    trainer_defaults: Callable[[], Mapping[str, object]]
    refused: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)

    def cli(self, arguments: Sequence[str]) -> LightningCLI:
        """Trainer, model and datamodule as the arguments say; exits with code 2 where they cannot be."""
        for logger in ("lightning.pytorch", "lightning.fabric"):  # importing them sets the level
            logging.getLogger(logger).setLevel(logging.WARNING)
        run = self
        set_parsing_settings(import_path_denylist=["os", "pydoc"])  # and its own list; as errors, not as warnings

        class CLI(LightningCLI):
            def init_parser(self, **kwargs: object) -> LightningArgumentParser:
                self.parser_class = telling(run.name, LightningArgumentParser)
                return super().init_parser(**kwargs)

            def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
                for name, default in run.folders.items():
                    parser.add_argument(f"--{name}", type=Path, default=Path(default), help=name)
                    parser.link_arguments(name, f"model.{name}")
                parser.set_defaults({name: {"class_path": kind} for name, kind in run.classes.items()})

            def parse_arguments(self, parser: LightningArgumentParser, args: object) -> None:
                self.config = parser.parse_args(args)  # type: ignore[arg-type]
                for name, path in _class_paths(self.config.as_dict()):
                    if not isinstance(locate(path), type):  # a function would be called to make the object
                        parser.error(f"{name}: expected a class, got '{path}'")
                for name, why in run.refused.items():
                    if self.config.trainer[name] != parser.get_default(f"trainer.{name}"):
                        parser.error(f"trainer.{name}: {run.name} cannot honor it: {why}")

        with refusals_told():
            return CLI(
                self.model,
                self.data,
                run=False,
                args=_with_family(*with_presets(arguments)),
                save_config_callback=None,
                seed_everything_default=False,
                auto_configure_optimizers=False,
                parser_kwargs={"prog": f"diffstyler {self.name}", "allow_abbrev": False},
                trainer_defaults={
                    "accelerator": "auto",
                    "devices": 1,
                    "enable_checkpointing": False,
                    "enable_model_summary": False,
                    **self.trainer_defaults(),
                },
            )

    @property
    def settings(self) -> set[str]:
        """Dotted names of the first two levels, without the Trainer's."""
        parts = {"model": self.model, "data": self.data}.items()
        named = {f"{part}.{name}" for part, kind in parts for name in inspect.signature(kind).parameters}
        return {*self.folders, *named}


def _on_slurm() -> dict[str, object]:
    """predict is its own way of going on: what is made is there. Lightning would look for a checkpoint of fit's."""
    place = f"{SLURMEnvironment.__module__}.{SLURMEnvironment.__qualname__}"
    plugin = {"class_path": place, "init_args": {"auto_requeue": False}}
    return {"plugins": [plugin]} if SLURMEnvironment.detect() else {}


FIT = Run(
    "fit",
    LoRAFinetuner,
    FitData,
    {"lora_dir": "loras"},
    trainer_defaults=lambda: {"enable_progress_bar": False},  # one bar over all LoRAs in its place
    classes={"model.backbone": "StableDiffusion"},
)
PREDICT = Run(
    "predict",
    Stylizer,
    PredictData,
    {"lora_dir": "loras", "output_dir": "stylized"},
    trainer_defaults=_on_slurm,
    refused=dict.fromkeys(
        ("limit_predict_batches", "fast_dev_run"),
        "it makes every row that is not made yet; give it a manifest of fewer rows",
    ),
    classes={
        "model.backbone": "StableDiffusion",
        "model.injection": "CrossLoRAInjection",
        "model.initial": "FromContentAdaIN",
        "model.masker": "AttentionMasker",
        "model.fusion": "FuseLatents",
    },
)


def owners(arguments: Sequence[str]) -> dict[str, set[str]]:
    """fit, predict, both or none of them -> the settings among flags and configs that it alone has.

    Raises:
        DiffstylerError: a config cannot be read.
    """
    words, configs = with_presets(arguments)
    keys = [word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")]
    keys += [key for config in configs for key in _keys_of(config)]
    named = {".".join(key.split(".")[:2]) for key in keys}
    alone = {"fit": FIT.settings - PREDICT.settings, "predict": PREDICT.settings - FIT.settings}
    return {name: named & settings for name, settings in alone.items() if named & settings}


def _class_paths(settings: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Each class that settings name, however deep: where, and its import path."""
    if isinstance(settings, dict):
        if isinstance(path := settings.get("class_path"), str):
            yield name, path
        for key, inner in settings.items():
            yield from _class_paths(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(settings, (list, tuple)):
        for inner in settings:
            yield from _class_paths(inner, name)


def _keys_of(config: str) -> Iterator[str]:
    try:
        text = config if config.lstrip().startswith("{") else Path(config).read_text(encoding="utf-8")
        settings = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DiffstylerError(f"--config {config}: expected a YAML file, got: {error}") from error
    if not isinstance(settings, dict):
        raise DiffstylerError(f"--config {config}: expected settings by name, got a {type(settings).__name__}")
    for key, value in settings.items():
        yield from [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [str(key)]


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


def _with_family(words: list[str], configs: Iterable[str]) -> list[str]:
    """With the class of the model's folder, where a model is named without one."""
    flags = {word.partition("=")[0]: word for word in words if word.startswith("--model.backbone")}
    if "--model.backbone" in flags or "--model.backbone.model" not in flags:
        return words
    if any(key == "model.backbone" for config in configs for key in _keys_of(config)):
        return words
    flag = flags["--model.backbone.model"]
    model = flag.partition("=")[2] or next(iter(words[words.index(flag) + 1 :]), "")
    index = Path(model) / "model_index.json"
    kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name", "") if index.is_file() else ""
    family = kind.removesuffix("Pipeline")
    return ["--model.backbone", family, *words] if family in FAMILIES else words


def _preset(path: str) -> str:
    folder, *below = Path(path).parts or ("",)
    shipped = configs_dir().joinpath(*below)
    is_ours = folder == "configs" and not Path(path).is_file() and shipped.is_file()
    return str(shipped) if is_ours else path


@contextmanager
def refusals_told() -> Iterator[None]:
    """What the Trainer cannot be or do here ends as our own errors do, and not in a traceback."""
    try:
        yield
    except (MisconfigurationException, ImportError) as error:
        raise DiffstylerError(f"trainer: {error}") from error


@contextmanager
def exit_code_of_sigterm() -> Iterator[None]:
    try:
        with refusals_told():
            yield
    except SIGTERMException as error:  # without an exit code of its own
        raise SystemExit(128 + signal.SIGTERM) from error
