"""`diffstyler studio`: its words in; the page, or with --worker the process that works for it, out."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch.cli import LightningCLI

from diffstyler.backbones import Backbone
from diffstyler.cli.lightning_cli import FIT, PREDICT, Run
from diffstyler.cli.settings import FOLDERS
from diffstyler.errors import DiffstylerError
from diffstyler.fit.data import FitData
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.predict.stylizer import Stylizer
from diffstyler.studio.engine import Engine, Settings
from diffstyler.studio.folder import Folder
from diffstyler.studio.server import Address, serve
from diffstyler.studio.worker import work

#: the fit preset is tuned on the embedded model; others are fitted as the method says
FIT_PRESET = ["--config", "configs/style.yaml"]
QUIET = ["--trainer.logger", "false"]


@dataclass
class CommandEngine(Engine):
    """Models as fit and predict make them of their words.

    Args:
        fit: flags of fit alone, and of both.
        predict: flags of predict alone, and of both.
        lora_dir: the library.
        cache_dir: where inverted contents are kept.
    """

    fit: Sequence[str]
    predict: Sequence[str]
    lora_dir: Path
    cache_dir: Path
    precision: str = "32-true"
    accelerator: str = "auto"
    _loaded: Backbone | None = field(default=None, init=False)

    def stylizer(self, preset: str, settings: Settings, output_dir: Path) -> Stylizer:
        words = [*self._predict_words(preset, settings), "--output_dir", str(output_dir), *QUIET]
        words += ["--model.cache_dir", str(self.cache_dir), "--data.manifest", "manifest.csv"]
        stylizer: Stylizer = _cli(PREDICT, words).model  # type: ignore[assignment]
        stylizer.backbone = self._shared(stylizer.backbone)
        return stylizer

    def finetuner(self, settings: Settings) -> tuple[LoRAFinetuner, FitData]:
        preset = [] if any(word.startswith("--model.backbone") for word in self.fit) else FIT_PRESET
        words = [*preset, *self.fit, "--lora_dir", str(self.lora_dir), *_flags(settings), *QUIET]
        cli = _cli(FIT, [*words, "--data.pictures", "picture.png"])
        finetuner: LoRAFinetuner = cli.model  # type: ignore[assignment]
        finetuner.backbone = self._shared(finetuner.backbone)
        return finetuner, cli.datamodule  # type: ignore[return-value]

    def command(self, preset: str, settings: Settings, manifest: str) -> str:
        words = [*self._predict_words(preset, settings), "--data.manifest", manifest, "--output_dir", "again"]
        trainer = {"trainer.precision": self.precision, "trainer.accelerator": self.accelerator}
        words += _flags({name: value for name, value in trainer.items() if value not in ("32-true", "auto")})
        return shlex.join(["diffstyler", "predict", *words])

    def _predict_words(self, preset: str, settings: Settings) -> list[str]:
        named = ["--config", f"configs/{preset}.yaml", *self.predict]
        return [*named, "--lora_dir", str(self.lora_dir.resolve()), *_flags(settings)]

    def _shared(self, backbone: Backbone) -> Backbone:
        """The one that is loaded already."""
        self._loaded = self._loaded or backbone
        return self._loaded


def run(chosen: Namespace, words: Sequence[str], command: Sequence[str]) -> None:
    """The page, or the worker.

    Args:
        chosen: the studio's own settings.
        words: those of fit and predict.
        command: starts the worker.

    Raises:
        DiffstylerError: a setting is wrong, or the page cannot be where it is to be.
    """
    address = Address(chosen.host, chosen.port, _auth(chosen.auth))
    folder = Folder(chosen.folder)
    trainer, fit, predict = _shares(words)
    engine = CommandEngine(fit, predict, chosen.lora_dir, folder.path / "trajectories", **trainer)
    if chosen.worker:
        work(folder, engine)
        return
    engine.stylizer("predict", {}, folder.path)  # what is wrong with the settings is told here
    engine.finetuner({})
    serve(engine, folder, address, command, lambda url: print(f"the studio is at {url} (Ctrl-C ends it)", flush=True))


def _auth(given: str | None) -> tuple[str, str] | None:
    """The name and the password in ``--auth`` or, where other users of this machine are not to see it, in
    ``DIFFSTYLER_AUTH``."""
    text = given or os.environ.get("DIFFSTYLER_AUTH", "")
    name, _, password = text.partition(":")
    if text and not (name and password):
        raise DiffstylerError("--auth: expected NAME:PASSWORD")
    return (name, password) if text else None


def _shares(words: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Of the Trainer, of fit, and of predict.

    Raises:
        DiffstylerError: a flag is of neither.
    """
    trainer, fit, predict = {}, [], []
    of_fit, of_predict = FIT.words.settings.keys(), PREDICT.words.settings.keys()
    for flag, *values in _by_flag(words):
        name = ".".join(flag[2:].split(".")[:2])
        if flag in ("--trainer.precision", "--trainer.accelerator") and len(values) == 1:
            trainer[flag[len("--trainer.") :]] = values[0]
            continue
        if name not in {*of_fit, *of_predict} or name.startswith("data.") or name in FOLDERS:
            raise DiffstylerError(
                f"'{flag}' is not a setting of the studio; it takes model.… of fit and predict, trainer.precision and "
                "trainer.accelerator"
            )
        fit += [flag, *values] if name in of_fit else []
        predict += [flag, *values] if name in of_predict else []
    return trainer, fit, predict


def _by_flag(words: Sequence[str]) -> Iterator[list[str]]:
    """``--flag value`` and ``--flag=value`` -> the flag and its values."""
    own: list[str] = []
    for word in words:
        if word.startswith("--"):
            if own:
                yield own
            flag, equals, value = word.partition("=")
            own = [flag, value] if equals else [flag]
        elif own:
            own.append(word)
        else:
            raise DiffstylerError(f"expected --SETTING VALUE, got '{word}'")
    if own:
        yield own


def _flags(settings: Settings) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def _cli(run: Run, words: Sequence[str]) -> LightningCLI:
    """Raises: DiffstylerError: the words are wrong, as the parser has told on standard error."""
    try:
        return run.cli(words)
    except SystemExit as error:
        raise DiffstylerError(f"{run.name} does not take these settings; the lines above say why") from error
