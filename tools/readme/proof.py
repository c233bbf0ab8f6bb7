"""Print how far each stylized picture of a folder has gone from its photograph towards its style.

python tools/readme/proof.py demo/pictures

For each picture: patch distance to the style picture over the photograph's own (at most 0.22 is the goal: the style's
color statistics alone, without a fitted LoRA, reach 0.45) and SSIM of luminance with the photograph (at least
0.5). Pictures are compared at a short side of 256 pixels. Exit code 1 when the mean over all rows misses a goal.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from diffstyler.metrics.content import SSIM
from diffstyler.metrics.samples import read_samples
from diffstyler.metrics.style import PatchDistance

MAX_DISTANCE, MIN_SSIM = 0.22, 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an output_dir of diffstyler predict")
    parser.add_argument("--styles", nargs="*", help="only pictures in these styles (file names without suffix)")
    arguments = parser.parse_args()
    rows = [row for file in sorted(arguments.folder.glob("*.json")) if (row := measure(file, arguments.styles))]
    if not rows:
        sys.exit(f"{arguments.folder}: no whole-picture results in these styles")
    print(f"| {'picture':28} | patch distance / photograph's | SSIM  |\n|{'-' * 30}|{'-' * 31}|{'-' * 7}|")
    mean_distance = sum(distance for _, distance, _ in rows) / len(rows)
    mean_ssim = sum(ssim for _, _, ssim in rows) / len(rows)
    for name, distance, ssim in (*rows, ("mean", mean_distance, mean_ssim)):
        print(f"| {name:28} | {distance:29.3f} | {ssim:.3f} |")
    return int(mean_distance > MAX_DISTANCE or mean_ssim < MIN_SSIM)


def measure(sidecar: Path, styles: list[str] | None) -> tuple[str, float, float] | None:
    """(id, relative patch distance, SSIM), None for a picture with regions or in another style."""
    made = json.loads(sidecar.read_text())
    region = made["regions"][0]
    style = Path(region["style"]["path"]).stem
    if len(made["regions"]) > 1 or region["mask"] != "everything" or (styles and style not in styles):
        return None
    for sample in read_samples([sidecar], 256):
        return sample.id, PatchDistance()(sample)["patch_distance_ratio"], SSIM()(sample)["ssim"]
    return None


if __name__ == "__main__":
    sys.exit(main())
