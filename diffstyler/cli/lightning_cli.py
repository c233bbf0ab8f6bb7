"""Lightning's CLI over our modules: the words of fit or predict in, its Trainer, model and data out."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pydoc import locate
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from diffstyler.cli import settings
from diffstyler.cli.messages import telling
from diffstyler.cli.settings import Words, keys_of, with_presets
from diffstyler.cli.trust import add_flag, limit_imports
from diffstyler.errors import DiffstylerError
from diffstyler.farm.folder import FolderFarm
from diffstyler.farm.ray import RayFarm
from diffstyler.fit.data import FitData
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.predict.data import PredictData
from diffstyler.predict.stylizer import Stylizer
from diffstyler.types import OnError

#: classes of models, which are named like their pipelines in diffusers
FAMILIES = ("StableDiffusion", "StableDiffusionXL")
DEVICES = re.compile(r"auto|-?\d+|\d+(, ?\d+)*,?")
#: of each thread, by command and the Trainer's defaults: one takes a second to build, and reads any number of lines
_PARSERS = threading.local()


@dataclass(frozen=True)
class Run:
    """A command that Lightning's Trainer runs.

    Args:
        words: what can be said to it.
        model: its settings are ``model.…``.
        data: its settings are ``data.…``.
        trainer_defaults: of the Trainer, where they depend on where it runs.
        refused: settings of the Trainer that the command cannot honor, and why.
    """

    words: Words
    model: type[LightningModule]
    data: type[LightningDataModule]
    trainer_defaults: Callable[[], Mapping[str, object]] = dict
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.words.name

    @staticmethod
    def farm(cli: LightningCLI) -> RayFarm | FolderFarm | None:
        """The cluster that does the work, or the folder that tells how far it is; None = neither is asked for."""
        return cli.config_init["farm"]

    def cli(self, arguments: Sequence[str]) -> LightningCLI:
        """Trainer, model and datamodule as the arguments say; exits with code 2 where they cannot be."""
        for logger in ("lightning.pytorch", "lightning.fabric"):  # importing them sets the level
            logging.getLogger(logger).setLevel(logging.WARNING)
        logging.getLogger(subprocess_script.__name__).setLevel(logging.INFO)  # it tells of a process that died, no more
        run = self
        trusted = limit_imports(arguments)

        class CLI(LightningCLI):
            def setup_parser(self, *args: Any, **kwargs: Any) -> None:
                made = _PARSERS.__dict__
                key = json.dumps([run.name, self.trainer_defaults])
                if key not in made:
                    super().setup_parser(*args, **kwargs)
                    made[key] = self.parser
                self.parser = made[key]

            def init_parser(self, **kwargs: object) -> LightningArgumentParser:
                self.parser_class = telling(run.name, LightningArgumentParser)
                return super().init_parser(**kwargs)

            def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
                for name, default in run.words.folders.items():
                    parser.add_argument(f"--{name}", type=Path, default=Path(default), help=name)
                    parser.link_arguments(name, f"model.{name}")
                parser.add_argument("--on_error", type=OnError, default="stop", help=settings.GENERAL["on_error"])
                parser.link_arguments("on_error", "data.on_error")
                farms = (RayFarm, FolderFarm)
                parser.add_subclass_arguments(farms, "farm", required=False, help=settings.GENERAL["farm"])
                add_flag(parser)
                parser.set_defaults({name: {"class_path": kind} for name, kind in run.words.classes.items()})

            def instantiate_trainer(self, **kwargs: Any) -> Trainer:
                try:
                    return super().instantiate_trainer(**kwargs)
                except (TypeError, ValueError) as error:
                    raise DiffstylerError(f"trainer: {error}") from error

            def parse_arguments(self, parser: LightningArgumentParser, args: object) -> None:
                self.config = parser.parse_args(args)  # type: ignore[arg-type]
                if self.config.trust_config and not trusted:
                    parser.error("trust_config: a config cannot ask to be trusted; say --trust_config")
                for name, path in _class_paths(self.config.as_dict()):
                    if not isinstance(locate(path), type):  # a function would be called to make the object
                        parser.error(f"{name}: expected a class, got '{path}'")
                for name, why in run.refused.items():
                    if self.config.trainer[name] != parser.get_default(f"trainer.{name}"):
                        parser.error(f"trainer.{name}: {run.name} cannot honor it: {why}")
                devices = self.config.trainer.devices
                if isinstance(devices, str) and not DEVICES.fullmatch(devices):
                    parser.error(f"trainer.devices: expected a number, indices as in 0,1 or auto, got '{devices}'")

        with refusals_told():
            return CLI(
                self.model,
                self.data,
                run=False,
                args=_with_farm(_with_family(*with_presets(arguments))),
                save_config_callback=None,
                seed_everything_default=False,
                auto_configure_optimizers=False,
                # it would write all settings out, for files that nothing here saves, and tie the parser to this model
                load_from_checkpoint_support=False,
                parser_kwargs={"prog": f"diffstyler {self.name}", "allow_abbrev": False},
                trainer_defaults={**settings.TRAINER_DEFAULTS, **self.trainer_defaults()},
            )


def _on_slurm() -> dict[str, object]:
    """predict is its own way of going on: what is made is there. Lightning would look for a checkpoint of fit's."""
    place = f"{SLURMEnvironment.__module__}.{SLURMEnvironment.__qualname__}"
    plugin = {"class_path": place, "init_args": {"auto_requeue": False}}
    by_itself = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return {"plugins": [plugin]} if by_itself else {}


FIT = Run(settings.FIT, LoRAFinetuner, FitData)
PREDICT = Run(
    settings.PREDICT,
    Stylizer,
    PredictData,
    trainer_defaults=_on_slurm,
    refused=dict.fromkeys(
        ("limit_predict_batches", "fast_dev_run", "max_time", "max_steps", "max_epochs"),
        "it makes every row that is not made yet; give it a manifest of fewer rows",
    ),
)


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


def _with_family(words: list[str], configs: Iterable[str]) -> list[str]:
    """With the class of the model's folder, where a model is named without one."""
    flags = {word.partition("=")[0]: word for word in words if word.startswith("--model.backbone")}
    if "--model.backbone" in flags or "--model.backbone.model" not in flags:
        return words
    if any(key == "model.backbone" for config in configs for key in keys_of(config)):
        return words
    flag = flags["--model.backbone.model"]
    model = flag.partition("=")[2] or next(iter(words[words.index(flag) + 1 :]), "")
    index = Path(model) / "model_index.json"
    kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name", "") if index.is_file() else ""
    family = kind.removesuffix("Pipeline")
    return ["--model.backbone", family, *words] if family in FAMILIES else words


def _with_farm(words: list[str]) -> list[str]:
    """With the class of the farm that is named by a word."""
    kinds = {"ray": "RayFarm", "folder": "FolderFarm"}
    joined = {f"--farm={word}": f"--farm={kind}" for word, kind in kinds.items()}
    return [
        kinds.get(word, word) if before == "--farm" else joined.get(word, word)
        for before, word in zip(["", *words], words, strict=False)
    ]


@contextmanager
def refusals_told() -> Iterator[None]:
    """What the Trainer cannot be or do here ends as our own errors do, and not in a traceback."""
    try:
        yield
    except (MisconfigurationException, ImportError) as error:
        raise DiffstylerError(f"trainer: {error}") from error


@contextmanager
def stopped_by_sigusr1() -> Iterator[None]:
    """SIGUSR1, which SLURM sends before it takes a node, ends what runs inside as SIGTERM does."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR1"):
        yield
        return
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: os.kill(os.getpid(), signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def exit_code_of_sigterm() -> Iterator[None]:
    try:
        with refusals_told():
            yield
    except SIGTERMException as error:  # without an exit code of its own
        raise SystemExit(128 + signal.SIGTERM) from error
