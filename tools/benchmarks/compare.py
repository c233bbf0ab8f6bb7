"""Put the method beside its rivals: the same model, pictures and LoRAs; a table, a grid and a Pareto plot, and every
picture's figures in ``figures.csv``.

python tools/benchmarks/compare.py pairs.csv --lora_dir loras --output_dir comparison

The manifest's rows are whole pictures with one style each, whose LoRAs (style and content) are in the library. Each
method has a folder of pictures and sidecars, as diffstyler predict writes them; what is there is not made again, unless
it was made by another model, LoRA or setting. An interrupted run goes on by the same command.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from diffstyler.adapters import FittedLoRA, LoRALibrary
from diffstyler.backbones import Backbone, StableDiffusion
from diffstyler.cli.lightning_cli import PREDICT
from diffstyler.cli.messages import quiet_libraries
from diffstyler.errors import DiffstylerError
from diffstyler.files import atomic_write, read_json
from diffstyler.images import is_picture, load_image, picture_sha256, save_image
from diffstyler.manifests.pictures import read_manifest
from diffstyler.metrics.measure import Figures, bootstrap, measure
from diffstyler.rivals import BLoRA, Magenta, PlugAndPlay, Rival, SDEdit, Studio, StyleID, Task
from diffstyler.types import StyleRegion, Triple

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = {
    "default": CONFIGS / "predict.yaml",
    "draft": CONFIGS / "draft.yaml",
    "reference": CONFIGS / "reference.yaml",
}
RIVALS: Mapping[str, Rival] = {
    "sdedit": SDEdit(),
    "plug_and_play": PlugAndPlay(guidance_scale=3.0),  # as of all here: its authors' 7.5 burns the embedded model out
    "style_id": StyleID(),
    "blora": BLoRA(),
    "magenta": Magenta(),
}
COST_NAME = "cost.txt"
#: two of the content, three of the style
FIGURES = ("ssim", "edge_agreement", "patch_distance_ratio", "palette_distance", "magenta_style")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--lora_dir", type=Path, default=Path("loras"))
    parser.add_argument("--output_dir", type=Path, default=Path("comparison"))
    parser.add_argument("--methods", nargs="+", choices=[*PRESETS, *RIVALS], default=[*PRESETS, *RIVALS])
    parser.add_argument("--model", default="embedded")
    parser.add_argument(
        "--num_inference_steps", type=int, default=50, help="of rivals, and of presets that name no steps of their own"
    )
    parser.add_argument("--resolution", type=int, default=256, help="short side that pictures are compared at")
    arguments = parser.parse_args()
    quiet_libraries()
    try:
        compare(arguments)
    except DiffstylerError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 1
    return 0


def compare(arguments: argparse.Namespace) -> None:
    """Raises:
    DiffstylerError: before anything is made: a row that not every method can make, a LoRA or a model that is not there.
    """
    for name, least in {"num_inference_steps": 1, "resolution": 64}.items():
        if getattr(arguments, name) < least:
            raise DiffstylerError(f"--{name}: expected at least {least}, got {getattr(arguments, name)}")
    triples = read_manifest(arguments.manifest)
    for triple in triples:
        check_plain(triple)
    loras = fitted(arguments.lora_dir)
    for name in arguments.methods:
        for triple in triples if name in RIVALS else ():
            task(RIVALS[name], triple, loras)
    backbone = StableDiffusion(arguments.model).load()
    folders = {name: arguments.output_dir / name for name in arguments.methods}
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        if name in PRESETS:
            by_preset(PRESETS[name], backbone, arguments, folder)
        else:
            by_rival(RIVALS[name], backbone, triples, arguments, folder)
    measured = {
        name: measure(folder, arguments.manifest, resolution=arguments.resolution) for name, folder in folders.items()
    }
    table = comparison(measured, {name: cost_of(folder) for name, folder in folders.items()})
    atomic_write(arguments.output_dir / "comparison.md", table.encode())
    atomic_write(arguments.output_dir / "figures.csv", by_picture(measured).encode())
    grid(triples, folders).save(arguments.output_dir / "grid.jpg", quality=90)
    pareto(measured).savefig(arguments.output_dir / "pareto.png", dpi=120)
    print(table)


def check_plain(triple: Triple) -> None:
    """Raises:
    DiffstylerError: a row asks for more than the whole picture in the style of one picture, which rivals cannot do.
    """
    (first, *more), plain = triple.regions, StyleRegion(triple.regions[0].style)
    where = triple.origin or triple.id
    asked = [f.name for f in fields(first) if f.name != "origin" and getattr(first, f.name) != getattr(plain, f.name)]
    if more or asked:
        what = "several regions" if more else ", ".join(asked)
        raise DiffstylerError(f"{where}: expected a content and a style and nothing else, got {what}")
    if not is_picture(first.style):
        raise DiffstylerError(f"{where}: expected a style picture, got {first.style}")


def fitted(lora_dir: Path) -> dict[tuple[str, str], FittedLoRA]:
    """LoRAs by role and picture."""
    return {(e.identity.role, e.identity.picture): e for e in LoRALibrary(lora_dir).entries()}


def by_preset(config: Path, backbone: Backbone, arguments: argparse.Namespace, folder: Path) -> None:
    """Through predict itself. What the preset says comes last, and so holds."""
    words = ["--model.num_inference_steps", str(arguments.num_inference_steps), "--config", str(config)]
    words += ["--data.manifest", str(arguments.manifest), "--lora_dir", str(arguments.lora_dir)]
    words += ["--output_dir", str(folder), "--model.content_lora", "off"]  # as of the rivals, but for one made of it
    cli = PREDICT.cli([*words, "--model.backbone.model", arguments.model, "--trainer.enable_progress_bar", "false"])
    cli.model.backbone = backbone
    with counted(backbone, folder, cli.model.num_inference_steps, config.read_text()):
        cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False)


def by_rival(
    rival: Rival, backbone: Backbone, triples: Sequence[Triple], arguments: argparse.Namespace, folder: Path
) -> None:
    """Pictures and sidecars as predict writes them."""
    studio = Studio(backbone, num_inference_steps=arguments.num_inference_steps)
    loras = fitted(arguments.lora_dir)
    for triple in triples:
        asked = task(rival, triple, loras)
        told = sidecar(rival, studio, triple, asked)
        if is_made(folder / f"{triple.id}.json", told["key"]):
            continue
        with counted(backbone, folder, len(studio.schedule), repr(rival)):
            started = time.perf_counter()
            save_image(rival(studio, asked), folder / f"{triple.id}.png")
            told["seconds"] = round(time.perf_counter() - started, 3)
            atomic_write(folder / f"{triple.id}.json", json.dumps(told, indent=2).encode())
        log.info("%s %s", folder.name, triple.id)


def sidecar(rival: Rival, studio: Studio, triple: Triple, asked: Task) -> dict:
    """What is told of a picture; its key is of all that determines it."""
    content, style = triple.content, triple.regions[0].style
    loras = {"style_lora": asked.style_lora, "content_lora": asked.content_lora}
    settings = {
        "method": repr(rival),
        "num_inference_steps": len(studio.schedule),
        "resolution": studio.resolution,
        "style_prompt": asked.style_prompt,
        "content_prompt": asked.content_prompt,
        **{name: lora.name for name, lora in loras.items() if lora is not None},  # with the beginning of its hash
    }
    pictures = [picture_sha256(image) for image in (asked.content, asked.style)]
    settled = [*pictures, settings, asked.seed, studio.backbone.identity()]
    return {
        "id": triple.id,
        "content": {"path": str(content), "sha256": pictures[0]},
        "regions": [{"style": {"path": str(style), "sha256": pictures[1]}, "mask": "everything"}],
        "result": f"{triple.id}.png",
        "settings": settings,
        "seed": asked.seed,
        "key": hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest(),
    }


def is_made(path: Path, key: str) -> bool:
    """Whether this very picture lies there."""
    return path.is_file() and path.with_suffix(".png").is_file() and read_json(path).get("key") == key


def task(rival: Rival, triple: Triple, loras: Mapping[tuple[str, str], FittedLoRA]) -> Task:
    """Of a row, with the LoRAs that a rival needs, and no others.

    Raises:
        DiffstylerError: one of them is not there.
    """
    pictures = {"style": Path(triple.regions[0].style), "content": triple.content}
    images = {role: load_image(path) for role, path in pictures.items()}
    found = {}
    for role, needed in {"style": rival.needs_style_lora, "content": rival.needs_content_lora}.items():
        if needed:
            lora = loras.get((role, picture_sha256(images[role])))
            if lora is None:
                raise DiffstylerError(
                    f"{triple.origin or triple.id}: {type(rival).__name__} needs a {role} LoRA of {pictures[role]}; "
                    f"fit it: diffstyler fit --config configs/{role}.yaml --data.manifest MANIFEST --lora_dir LORAS"
                )
            found[role] = lora
    folders = {f"{role}_lora": lora.folder for role, lora in found.items()}
    prompt = found["style"].prompt if "style" in found else ""
    words = {"style_prompt": prompt, "content_prompt": triple.content_prompt, "seed": triple.seed}
    return Task(images["content"], images["style"], **folders, **words)


@contextmanager
def counted(backbone: Backbone, folder: Path, steps: int, method: str) -> Iterator[None]:
    """Rows through the network, seconds and pictures, added up beside the pictures over all runs of a method and model
    that made some."""
    rows = 0

    def count(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal rows
        rows += len(args[0] if args else kwargs["sample"])

    there = sidecars(folder)
    handle, started = backbone.network.register_forward_pre_hook(count, with_kwargs=True), time.perf_counter()
    try:
        yield
    finally:
        handle.remove()
        if pictures := len(sidecars(folder) - there):
            of = f"{steps} steps on {backbone.fingerprint()}: {method}"
            before = cost if (cost := cost_of(folder)).get("of") == of else {}
            made = {"rows": rows, "seconds": time.perf_counter() - started, "pictures": pictures}
            total = {name: value + before.get(name, 0) for name, value in made.items()}
            atomic_write(folder / COST_NAME, json.dumps({**total, "steps": steps, "of": of}).encode())


def sidecars(folder: Path) -> set[tuple[str, int]]:
    return {(file.name, file.stat().st_mtime_ns) for file in folder.glob("*.json")}


def cost_of(folder: Path) -> dict:
    """Of what was made there; {} where the runs that made it were killed before they could tell."""
    return read_json(folder / COST_NAME) if (folder / COST_NAME).is_file() else {}


def comparison(measured: Mapping[str, Figures], costs: Mapping[str, dict]) -> str:
    """Markdown: mean of each figure with its 95 % bootstrap interval, rows and seconds of a picture; then our method's
    difference to each rival, picture by picture."""
    first = next(iter(measured.values()))
    names = [name for name in FIGURES if name in first.more_is_better]
    arrows = [f"{name} {'↑' if first.more_is_better[name] else '↓'}" for name in names]
    lines = [f"| method | steps | rows | seconds | {' | '.join(arrows)} |", f"|---|---|---|---|{'---|' * len(names)}"]
    for method, figures in measured.items():
        cells = " | ".join([*told_cost(costs[method]), *(interval(figures.values(name)) for name in names)])
        lines.append(f"| {method} | {cells} |")
    if "default" in measured:
        lines += [
            "",
            f"| default against | {' | '.join(names)} | better in | worse in |",
            f"|---|{'---|' * len(names)}---|---|",
        ]
        for method, figures in measured.items():
            if method != "default":
                lines.append(against(measured["default"], figures, names, method))
    return "\n".join(lines) + "\n"


def by_picture(measured: Mapping[str, Figures]) -> str:
    """CSV: what the means are of."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["method", "id", *FIGURES])
    for method, figures in measured.items():
        for id, row in figures.rows.items():
            writer.writerow([method, id, *(f"{row[name]:.4g}" if name in row else "" for name in FIGURES)])
    return table.getvalue()


def told_cost(cost: Mapping) -> tuple[str, str, str]:
    """Steps, and rows and seconds of a picture."""
    if not cost:
        return "–", "–", "–"
    rows, seconds = (cost[name] / cost["pictures"] for name in ("rows", "seconds"))
    return str(cost["steps"]) if rows else "–", f"{rows:.0f}", f"{seconds:.1f}"


def against(ours: Figures, theirs: Figures, names: Sequence[str], method: str) -> str:
    """A line: ours minus theirs, positive = ours is better; "better" where the interval lies above zero."""
    cells, better, worse = [], 0, 0
    for name in names:
        sign = 1 if ours.more_is_better[name] else -1
        both = [
            (row[name], other[name])
            for id, row in ours.rows.items()
            if name in row and name in (other := theirs.rows.get(id, {}))
        ]
        differences = [sign * (own - other) for own, other in both]
        cells.append(interval(differences, "+.3f"))
        if len(differences) > 1:  # of one picture nothing can be told
            low, high = bootstrap(differences)
            better, worse = better + (low > 0), worse + (high < 0)
    return f"| {method} | {' | '.join(cells)} | {better} | {worse} |"


def interval(values: Sequence[float], style: str = ".3f") -> str:
    if len(values) < 2:
        return f"{values[0]:{style}}" if values else "–"
    low, high = bootstrap(values)
    return f"{np.mean(values):{style}} ({low:{style}} … {high:{style}})"


def grid(triples: Sequence[Triple], folders: Mapping[str, Path], side: int = 160) -> Image.Image:
    """A row for each picture: content, style, then every method."""
    columns: dict[str, Callable[[Triple], Path]] = {
        "content": lambda t: t.content,
        "style": lambda t: t.regions[0].style,
    }
    columns |= {name: lambda t, folder=folder: folder / f"{t.id}.png" for name, folder in folders.items()}
    sheet = Image.new("RGB", (len(columns) * side, len(triples) * side + 20), "white")
    for x, (name, path_of) in enumerate(columns.items()):
        ImageDraw.Draw(sheet).text((x * side + 4, 4), name, fill="black")
        for y, triple in enumerate(triples):
            sheet.paste(load_image(path_of(triple)).resize((side - 4, side - 4)), (x * side, y * side + 20))
    return sheet


def pareto(measured: Mapping[str, Figures]) -> Figure:
    """Style against content: right and up is better."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for method, figures in measured.items():
        content, style = figures.values("ssim"), figures.values("patch_distance_ratio")
        if not content or not style:
            continue
        x, y = np.mean(content), 1 - np.mean(style)
        axes.scatter(x, y, s=60)
        axes.annotate(method, (x, y), xytext=(6, 4), textcoords="offset points")
    axes.set(xlabel="content: SSIM", ylabel="style: 1 − patch distance / photograph's")
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    raise SystemExit(main())
