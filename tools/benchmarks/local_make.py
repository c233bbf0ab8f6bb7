"""Render the contents and exact masks of the benchmark of localized style transfer, and write its manifest.

PYTHONPATH=tools/embedded_model python tools/benchmarks/local_make.py benchmarks
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from world import Scene, render_scene

SCENES = 6
SIDE = 256
FIRST_SEED = 10_000_000  # scenes from here on the embedded model was never trained on
#: a region's share of the picture
LEAST, MOST = 0.06, 0.7
STYLES = ("impasto", "mosaic")
#: photographs of the package (public domain or CC0), and boxes, whose masks need no finding
BOXES = {"astronaut": "box: 0.25,0.05,0.7,0.6", "cat": "box: 0.2,0.1,0.8,0.9", "coffee": "box: 0.12,0.03,0.81,0.97"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    for name in ("contents", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pictures = Path(__file__).parents[2] / "diffstyler/examples/pictures"
    shipped = Path(os.path.relpath(pictures, folder))
    styles = itertools.cycle(STYLES)
    rows = []
    for number, scene in enumerate(itertools.islice(usable(), SCENES)):
        name = f"scene{number}"
        levels = (scene.image * 255).round().astype(np.uint8)
        Image.fromarray(levels).save(folder / f"contents/{name}.jpg", quality=95, subsampling=0)
        for word in regions(scene)[:2]:
            Image.fromarray(scene.masks[word]).save(folder / f"masks/{name}-{word}.png", optimize=True)
            style = str(shipped / f"{next(styles)}.jpg")
            rows.append((f"{name}-{word}", f"contents/{name}.jpg", style, ", ".join(scene.words), f"the {word}"))
    for name, box in BOXES.items():
        rows.append((f"{name}-box", str(shipped / f"{name}.jpg"), str(shipped / f"{next(styles)}.jpg"), "", box))
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "content", "style", "content_prompt", "mask"))
        writer.writerows(rows)


def usable() -> Iterator[Scene]:
    """Scenes with at least two regions that are neither tiny nor nearly everything."""
    scenes = (render_scene(seed, SIDE, kind="landscape") for seed in itertools.count(FIRST_SEED))
    return (scene for scene in scenes if len(regions(scene)) >= 2)


def regions(scene: Scene) -> list[str]:
    """Its words by the size of their masks, the largest first; clouds, which lie in the sky, are none."""
    shares = {word: float(mask.mean()) for word, mask in scene.masks.items() if word != "clouds"}
    return sorted((word for word, share in shares.items() if LEAST <= share <= MOST), key=lambda word: -shares[word])


if __name__ == "__main__":
    main()
