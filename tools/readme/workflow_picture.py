"""Draw a ComfyUI workflow as its canvas shows it.

python tools/readme/workflow_picture.py integrations/comfyui/regions.json integrations/comfyui/regions.png
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

TITLES = {
    "DiffstylerLoadLora": "Load diffstyler LoRA",
    "DiffstylerMaskPrompt": "Mask prompt",
    "DiffstylerRegion": "Styled region",
    "DiffstylerStylizeRegions": "Stylize regions",
}
COLORS = {"IMAGE": "#64b5f6", "MASK": "#81c784", "DIFFSTYLER_LORA": "#ffb74d", "DIFFSTYLER_REGIONS": "#ba68c8"}
LINE = 22  # pixels of the canvas


def slot(node: dict, side: str, index: int) -> tuple[float, float]:
    """Where an input or output is on the canvas (x, y)."""
    (x, y), (width, _) = node["pos"], node["size"]
    return x + (width if side == "outputs" else 0), y + LINE * (index + 0.9)


def draw(workflow: dict) -> Figure:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values())
    bottom = max(node["pos"][1] + node["size"][1] for node in nodes.values())
    figure = Figure(figsize=(right / 110, (bottom + 2 * LINE) / 110), facecolor="#202020")
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set(xlim=(-20, right + 20), ylim=(bottom + 20, -40))
    axes.axis("off")
    for _, source, output, target, place, kind in workflow["links"]:
        (x0, y0), (x1, y1) = slot(nodes[source], "outputs", output), slot(nodes[target], "inputs", place)
        reach = max(40.0, (x1 - x0) / 2)
        points = [(x0, y0), (x0 + reach, y0), (x1 - reach, y1), (x1, y1)]
        curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
        axes.add_patch(PathPatch(curve, fill=False, edgecolor=COLORS.get(kind, "#aaaaaa"), linewidth=2, zorder=3))
    for node in nodes.values():
        (x, y), (width, height) = node["pos"], node["size"]
        box = FancyBboxPatch(
            (x, y - LINE), width, height + LINE, "round,pad=0,rounding_size=8", facecolor="#353535", edgecolor="#5a5a5a"
        )
        axes.add_patch(box)
        axes.text(x + 10, y - LINE / 2, str(TITLES.get(node["type"], node["type"])), color="white", va="center", size=9)
        for side, align, shift in (("inputs", "left", 10), ("outputs", "right", -10)):
            for index, own in enumerate(node.get(side) or []):
                at = slot(node, side, index)
                axes.plot(*at, "o", color=COLORS.get(own["type"], "#aaaaaa"), markersize=5)
                axes.text(at[0] + shift, at[1], own["name"], color="#cccccc", ha=align, va="center", size=7)
        rows = max(len(node.get("inputs") or []), len(node.get("outputs") or []))
        told = [
            textwrap.shorten(str(value), 40) for value in node.get("widgets_values") or [] if value not in ("", None)
        ]
        for index, value in enumerate(told):
            axes.text(x + 10, y + LINE * (rows + 0.9 + index), value, color="#9e9e9e", va="center", size=7)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path)
    parser.add_argument("picture", type=Path)
    chosen = parser.parse_args()
    mpl.use("Agg")
    draw(json.loads(chosen.workflow.read_text(encoding="utf-8"))).savefig(chosen.picture, dpi=110)


if __name__ == "__main__":
    main()
