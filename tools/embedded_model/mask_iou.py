"""How well mask prompts find things: intersection over union with the true masks of held-out rendered scenes.

python tools/embedded_model/mask_iou.py --scenes 60
python tools/embedded_model/mask_iou.py --photographs
python tools/embedded_model/mask_iou.py --sky photo.jpg …

The second one asks for every word of the rendered world in the package's three photographs: what is found, and, with
and without a floor, how well it covers the masks of photograph_masks.json, drawn by hand (a word's first polygon,
without its others). The third one tells pictures' noise errors, by which those unlike the training are known, beside
those of held-out scenes, and whether a sky is found.
"""

import argparse
import json
from pathlib import Path

import torch
from evaluate_base import HELD_OUT_SEED
from grounding import PLACED
from PIL import Image, ImageDraw
from torchvision.transforms.functional import to_tensor
from world import render_scene

from diffstyler.backbones import StableDiffusion
from diffstyler.examples import HERE
from diffstyler.images import load_image, to_image
from diffstyler.masking import AttentionMasker, NothingFoundError

WORDS = ("sky", "water", "house", "tree", "mountain", "hill")
SMALLEST = 0.02  # of the picture: below it a thing does not count as present


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--style", default="photo", help="the style that the scenes are painted in")
    parser.add_argument("--photographs", action="store_true")
    parser.add_argument("--sky", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--minimum", type=float)
    parser.add_argument("--smoothing", type=float)
    options = parser.parse_args()
    chosen = {name: getattr(options, name) for name in ("threshold", "minimum", "smoothing")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    masker, backbone = AttentionMasker(**chosen), StableDiffusion(options.model).load()
    masker.setup(backbone)
    if options.sky:
        return of_skies(masker, options.sky, options.scenes)
    if options.photographs:
        bold = AttentionMasker(**{**chosen, "minimum": 0.0})
        bold.setup(backbone)
        return of_photographs(masker, bold)
    overlaps, missed, invented, absent = measure(masker, options.scenes, options.style)
    print(f"{'word':10} {'IoU':>6} {'scenes':>7} {'not found':>10} {'found where absent':>19}")
    for word in WORDS:
        mean = sum(overlaps[word]) / max(1, len(overlaps[word]))
        wrongly = f"{invented[word]} of {absent[word]}"
        print(f"{word:10} {mean:6.3f} {len(overlaps[word]):7} {missed[word]:10} {wrongly:>19}")
    means = [sum(values) / len(values) for values in overlaps.values() if values]
    print(f"{'mean':10} {sum(means) / len(means):6.3f}")


def of_photographs(masker: AttentionMasker, bold: AttentionMasker) -> None:
    """``bold`` always finds something."""
    drawn = json.loads(Path(__file__).with_name("photograph_masks.json").read_text())
    print(f"{'picture':16} {'word':8} {'IoU':>6} {'without a floor':>16}")
    for name, words in drawn.items():
        picture = load_image(HERE / "pictures" / name)
        for word, polygons in words.items():
            true = painted(picture.size, polygons)
            found, anything = find(masker, picture, word), find(bold, picture, word)
            told = "not found" if found is None else f"{iou(found, true):.3f}"
            print(f"{name:16} {word:8} {told:>9} {0.0 if anything is None else iou(anything, true):>13.3f}")
        wrong = [word for word in PLACED if word not in words and find(masker, picture, word) is not None]
        print(f"{name:16} found of the {len(PLACED) - len(words)} other words: {', '.join(wrong) or 'none'}")


def of_skies(masker: AttentionMasker, files: list[Path], scenes: int) -> None:
    """Noise errors of scenes of all kinds, then of each file, with the share of it that is found as sky."""
    rendered = (render_scene(HELD_OUT_SEED + seed, 256).image for seed in range(300, 300 + scenes))
    errors = sorted(masker.noise_error(to_image(torch.from_numpy(i).permute(2, 0, 1) * 2 - 1)) for i in rendered)
    print(f"noise error of {scenes} scenes: {errors[0]:.3f} … {errors[-1]:.3f}, the third highest {errors[-3]:.3f}")
    for file in files:
        picture = load_image(file)
        found = find(masker, picture, "sky")
        told = "not found" if found is None else f"{found.float().mean():.2f}"
        print(f"{file.name:24} noise error {masker.noise_error(picture):.3f}  sky {told}")


def painted(size: tuple[int, int], polygons: list) -> torch.Tensor:
    """The first polygon without the others, (H, W) bool."""
    mask = Image.new("L", size)
    for polygon, value in zip(polygons, [255] + [0] * (len(polygons) - 1), strict=True):
        ImageDraw.Draw(mask).polygon([tuple(point) for point in polygon], fill=value)
    return to_tensor(mask)[0] > 0.5


def measure(masker: AttentionMasker, scenes: int, style: str) -> tuple[dict, dict, dict, dict]:
    """For each word: its IoUs where present, how often it was missed, found though absent, and was absent."""
    from painting import paint

    overlaps: dict[str, list[float]] = {word: [] for word in WORDS}
    missed, invented, absent = (dict.fromkeys(WORDS, 0) for _ in range(3))
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + scenes):
        scene = render_scene(seed, 256, kind="landscape")  # the world of the first edition
        painted = torch.from_numpy(paint(scene.image, style, seed)).permute(2, 0, 1) * 2 - 1
        picture = to_image(painted)
        for word in WORDS:
            true = scene.masks.get(word)
            if true is not None and true.mean() < SMALLEST:
                continue
            found = find(masker, picture, word)
            if true is None:
                absent[word] += 1
                invented[word] += found is not None
                continue
            missed[word] += found is None
            overlaps[word].append(0.0 if found is None else iou(found, torch.from_numpy(true)))
    return overlaps, missed, invented, absent


def find(masker: AttentionMasker, picture: Image.Image, word: str) -> torch.Tensor | None:
    try:
        return masker.find_text(picture, f"the {word}") > 0.5
    except NothingFoundError:
        return None


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


if __name__ == "__main__":
    main()
