"""`diffstyler sweep`: pictures of a manifest under each setting of a grid -> one figure, heat maps and a page."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffstyler.cli.lightning_cli import PREDICT
from diffstyler.errors import DiffstylerError, did_you_mean
from diffstyler.files import atomic_write
from diffstyler.images import load_image
from diffstyler.manifests.pictures import read_manifest, region_value
from diffstyler.metrics.measure import Battery, Figures, measure
from diffstyler.metrics.networks import Networks
from diffstyler.predict.data import PredictData
from diffstyler.types import StyleRegion, Triple

Settings = Mapping[str, object]
#: of an axis: its values by the names that the figure shows, each the settings that make it
Axis = Mapping[str, Settings]
ROW = "row."
#: settings of predict that a cell cannot have of its own
OWN_SETTINGS = {"output_dir", "model.output_dir", "data.manifest"}
LONGEST_FOLDER = 100  # letters
COLUMNS = tuple(field.name for field in fields(StyleRegion) if field.name != "style")
SHOWN_SIDE = 256
MAPS_BESIDE = 3


@dataclass(frozen=True)
class Cell:
    """One place of the grid: what it is called on each axis, what is set, where its pictures are."""

    names: tuple[str, ...]
    settings: Settings
    folder: Path


def sweep(
    manifest: Path,
    axes: dict[str, Any],
    *,
    lora_dir: Path = Path("loras"),
    output_dir: Path = Path("sweep"),
    settings: dict[str, Any] | None = None,
    figures: list[str] | None = None,
    networks: Networks | None = None,
    resolution: int = 256,
) -> Path:
    """Make a manifest's pictures under each setting of a grid, measure them, and show them side by side.

    Contents are inverted once for all cells whose inversions are equal. What is made already is not made again.

    Args:
        manifest: the pictures, as for diffstyler predict.
        axes: one or two. ``model.injection.features: [0, 0.5, 1]`` takes any setting of predict,
            ``row.strength: [0, 1]`` any column of a region; a name with settings for each of its values,
            ``source: {none: {…}, base: {…}}``, takes several together.
        lora_dir: where the LoRAs are; may be an axis.
        output_dir: a folder for each cell goes there, with sweep.png, sweep.html and sweep.jsonl.
        settings: of predict, for all cells.
        figures: of which heat maps are drawn; None = of all that are computed.
        networks: where weights for further figures are.
        resolution: the short side that pictures are compared at.

    Returns:
        The page.

    Raises:
        DiffstylerError: an axis has no values, or more than two are given; a figure is not computed.
    """
    grid = [_axis(name, values) for name, values in axes.items()]
    if len(grid) not in (1, 2):
        more = "; sweep a third one in a run of its own" if grid else ""
        raise DiffstylerError(f"axes: expected one or two, got {len(grid) or 'none'}{more}")
    networks = networks or Networks()
    _check_figures(figures, Battery.of(networks))
    triples = read_manifest(manifest)
    shared = {"lora_dir": str(lora_dir), "model.cache_dir": str(output_dir / "trajectories"), **(settings or {})}
    cells = list(_cells(grid, shared, output_dir))
    rows = [[_changed(triple, cell.settings) for triple in triples] for cell in cells]
    clis = [PREDICT.cli(_words(cell, manifest)) for cell in cells]  # what is wrong is told before anything is made
    backbone = None
    for cli, own in zip(clis, rows, strict=True):
        cli.datamodule = PredictData(triples=own)
        if backbone is not None and backbone.options == cli.model.backbone.options:
            cli.model.backbone = backbone  # loaded once
        cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False)
        backbone = cli.model.backbone
    measured = [measure(cell.folder, manifest, networks=networks, resolution=resolution) for cell in cells]
    names = _chosen(figures, measured)
    lines: list[dict] = []
    for cell, own in zip(cells, measured, strict=True):
        lines.append({"cell": dict(zip(axes, cell.names, strict=True)), **_means(own)})
    atomic_write(output_dir / "sweep.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    shape = len(grid[0]), len(grid[1]) if len(grid) == 2 else 1
    maps = {name: np.array([line.get(name, np.nan) for line in lines], float).reshape(shape) for name in names}
    atomic_write(output_dir / "sweep.png", _drawing(list(axes), grid, cells, triples, maps))
    return _page(output_dir, list(axes), grid, cells, triples, maps)


def _axis(name: str, values: object) -> Axis:
    """``[a, b]`` of a setting, or names with the settings of each."""
    if isinstance(values, list) and values:
        named: dict[str, Settings] = {}
        for value in values:
            if _told(value) in named:
                raise DiffstylerError(f"axes.{name}: two values are called {_told(value)}; leave one out")
            named[_told(value)] = {name: value}
        return named
    if isinstance(values, dict) and values and all(isinstance(own, dict) for own in values.values()):
        return {str(key): own for key, own in values.items()}
    expected = "a list of values, or settings by the name of each value"
    raise DiffstylerError(f"axes.{name}: expected {expected}, got {values!r}")


def _told(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cells(grid: Sequence[Axis], shared: Settings, output_dir: Path) -> Iterator[Cell]:
    taken: set[str] = set()
    for chosen in itertools.product(*(axis.items() for axis in grid)):
        names = tuple(name for name, _ in chosen)
        settings = dict(shared)
        for _, own in chosen:
            settings |= own
        for name in OWN_SETTINGS & settings.keys():
            raise DiffstylerError(f"axes: {name} is the sweep's own; each cell has a folder, and all have the manifest")
        folder = "_".join(re.sub(r"[^\w.-]+", "-", name) for name in names).strip(".")
        if not folder or folder.casefold() in taken or len(folder) > LONGEST_FOLDER:
            folder = f"{folder[:LONGEST_FOLDER]}-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]}"
        taken.add(folder.casefold())
        yield Cell(names, settings, output_dir / "cells" / folder)


def _words(cell: Cell, manifest: Path) -> list[str]:
    """Of a predict command."""
    words = ["--data.manifest", str(manifest), "--output_dir", str(cell.folder), "--trainer.logger", "false"]
    words += ["--trainer.enable_progress_bar", "false"]
    for name, value in cell.settings.items():
        if not name.startswith(ROW):
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return words


def _changed(triple: Triple, settings: Settings) -> Triple:
    """A row with what the cell says of all its regions."""
    changes = {name.removeprefix(ROW): value for name, value in settings.items() if name.startswith(ROW)}
    for name, value in changes.items():
        if name not in COLUMNS:
            raise DiffstylerError(f"'{ROW}{name}' is no column of a region{did_you_mean(name, COLUMNS)}")
        changes[name] = region_value(name, value, f"axes.{ROW}{name}")
    regions = tuple(replace(region, **changes) for region in triple.regions)
    for region in regions:
        if not region.start > region.stop:
            raise DiffstylerError(
                f"axes: expected a start above stop, got start {region.start:g} and stop {region.stop:g} in {triple.id}"
            )
    return replace(triple, regions=regions)


def _means(figures: Figures) -> dict[str, float]:
    own = {name: float(np.mean(values)) for name in figures.more_is_better if (values := figures.values(name))}
    return {**own, **figures.together}


def _check_figures(wanted: list[str] | None, battery: Battery) -> None:
    for name in wanted or ():
        if name not in battery.more_is_better:
            why = battery.missing.get(name) or "known are " + ", ".join(battery.more_is_better)
            raise DiffstylerError(f"figures: '{name}' is not computed: {why}")


def _chosen(wanted: list[str] | None, measured: Sequence[Figures]) -> list[str]:
    there = [name for name in measured[0].more_is_better if any(name in _means(figures) for figures in measured)]
    return wanted or there


def _drawing(
    axes: Sequence[str],
    grid: Sequence[Axis],
    cells: Sequence[Cell],
    triples: Sequence[Triple],
    maps: Mapping[str, np.ndarray],
) -> bytes:
    """The first row's pictures as a grid, and a heat map of each figure, as PNG; a single axis runs across."""
    down, across = ("", *axes) if len(axes) == 1 else axes
    rows, columns = [""] if len(grid) == 1 else list(grid[0]), list(grid[-1])
    heights = [2 * len(rows), min(2.6, 1 + 0.4 * len(rows)) * -(-len(maps) // MAPS_BESIDE)]
    figure = Figure(figsize=(max(9, 2 * len(columns) + 1), sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)  # type: ignore[misc]
    places = above.subplots(len(rows), len(columns), squeeze=False)
    for place, cell in zip(places.flat, cells, strict=True):
        place.imshow(load_image(cell.folder / f"{triples[0].id}.png"))
        place.set(xticks=[], yticks=[])
    for place, name in zip(places[:, 0], rows, strict=True):
        place.set_ylabel(textwrap.fill(name, 20))
    for place, name in zip(places[0], columns, strict=True):
        place.set_title(textwrap.fill(name, 28))
    above.supylabel(down)
    above.suptitle(across)
    places = below.subplots(-(-len(maps) // MAPS_BESIDE), MAPS_BESIDE, squeeze=False).flat
    for place in places[len(maps) :]:
        place.axis("off")
    for place, (name, values) in zip(places, maps.items(), strict=False):
        _heat_map(place, name, values.reshape(len(rows), len(columns)), rows, columns)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _heat_map(place: Axes, name: str, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    shown = place.imshow(values, aspect="auto", cmap="viridis")
    place.set_title(name.replace("_", " "))
    place.set_xticks(range(len(columns)), [textwrap.fill(column, 12) for column in columns], fontsize=8)
    place.set_yticks(range(len(rows)), [textwrap.fill(row, 12) for row in rows], fontsize=8)
    bright = np.asarray(shown.norm(values)) > 0.6  # the yellow end
    for (y, x), value in np.ndenumerate(values):
        color = "black" if bright[y, x] else "white"
        place.text(x, y, f"{value:.3g}", ha="center", va="center", color=color, fontsize=7)


def _page(
    output_dir: Path,
    axes: Sequence[str],
    grid: Sequence[Axis],
    cells: Sequence[Cell],
    triples: Sequence[Triple],
    maps: Mapping[str, np.ndarray],
) -> Path:
    """Every row's pictures as a grid, and the heat maps, as HTML beside the cells' folders."""
    columns = list(grid[1]) if len(grid) == 2 else [""]
    places = [cells[start : start + len(columns)] for start in range(0, len(cells), len(columns))]
    heat = {name: [[_shade(values, value) for value in row] for row in values] for name, values in maps.items()}
    template = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent))
    page = template.get_template("sweep.html.j2").render(
        title=output_dir.resolve().name,
        axes=axes,
        rows=list(grid[0]),
        columns=columns,
        cells=[[cell.folder.relative_to(output_dir).as_posix() for cell in row] for row in places],
        ids=[triple.id for triple in triples],
        maps=heat,
        side=SHOWN_SIDE,
    )
    path = output_dir / "sweep.html"
    atomic_write(path, page.encode(errors="replace"))
    return path


def _shade(values: np.ndarray, value: float) -> tuple[str, float]:
    """A value in words, and where it lies between the least and the greatest, 0 … 1."""
    low, high = np.nanmin(values), np.nanmax(values)
    return f"{value:.4g}", float((value - low) / (high - low)) if high > low else 0.5
