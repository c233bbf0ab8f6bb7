"""Print how far each stylized picture of a folder has gone from its photograph towards its style.

python tools/readme/proof.py demo/pictures

For each picture: patch distance to the style picture over the photograph's own (at most 0.45 is the goal: the style's
color statistics alone, without a fitted LoRA, reach about 0.55) and SSIM of luminance with the photograph (at least
0.5). Pictures are compared at a short side of 256 pixels. Exit code 1 when the mean over all rows misses a goal.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from metrics import luminance_ssim, patch_distance

from diffstyler.images import fit_size, load_image, to_tensor

MAX_DISTANCE, MIN_SSIM = 0.45, 0.5


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
    style_path = Path(region["style"]["path"])
    if len(made["regions"]) > 1 or region["mask"] != "everything" or (styles and style_path.stem not in styles):
        return None
    content_image = load_image(Path(made["content"]["path"]))
    size = fit_size(content_image.size, 256, 8)
    content = to_tensor(content_image, size)
    result = to_tensor(load_image(sidecar.parent / made["result"]), size)
    style_image = load_image(style_path)
    style = to_tensor(style_image, fit_size(style_image.size, 256, 8))
    distance = patch_distance(result, style) / patch_distance(content, style)
    return made["id"], distance, luminance_ssim(result, content)


if __name__ == "__main__":
    sys.exit(main())
