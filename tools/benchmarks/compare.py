"""Put the method beside its rivals: the same model, pictures and LoRAs; a table, a grid and a Pareto plot.

python tools/benchmarks/compare.py pairs.csv --lora_dir loras --output_dir comparison

The manifest's rows are whole pictures with one style each, whose LoRAs (style and content) are in the library. Each
method has a folder of pictures and sidecars, as diffstyler predict writes them; what is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from diffstyler.adapters import FittedLoRA, LoRALibrary
from diffstyler.backbones import Backbone, StableDiffusion
from diffstyler.cli.lightning_cli import PREDICT
from diffstyler.cli.messages import quiet_libraries
from diffstyler.files import atomic_write, read_json
from diffstyler.images import load_image, picture_sha256, save_image
from diffstyler.manifests.pictures import read_manifest
from diffstyler.metrics.measure import Figures, bootstrap, measure
from diffstyler.rivals import BLoRA, Magenta, PlugAndPlay, Rival, SDEdit, Studio, StyleID, Task
from diffstyler.types import Triple

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = {"default": CONFIGS / "predict.yaml", "reference": CONFIGS / "reference.yaml"}
RIVALS: Mapping[str, Rival] = {
    "sdedit": SDEdit(),
    "plug_and_play": PlugAndPlay(),
    "style_id": StyleID(),
    "blora": BLoRA(),
    "magenta": Magenta(),
}
COST_NAME = "cost.txt"
#: two of the content, three of the style
FIGURES = ("ssim", "edge_agreement", "patch_distance_ratio", "palette_distance", "magenta_style")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--lora_dir", type=Path, default=Path("loras"))
    parser.add_argument("--output_dir", type=Path, default=Path("comparison"))
    parser.add_argument("--methods", nargs="*", choices=[*PRESETS, *RIVALS], default=[*PRESETS, *RIVALS])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--resolution", type=int, default=256, help="short side that pictures are compared at")
    arguments = parser.parse_args()
    quiet_libraries()
    triples = read_manifest(arguments.manifest)
    backbone = StableDiffusion(arguments.model).load()
    folders = {name: arguments.output_dir / name for name in arguments.methods}
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        todo = [t for t in triples if not (folder / f"{t.id}.json").is_file()]
        if todo and name in PRESETS:
            by_preset(PRESETS[name], backbone, len(todo), arguments, folder)
        elif todo:
            by_rival(
                RIVALS[name],
                Studio(backbone, num_inference_steps=arguments.num_inference_steps),
                todo,
                arguments,
                folder,
            )
    measured = {
        name: measure(folder, arguments.manifest, resolution=arguments.resolution) for name, folder in folders.items()
    }
    costs = {name: read_json(folder / COST_NAME) for name, folder in folders.items()}
    table = comparison(measured, costs)
    atomic_write(arguments.output_dir / "comparison.md", table.encode())
    grid(triples, folders).save(arguments.output_dir / "grid.jpg", quality=90)
    pareto(measured).savefig(arguments.output_dir / "pareto.png", dpi=120)
    print(table)


def by_preset(config: Path, backbone: Backbone, pictures: int, arguments: argparse.Namespace, folder: Path) -> None:
    """Through predict itself."""
    words = ["--config", str(config), "--data.manifest", str(arguments.manifest), "--lora_dir", str(arguments.lora_dir)]
    words += ["--output_dir", str(folder), "--model.num_inference_steps", str(arguments.num_inference_steps)]
    words += ["--model.content_lora", "off"]  # as of the rivals, but for the one that is made of it
    cli = PREDICT.cli([*words, "--model.backbone.model", arguments.model, "--trainer.enable_progress_bar", "false"])
    cli.model.backbone = backbone
    with counted(backbone, folder, pictures):
        cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False)


def by_rival(rival: Rival, studio: Studio, todo: Sequence[Triple], arguments: argparse.Namespace, folder: Path) -> None:
    """Pictures and sidecars as predict writes them."""
    loras = {(e.identity.role, e.identity.picture): e for e in LoRALibrary(arguments.lora_dir).entries()}
    with counted(studio.backbone, folder, len(todo)):
        for triple in todo:
            started = time.perf_counter()
            made = rival(studio, task(triple, loras))
            save_image(made, folder / f"{triple.id}.png")
            told = {
                "id": triple.id,
                "content": {"path": str(triple.content)},
                "regions": [{"style": {"path": str(triple.regions[0].style)}, "mask": "everything"}],
                "result": f"{triple.id}.png",
                "settings": {"method": repr(rival)},
                "seconds": round(time.perf_counter() - started, 3),
            }
            atomic_write(folder / f"{triple.id}.json", json.dumps(told, indent=2).encode())
            logging.info("%s %s", folder.name, triple.id)


def task(triple: Triple, loras: Mapping[tuple[str, str], FittedLoRA]) -> Task:
    content, style = load_image(triple.content), load_image(triple.regions[0].style)
    own = {
        "style": loras.get(("style", picture_sha256(style))),
        "content": loras.get(("content", picture_sha256(content))),
    }
    folders = {f"{role}_lora": lora.folder for role, lora in own.items() if lora is not None}
    prompt = own["style"].prompt if own["style"] is not None else ""
    return Task(content, style, style_prompt=prompt, content_prompt=triple.content_prompt, seed=triple.seed, **folders)


@contextmanager
def counted(backbone: Backbone, folder: Path, pictures: int) -> Iterator[None]:
    """Rows through the network, seconds and pictures, added up beside the pictures over all runs."""
    rows = 0

    def count(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal rows
        rows += len(args[0] if args else kwargs["sample"])

    handle, started = backbone.network.register_forward_pre_hook(count, with_kwargs=True), time.perf_counter()
    try:
        yield
    finally:
        handle.remove()
    before = read_json(folder / COST_NAME) if (folder / COST_NAME).is_file() else {}
    made = {"rows": rows, "seconds": time.perf_counter() - started, "pictures": pictures}
    cost = {name: value + before.get(name, 0) for name, value in made.items()}
    atomic_write(folder / COST_NAME, json.dumps(cost).encode())


def comparison(measured: Mapping[str, Figures], costs: Mapping[str, dict]) -> str:
    """Markdown: mean of each figure with its 95 % bootstrap interval, rows and seconds of a picture; then our method's
    difference to each rival, picture by picture."""
    first = next(iter(measured.values()))
    names = [name for name in FIGURES if name in first.more_is_better]
    arrows = [f"{name} {'↑' if first.more_is_better[name] else '↓'}" for name in names]
    lines = [f"| method | rows | seconds | {' | '.join(arrows)} |", f"|---|---|---|{'---|' * len(names)}"]
    for method, figures in measured.items():
        rows, seconds = (costs[method][name] / costs[method]["pictures"] for name in ("rows", "seconds"))
        cells = " | ".join(interval(figures.values(name)) for name in names)
        lines.append(f"| {method} | {rows:.0f} | {seconds:.1f} | {cells} |")
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


def against(ours: Figures, theirs: Figures, names: Sequence[str], method: str) -> str:
    """A line: ours minus theirs, positive = ours is better; "better" where the interval lies above zero."""
    cells, better, worse = [], 0, 0
    for name in names:
        sign = 1 if ours.more_is_better[name] else -1
        differences = [sign * (row[name] - theirs.rows[id][name]) for id, row in ours.rows.items() if name in row]
        low, high = bootstrap(differences)
        better, worse = better + (low > 0), worse + (high < 0)
        cells.append(f"{np.mean(differences):+.3f} ({low:+.3f} … {high:+.3f})")
    return f"| {method} | {' | '.join(cells)} | {better} | {worse} |"


def interval(values: Sequence[float]) -> str:
    low, high = bootstrap(values)
    return f"{np.mean(values):.3f} ({low:.3f} … {high:.3f})"


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
        x, y = np.mean(figures.values("ssim")), 1 - np.mean(figures.values("patch_distance_ratio"))
        axes.scatter(x, y, s=60)
        axes.annotate(method, (x, y), xytext=(6, 4), textcoords="offset points")
    axes.set(xlabel="content: SSIM", ylabel="style: 1 − patch distance / photograph's")
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
