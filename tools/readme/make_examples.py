"""Make the example pictures that ship with the package: photographs that may be shared, and styles that we render.

python tools/readme/make_examples.py diffstyler/examples/pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from painting import paint
from PIL import Image
from skimage import data
from world import render_scene

#: NASA (public domain), Rachel Michetti (CC0), Stefan van der Walt (CC0)
PHOTOGRAPHS = {"astronaut": data.astronaut, "coffee": data.coffee, "cat": data.chelsea}
#: a rendered photograph whose things the embedded model can name
SCENES = {"cottage": 9500182}
#: style and the seed of the scene that it paints; mosaic and impasto are not in the embedded model's training
STYLES = {"mosaic": 5, "impasto": 4, "pointillism": 0, "watercolor": 4, "hatching": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=384, help="side of the style pictures, in pixels")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, photograph in PHOTOGRAPHS.items():
        image = Image.fromarray(photograph())
        image.thumbnail((512, 512), Image.Resampling.LANCZOS)
        image.save(folder / f"{name}.jpg", quality=92)
    for name, seed in SCENES.items():
        Image.fromarray((render_scene(seed, 256, kind="landscape").image * 255 + 0.5).astype(np.uint8)).save(
            folder / f"{name}.jpg", quality=92
        )
    for style, seed in STYLES.items():
        painted = paint(render_scene(seed, arguments.size, kind="landscape").image, style, seed)
        Image.fromarray((painted * 255 + 0.5).astype(np.uint8)).save(folder / f"{style}.jpg", quality=92)


if __name__ == "__main__":
    main()
