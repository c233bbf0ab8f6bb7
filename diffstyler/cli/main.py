"""The `diffstyler` command: parsing only. `fit` and `predict` are Lightning's CLI over our modules."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

HELP = """\
usage: diffstyler COMMAND [options]

Localized image style transfer with diffusion models.

commands:
  fit       fit a LoRA for every style (or content) picture of a manifest
  predict   make the pictures of a manifest
  masks     show what the mask prompts of a manifest, or of one picture, find
  check     say whether a fit or predict would run here, and what it would take; loads no weights
  inspect   tell what a LoRA file is: family, rank, targets, prompt, norms, NaN
  export    write a LoRA for other tools: kohya's form, for A1111 and ComfyUI
  demo      run them on the example pictures and the embedded model
  fetch-fastsam  download FastSAM's weights (AGPL-3.0), for FastSAMMasker

`diffstyler COMMAND --help` lists a command's options, `--print_config` its settings as YAML.

  diffstyler demo --output_dir demo
  diffstyler fit --config configs/style.yaml --data.manifest my.csv --lora_dir loras
  diffstyler predict --config configs/predict.yaml --data.manifest my.csv --lora_dir loras --output_dir out
  diffstyler masks --content photo.jpg --mask "the house" --output_dir masks
"""


COMMANDS = ("fit", "predict", "masks", "check", "inspect", "export", "demo", "fetch-fastsam")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) -> exit code: 0 done, 1 failed, 2 wrong use."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(HELP, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        print(f"diffstyler {version('diffstyler')}")
        return 0
    if command not in COMMANDS:
        return _fail(f"no command '{command}'{_did_you_mean(command, COMMANDS)}; see diffstyler --help", 2)
    _quiet_imports()
    heavy = {"fit": _fit, "predict": _predict, "masks": _masks, "check": _check, "demo": _demo}
    light = {"inspect": _inspect, "export": _export, "fetch-fastsam": _fetch_fastsam}
    try:
        {**heavy, **light}[command](rest)
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("DIFFSTYLER_DEBUG"):
            raise
        text = _explain(str(error), [])
        return _fail(f"{text}\n(DIFFSTYLER_DEBUG=1 shows where)" if _is_surprising(error) else text, 1)
    return 0


def _fit(arguments: list[str]) -> None:
    cli = _fit_cli(arguments)
    with _exit_code_of_sigterm():
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    if cli.trainer.is_global_zero:
        for entry in cli.model.finished:
            print(entry.folder)


def _predict(arguments: list[str]) -> None:
    cli = _predict_cli(arguments)
    with _exit_code_of_sigterm():
        cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False)
    if cli.model.writer is not None and cli.trainer.is_global_zero:
        print(cli.model.writer.output_dir / "index.html")


@contextmanager
def _exit_code_of_sigterm() -> Iterator[None]:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        yield
    except SIGTERMException as error:  # without an exit code of its own
        raise SystemExit(128 + signal.SIGTERM) from error


def _check(arguments: list[str]) -> None:
    from diffstyler.cli.check import check_fit, check_predict

    command, settings = _command_of(arguments)
    cli = {"fit": _fit_cli, "predict": _predict_cli}[command](settings)
    look = {"fit": check_fit, "predict": check_predict}[command]
    print(f"{'ok':8} {'settings':10} of {command}", flush=True)
    problems = 0
    for finding in look(cli.model, cli.datamodule, cli.trainer):
        print(finding, flush=True)
        problems += finding.problem
    if problems:
        raise SystemExit(1)


def _command_of(arguments: list[str]) -> tuple[str, list[str]]:
    """fit or predict, by the first word, else by the settings that one of them alone has; and the other words."""
    if arguments and arguments[0] in {"fit", "predict"}:
        return arguments[0], arguments[1:]
    configs = [arguments[i + 1] for i, word in enumerate(arguments[:-1]) if word == "--config"]
    configs += [word.partition("=")[2] for word in arguments if word.startswith("--config=")]
    text = " ".join(arguments) + "".join(Path(c).read_text(encoding="utf-8") for c in configs if Path(c).is_file())
    return "predict" if re.search(r"\b(output_dir|num_inference_steps)\b", text) else "fit", arguments


def _masks(arguments: list[str]) -> None:
    from jsonargparse import ArgumentParser

    from diffstyler.predict.mask_preview import preview_masks

    parser = _telling("masks", ArgumentParser)("diffstyler masks", description=preview_masks.__doc__)
    parser.add_argument("--config", action="config", help="a YAML file with any of these settings")
    parser.add_function_arguments(preview_masks, skip={"mask"})
    parser.add_argument("--mask", type=str, nargs="+", default=[], help="mask prompts of the one picture")
    parser.set_defaults({"backbone": {"class_path": "StableDiffusion"}, "masker": {"class_path": "AttentionMasker"}})
    settings = parser.instantiate(parser.parse_args(arguments)).as_dict()
    settings.pop("config")
    print(preview_masks(**settings))


def _inspect(arguments: list[str]) -> None:
    from diffstyler.adapters import inspect_lora

    parser = argparse.ArgumentParser("diffstyler inspect", description="Tell what a LoRA is.")
    parser.add_argument("lora", type=Path, help="its folder or .safetensors file")
    print(json.dumps(inspect_lora(parser.parse_args(arguments).lora), indent=2, ensure_ascii=False))


def _export(arguments: list[str]) -> None:
    from diffstyler.adapters import FAMILIES, inspect_lora, kohya_family, read_lora, save_kohya

    parser = argparse.ArgumentParser("diffstyler export", description="Write a LoRA for other tools.")
    parser.add_argument("lora", type=Path, help="its folder or .safetensors file")
    parser.add_argument("--format", choices=["kohya"], default="kohya")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--family", choices=FAMILIES, help="of the model; default: as its weights and metadata say")
    parser.add_argument("--title", help="default: the output's name")
    chosen = parser.parse_args(arguments)
    lora, facts = read_lora(chosen.lora), inspect_lora(chosen.lora)
    family = chosen.family or kohya_family(facts)
    title, prompt = chosen.title or chosen.output.stem, str(facts["prompt"] or "")
    print(save_kohya(chosen.output, lora, family=family, title=title, trigger=prompt))


def _fetch_fastsam(arguments: list[str]) -> None:
    from diffstyler.masking.fastsam import WEIGHTS, fetch_weights

    parser = argparse.ArgumentParser("diffstyler fetch-fastsam", description=fetch_weights.__doc__)
    parser.add_argument("name", nargs="?", default="FastSAM-s.pt", choices=WEIGHTS)
    parser.add_argument("--folder", type=Path, default=Path(), help="where it goes (default: here)")
    chosen = parser.parse_args(arguments)
    print(fetch_weights(chosen.name, chosen.folder))


def _demo(arguments: list[str]) -> None:
    from diffstyler.examples import configs_dir, copy_examples

    parser = argparse.ArgumentParser("diffstyler demo", description="Fit and predict the example pictures.")
    parser.add_argument("--output_dir", type=Path, default=Path("demo"), help="where everything goes (default: demo)")
    folder: Path = parser.parse_args(arguments).output_dir
    manifest = copy_examples(folder / "examples")
    loras = ["--lora_dir", str(folder / "loras")]
    for config, rows in {"style.yaml": manifest, "content.yaml": manifest.with_name("content.csv")}.items():
        runs = ["--trainer.logger.save_dir", str(folder / "runs")]
        _fit(["--config", str(configs_dir() / config), "--data.manifest", str(rows), *loras, *runs])
    output = ["--output_dir", str(folder / "pictures"), "--model.cache_dir", str(folder / "trajectories")]
    _predict(["--config", str(configs_dir() / "predict.yaml"), "--data.manifest", str(manifest), *loras, *output])
    print(f"\nLoRAs:          {folder / 'loras'}\npictures:       {folder / 'pictures'}")
    print(f"contact sheet:  {folder / 'pictures' / 'index.html'}")


def _fit_cli(arguments: list[str]):  # noqa: ANN202
    from diffstyler.fit.data import FitData
    from diffstyler.fit.finetuner import LoRAFinetuner

    return _lightning_cli("fit", arguments, LoRAFinetuner, FitData, ("lora_dir",))


def _predict_cli(arguments: list[str]):  # noqa: ANN202
    from diffstyler.predict.data import PredictData
    from diffstyler.predict.stylizer import Stylizer

    return _lightning_cli("predict", arguments, Stylizer, PredictData, ("lora_dir", "output_dir"), **_on_slurm())


def _on_slurm() -> dict:
    """predict is its own way of going on: what is made is there. Lightning would look for a checkpoint of fit's."""
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    place = f"{SLURMEnvironment.__module__}.{SLURMEnvironment.__qualname__}"
    plugin = {"class_path": place, "init_args": {"auto_requeue": False}}
    return {"plugins": [plugin]} if SLURMEnvironment.detect() else {}


def _lightning_cli(  # noqa: ANN202
    name: str, arguments: list[str], model: type, data: type, shortcuts: tuple[str, ...], **trainer_defaults: object
):
    """LightningCLI for one command; each shortcut is a top-level name for ``model.<shortcut>``."""
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    for logger in ("lightning.pytorch", "lightning.fabric"):  # importing them sets the level
        logging.getLogger(logger).setLevel(logging.WARNING)

    class CLI(LightningCLI):
        def init_parser(self, **kwargs: object) -> LightningArgumentParser:
            self.parser_class = _telling(name, LightningArgumentParser)
            return super().init_parser(**kwargs)

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            for shortcut in shortcuts:
                parser.add_argument(f"--{shortcut}", type=Path, default=Path(DEFAULT_FOLDERS[shortcut]), help=shortcut)
                parser.link_arguments(shortcut, f"model.{shortcut}")

        def parse_arguments(self, parser: LightningArgumentParser, args: object) -> None:
            self.config = parser.parse_args(args)  # type: ignore[arg-type]

    return CLI(
        model,
        data,
        run=False,
        args=_with_presets(arguments),
        save_config_callback=None,
        seed_everything_default=False,
        auto_configure_optimizers=False,
        parser_kwargs={"prog": f"diffstyler {name}", "allow_abbrev": False},
        trainer_defaults={
            "accelerator": "auto",
            "devices": 1,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": name != "fit",  # fit shows one bar over all LoRAs
            **trainer_defaults,
        },
    )


def _with_presets(arguments: list[str]) -> list[str]:
    """``--config configs/style.yaml`` means the file that ships with the package where there is none here."""
    from diffstyler.examples import configs_dir

    def found(word: str) -> str:
        preset = configs_dir() / Path(word).name
        is_ours = Path(word) == Path("configs") / preset.name and not Path(word).is_file() and preset.is_file()
        return str(preset) if is_ours else word

    flags = [None, *arguments[:-1]]
    return [found(word) if flag == "--config" else word for flag, word in zip(flags, arguments, strict=True)]


def _telling(name: str, parser: type) -> type:
    """The parser class with errors of a few lines, in place of a page of usage."""

    class Parser(parser):  # type: ignore[misc]
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            options = [o.lstrip("-") for action in self._actions for o in action.option_strings if o.startswith("--")]
            text = f"diffstyler {name}: {_explain(message, options)}\nsee diffstyler {name} --help\n"
            raise SystemExit(self.exit(2, text))

    return Parser


DEFAULT_FOLDERS = {"lora_dir": "loras", "output_dir": "stylized"}


def _explain(message: str, options: Sequence[str]) -> str:
    """The last paragraph of jsonargparse's message, and the nearest valid name of an unknown key."""
    unknown = re.search(
        r"[Kk]ey '([\w.]+)' is not expected"
        r"|[Uu]nrecognized arguments: --([\w.]+)"
        r"|Option '([\w.]+)'"
        r"|(Group '[\w.]+' does not accept option '[\w.]+')",
        message,
    )
    if not unknown:
        # a value that fits none of several types: the reasons come last, one a line
        return message.strip().split("\n\n")[-1].split("Errors:\n")[-1].strip()
    found = next(group for group in unknown.groups() if group)
    key = ".".join(re.findall(r"'([\w.]+)'", found)) or found
    return f"'{key}' is not a setting{_did_you_mean(key, options)}"


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _is_surprising(error: Exception) -> bool:
    """Errors of our own say what to do; others come from a library."""
    return not type(error).__module__.startswith("diffstyler") and type(error) is not ValueError


def _fail(text: str, code: int) -> int:
    print(f"diffstyler: {text}", file=sys.stderr)
    return code


def _quiet_imports() -> None:
    """diffusers' optional backends announce at import what they cannot do here; `attention` probes for itself."""
    for name in ("xformers", "bitsandbytes", "diffusers", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    from diffstyler.chatter import LIBRARY_CHATTER

    for message in LIBRARY_CHATTER:
        warnings.filterwarnings("ignore", message)
    for name in ("httpx", "matplotlib", "PIL", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
