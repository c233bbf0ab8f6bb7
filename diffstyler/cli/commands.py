"""One function for each command: its words in, what it made printed. Heavy imports come after the words are read."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffstyler.cli import settings
from diffstyler.cli.messages import telling
from diffstyler.errors import printable


@contextmanager
def _uncollected() -> Iterator[None]:
    """For imports: modules stay, and to look through them again and again for garbage takes an eighth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def fit(arguments: Sequence[str]) -> None:
    settings.FIT.read(arguments)
    with _uncollected():
        from diffstyler.cli.lightning_cli import FIT, exit_code_of_sigterm
    from diffstyler.storage import told

    cli = FIT.cli(arguments)
    with exit_code_of_sigterm():
        if farm := FIT.farm(cli):
            from diffstyler.cli.on_farm import fit_on

            fit_on(farm, cli, arguments)
        else:
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    if cli.trainer.is_global_zero:
        for entry in cli.model.finished:
            print(told(entry.folder))


def predict(arguments: Sequence[str]) -> None:
    settings.PREDICT.read(arguments)
    with _uncollected():
        from diffstyler.cli.lightning_cli import PREDICT, exit_code_of_sigterm, stopped_by_sigusr1
    from diffstyler.storage import told

    cli = PREDICT.cli(arguments)
    with exit_code_of_sigterm(), stopped_by_sigusr1():
        if farm := PREDICT.farm(cli):
            from diffstyler.cli.on_farm import predict_on

            predict_on(farm, cli, arguments)
        else:
            cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False)
    if cli.model.writer is not None and cli.trainer.is_global_zero:
        print(told(cli.model.writer.output_dir / "index.html"))


def masks(arguments: Sequence[str]) -> None:
    settings.MASKS.read(arguments)
    from jsonargparse import ArgumentParser

    from diffstyler.cli.trust import add_flag, limit_imports
    from diffstyler.predict.mask_preview import preview_masks

    limit_imports(arguments)
    parser = telling("masks", ArgumentParser)("diffstyler masks", description=preview_masks.__doc__)
    parser.add_argument("--config", action="config", help="a YAML file with any of these settings")
    parser.add_function_arguments(preview_masks, skip={"mask"})
    add_flag(parser)
    parser.add_argument("--mask", type=str, nargs="+", default=[], help="mask prompts of the one picture")
    parser.set_defaults({"backbone": {"class_path": "StableDiffusion"}, "masker": {"class_path": "AttentionMasker"}})
    chosen = parser.instantiate(parser.parse_args(arguments)).as_dict()
    del chosen["config"], chosen["trust_config"]
    print(preview_masks(**chosen))


def test(arguments: Sequence[str]) -> None:
    settings.TEST.read(arguments)
    from diffstyler.metrics.base import FIGURES_NAME
    from diffstyler.metrics.measure import measure
    from diffstyler.predict.contact_sheet import write_sheet

    chosen = _arguments_of("test", measure, arguments)
    figures = measure(**chosen)
    print(figures.table(), chosen["output_dir"] / FIGURES_NAME, write_sheet(chosen["output_dir"]), sep="\n")


def sweep(arguments: Sequence[str]) -> None:
    settings.SWEEP.read(arguments)
    from diffstyler.cli.sweep import sweep

    print(sweep(**_arguments_of("sweep", sweep, arguments)))


def _arguments_of(name: str, function: Callable, arguments: Sequence[str]) -> dict[str, Any]:
    """What the words and configs of a command say that a function is to be given."""
    from jsonargparse import ArgumentParser

    parser = telling(name, ArgumentParser)(f"diffstyler {name}", description=function.__doc__)
    parser.add_argument("--config", action="config", help="a YAML file with any of these settings")
    parser.add_function_arguments(function)
    chosen = parser.instantiate(parser.parse_args(settings.with_presets(arguments)[0])).as_dict()
    del chosen["config"]
    return chosen


def check(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diffstyler check",
        usage="diffstyler check [fit | predict] [settings of that command]",
        description="Say whether a run would go well here, and what it would take. Loads no weights. Without fit or "
        "predict, the settings that one of them alone has decide.",
    )
    if not arguments or arguments[0] in {"-h", "--help"}:
        return parser.print_help()

    if arguments[0] in {"fit", "predict"}:
        command, arguments = arguments[0], arguments[1:]
    else:
        named = settings.owners(arguments)
        if len(named) != 1:
            told = "; ".join(f"{', '.join(sorted(keys))} of {name}" for name, keys in named.items())
            told = f"both have settings here ({told})" if named else "no setting here is of one of them alone"
            parser.error(f"fit or predict? {told}. Say `diffstyler check fit …` or `diffstyler check predict …`")
        command = next(iter(named))
    {"fit": settings.FIT, "predict": settings.PREDICT}[command].read(arguments)

    with _uncollected():
        from diffstyler.cli.check import check_fit, check_predict
        from diffstyler.cli.lightning_cli import FIT, PREDICT

    run, look = {"fit": (FIT, check_fit), "predict": (PREDICT, check_predict)}[command]
    cli = run.cli(arguments)
    print(f"{'ok':8} {'settings':10} of {command}", flush=True)
    problems = 0
    for finding in look(cli.model, cli.datamodule, cli.trainer):
        print(printable(str(finding)), flush=True)
        problems += finding.problem
    if problems:
        raise SystemExit(1)


LORA = "its folder or .safetensors file, or its hub id: owner/name, owner/name@revision"


def inspect(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("diffstyler inspect", description="Tell what a LoRA is.")
    parser.add_argument("lora", help=LORA)
    chosen = parser.parse_args(arguments)

    from diffstyler.adapters import inspect_lora, lora_at

    print(printable(json.dumps(inspect_lora(lora_at(chosen.lora)), indent=2, ensure_ascii=False)))


#: the keys of adapters.kohya.FAMILIES, and of masking.fastsam.WEIGHTS: to import those takes seconds
FAMILIES = ("sd1", "sd2-512", "sd2-768-v", "sdxl")
FASTSAM_WEIGHTS = ("FastSAM-s.pt", "FastSAM-x.pt")


def export(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("diffstyler export", description="Write a LoRA for other tools.")
    parser.add_argument("lora", help=LORA)
    parser.add_argument("--format", choices=["kohya"], default="kohya")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--family", choices=FAMILIES, help="of the model; default: as its weights and metadata say")
    parser.add_argument("--title", help="default: the output's name")
    chosen = parser.parse_args(arguments)

    from diffstyler.adapters import export_lora, lora_at

    print(export_lora(lora_at(chosen.lora), chosen.output, family=chosen.family, title=chosen.title or ""))


def push(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("diffstyler push", description="Upload a LoRA's folder to the Hugging Face Hub.")
    parser.add_argument("lora", type=Path, help="its folder")
    parser.add_argument("repo", help="owner/name on the hub; made if it is not there")
    parser.add_argument("--private", action="store_true", help="a repository that is made is seen by its owner alone")
    parser.add_argument("--yes", action="store_true", help="do not ask first")
    chosen = parser.parse_args(arguments)

    from diffstyler.adapters.hub import files_to_push, push_lora

    for file in files_to_push(chosen.lora):
        print(f"  {file.name}  {file.stat().st_size / 1e6:.2f} MB")
    seen = "its owner alone" if chosen.private else "everybody"
    if not chosen.yes and not _agreed(f"Push these files to {chosen.repo}, where {seen} can see them? [y/N] "):
        print("nothing was pushed", file=sys.stderr)
        raise SystemExit(1)
    print(push_lora(chosen.lora, chosen.repo, private=chosen.private))


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in {"y", "yes"}
    except EOFError:  # nobody is there; --yes says it
        return False


def fetch_fastsam(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("diffstyler fetch-fastsam", description="Download FastSAM's weights (AGPL-3.0).")
    parser.add_argument("name", nargs="?", default="FastSAM-s.pt", choices=FASTSAM_WEIGHTS, help="23 MB, or 138")
    parser.add_argument("--folder", type=Path, default=Path(), help="where it goes (default: here)")
    chosen = parser.parse_args(arguments)

    from diffstyler.masking.fastsam import fetch_weights

    print(fetch_weights(chosen.name, chosen.folder))


def fetch_masker(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diffstyler fetch-masker", description="Download a masker's weights into the hub's cache. All are Apache-2.0."
    )
    parser.add_argument(
        "name", help="GroundedSAMMasker (about 850 MB), CLIPSegMasker (600), SAMMasker (40), or a hub id"
    )
    name = parser.parse_args(arguments).name

    from diffstyler.masking.pretrained import fetch_masker

    print(*fetch_masker(name), sep="\n")


def studio(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "diffstyler studio",
        usage="diffstyler studio [options] [--model.SETTING VALUE | --trainer.SETTING VALUE …]",
        description="Fit and restyle in a browser, on this machine.",
        epilog="Settings model.… are those of fit and predict, such as --model.backbone StableDiffusion "
        "--model.backbone.model MODEL; trainer.precision and trainer.accelerator are Lightning's.",
        allow_abbrev=False,
    )
    parser.add_argument("--folder", type=Path, default=Path("studio"), help="pictures and the queue (default: studio)")
    parser.add_argument("--lora_dir", type=Path, default=Path("loras"), help="the library (default: loras)")
    parser.add_argument("--host", default="127.0.0.1", help="another address is reached by others, and wants --auth")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument("--auth", metavar="NAME:PASSWORD", help="or DIFFSTYLER_AUTH in the environment")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen, words = parser.parse_known_args(arguments)

    from diffstyler.cli.studio import run

    folders = ["--folder", str(chosen.folder), "--lora_dir", str(chosen.lora_dir)]
    run(chosen, words, [sys.executable, "-m", "diffstyler", "studio", *folders, *words, "--worker"])


#: half of the default's, and so half of the rows: patch distance and SSIM hardly change
DEMO_STEPS = 25
#: pictures made together: on two cores a sixth faster than one after the other
DEMO_TOGETHER = 3


def demo(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("diffstyler demo", description="Fit and predict the example pictures.")
    parser.add_argument("--output_dir", type=Path, default=Path("demo"), help="where everything goes (default: demo)")
    folder: Path = parser.parse_args(arguments).output_dir

    from diffstyler.examples import configs_dir, copy_examples

    manifest = copy_examples(folder / "examples")
    loras = ["--lora_dir", str(folder / "loras")]
    for config, rows in {"style.yaml": manifest, "content.yaml": manifest.with_name("content.csv")}.items():
        runs = ["--trainer.logger.save_dir", str(folder / "runs")]
        fit(["--config", str(configs_dir() / config), "--data.manifest", str(rows), *loras, *runs])
    output = ["--output_dir", str(folder / "pictures"), "--model.cache_dir", str(folder / "trajectories")]
    output += ["--model.num_inference_steps", str(DEMO_STEPS), "--data.batch_size", str(DEMO_TOGETHER)]
    predict(["--config", str(configs_dir() / "predict.yaml"), "--data.manifest", str(manifest), *loras, *output])
    print(f"\nLoRAs:          {folder / 'loras'}\npictures:       {folder / 'pictures'}")
    print(f"contact sheet:  {folder / 'pictures' / 'index.html'}")
