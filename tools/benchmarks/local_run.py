"""Run the benchmark of localized style transfer: predict, measure, and compare the found masks with the exact ones.

python tools/benchmarks/local_run.py --lora_dir loras --output_dir local -- --config configs/predict.yaml

What follows ``--`` goes to diffstyler predict. The table is printed and written to ``local.md`` of the output folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from diffstyler.cli.main import main as diffstyler
from diffstyler.files import atomic_write, read_json
from diffstyler.images import load_image
from diffstyler.metrics.measure import bootstrap, measure

BENCHMARK = Path(__file__).parents[2] / "benchmarks"
FIGURES = ("ssim", "edge_agreement", "patch_distance_ratio", "palette_distance", "outside_largest", "seam")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=BENCHMARK / "manifest.csv")
    parser.add_argument("--lora_dir", type=Path, default=Path("loras"))
    parser.add_argument("--output_dir", type=Path, default=Path("local"))
    parser.add_argument("--resolution", type=int, default=256, help="short side that pictures are compared at")
    parser.add_argument("predict", nargs="*", help="options of diffstyler predict, after --")
    chosen = parser.parse_args(arguments)
    words = ["--data.manifest", str(chosen.manifest), "--lora_dir", str(chosen.lora_dir)]
    code = diffstyler(["predict", *chosen.predict, *words, "--output_dir", str(chosen.output_dir)])  # over a config's
    if code:  # what lies in the folder was made by other settings, or is not all
        return code
    figures = measure(chosen.output_dir, chosen.manifest, resolution=chosen.resolution)
    found = ious(chosen.output_dir, chosen.manifest.parent / "masks", figures.rows)
    rows: dict[str, list[float]] = {"mask_iou": [*found.values()]}
    rows |= {name: figures.values(name) for name in FIGURES}
    lines = ["| figure | mean | 95 % interval | pictures |", "|---|---|---|---|"]
    for name, values in rows.items():
        cells = "– | –"
        if values:
            low, high = bootstrap(values)
            cells = f"{np.mean(values):.3f} | {low:.3f} … {high:.3f}"
        lines.append(f"| {name} | {cells} | {len(values)} |")
    versions = [f"{name} {version(name)}" for name in ("diffstyler", "torch", "diffusers")]
    model = read_json(chosen.output_dir / f"{next(iter(figures.rows))}.json")["settings"]["model"]
    versions.append(f"model {model['name']} ({model['sha256'][:12]})")
    lines += ["", f"{', '.join(versions)}; predict {json.dumps(chosen.predict)}"]
    table = "\n".join(lines) + "\n"
    atomic_write(chosen.output_dir / "local.md", table.encode())
    print(table)
    return code


def ious(output_dir: Path, masks: Path, ids: Collection[str]) -> dict[str, float]:
    """Of each of these pictures with an exact mask: what was found (at least a half) and it, intersection over union.

    ``masks`` holds ``<id>.png``, white = inside.
    """
    found = {}
    for exact in sorted(masks.glob("*.png")):
        sidecar = output_dir / f"{exact.stem}.json"
        if exact.stem in ids:
            name = read_json(sidecar)["regions"][0]["mask_file"]
            a, b = (np.asarray(load_image(path).convert("L")) >= 128 for path in (output_dir / name, exact))
            found[exact.stem] = float((a & b).sum() / max(1, (a | b).sum()))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
