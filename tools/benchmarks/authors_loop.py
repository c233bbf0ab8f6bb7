"""What a picture takes by the default preset and by the authors' loop, side by side in one process on this device.

    python tools/benchmarks/authors_loop.py [--model embedded] [--steps 50]

The loop is the transcription that tests compare the preset `reference` with (tests/reference_transcription.py), before
it the inversion of the content over 999 levels and the reconstruction, one row a call: 2,298 rows for a picture of one
style. LoRAs are random; the photographs, cut to squares as the loop has, and the styles are the package's own. `bare`
is the time of as many UNet calls of as many rows each, right after the picture, without anything around them.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_fit import quiet
from bench_models import build, wait
from bench_predict import QUARTERS, random_lora, run
from PIL import ImageOps
from reference_transcription import transcribe
from torch.nn.functional import interpolate

from diffstyler.backbones import Backbone
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.images import load_image
from diffstyler.predict.stylizer import Stylizer
from diffstyler.types import StyleRegion, Triple

PICTURES = Path(__file__).parents[2] / "diffstyler" / "examples" / "pictures"
CONTENTS = ("astronaut", "cat", "coffee")
STYLES = ("impasto", "mosaic", "hatching", "watercolor")
LEVELS = 999


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded, a directory, sd15 or sd21 (random weights)")
    parser.add_argument("--steps", type=int, default=50, help="of the denoising")
    parser.add_argument("--levels", type=int, default=LEVELS, help="of the authors' inversion")
    chosen = parser.parse_args()
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = build(chosen.model).load(torch.float32).to(device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{chosen.model}, {backbone.resolution} px, {chosen.steps} steps, {where}, torch {torch.__version__}\n")
    with TemporaryDirectory() as folder:
        loras = [random_lora(backbone, Path(folder) / name, 16, seed) for seed, name in enumerate(STYLES)]
        square = (backbone.resolution, backbone.resolution)
        for name in CONTENTS:
            ImageOps.fit(load_image(PICTURES / f"{name}.jpg"), square).save(Path(folder) / f"{name}.png")

        def row(content: str, loras: Sequence[Path]) -> Triple:
            return triple(Path(folder) / f"{content}.png", loras)

        stylizer = Stylizer(backbone, output_dir=None, num_inference_steps=chosen.steps, compile=False)
        timed(stylizer, row("astronaut", loras[:1]), device)  # warm
        rows, seconds = authors_loop(backbone, chosen.steps, chosen.levels, device)
        columns = ("", "UNet rows", "seconds", "authors' loop over it", "over bare", "and the autoencoder")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print(f"| authors' loop, one style | {rows} | {seconds:.1f} | 1 | | |", flush=True)
        new = Stylizer(backbone, output_dir=None, num_inference_steps=chosen.steps, compile=False)
        one = {}
        for seen in ("content and style seen first", "both seen before"):
            one[seen] = report(new, f"default, {seen}", row("cat", loras[:1]), seconds, device)
        report(new, "default, content seen first", row("coffee", loras[:1]), seconds, device)
        four = report(new, "default, four styles, contents and styles seen before", row("cat", loras), None, device)
        four = report(new, "the same again", row("cat", loras), None, device)
        print(f"\nfour styles over one, seen before: {four / one['both seen before']:.2f}")


def triple(content: Path, loras: Sequence[Path]) -> Triple:
    """A picture with each LoRA in a place of its own."""
    masks = ["everything"] if len(loras) == 1 else [f"box: {quarter}" for quarter in QUARTERS]
    regions = [
        StyleRegion(lora, mask=mask, prompt="a", style_picture=PICTURES / f"{lora.name}.jpg")
        for lora, mask in zip(loras, masks, strict=False)
    ]
    return Triple(content.stem, content, tuple(regions))


def timed(stylizer: Stylizer, triple: Triple, device: torch.device) -> tuple[int, float, Counter[int], float]:
    """UNet rows, seconds, calls by how many rows they have, and seconds in the autoencoder."""
    sizes: Counter[int] = Counter()
    inner, backbone, coding = Denoiser._run, type(stylizer.backbone), 0.0

    def counted(self: Denoiser, own: list, *call: Any) -> torch.Tensor:
        sizes[len(own)] += 1
        return inner(self, own, *call)

    def clocked(code: Callable) -> Callable:
        def run_and_add(self: Backbone, given: torch.Tensor) -> torch.Tensor:
            nonlocal coding
            began = time.perf_counter()
            made = code(self, given)
            wait(device)
            coding += time.perf_counter() - began
            return made

        return run_and_add

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(Denoiser, "_run", counted))
        for name in ("encode_image", "decode_latents"):
            patches.enter_context(mock.patch.object(backbone, name, clocked(getattr(backbone, name))))
        found = run(stylizer, [triple], "32-true", device)
    return found.rows, found.seconds, sizes, coding


def report(stylizer: Stylizer, name: str, triple: Triple, loop: float | None, device: torch.device) -> float:
    """One line: also how much longer than the same calls of the UNet alone, and than those and the autoencoder's."""
    rows, seconds, sizes, coding = timed(stylizer, triple, device)
    bare = sum(forward_seconds(stylizer.backbone, size, device, count) for size, count in sizes.items())
    over = (f"{seconds / part - 1:+.0%}" for part in (bare, bare + coding))
    print(
        f"| {' | '.join((name, str(rows), f'{seconds:.1f}', f'{loop / seconds:.1f}' if loop else '', *over))} |",
        flush=True,
    )
    return seconds


@torch.inference_mode()
def forward_seconds(backbone: Backbone, rows: int, device: torch.device, calls: int) -> float:
    """Of so many bare calls of the UNet."""
    latents, texts = inputs(backbone, rows, device)
    wait(device)
    began = time.perf_counter()
    for _ in range(calls):
        backbone.network(latents, torch.tensor(500, device=device), encoder_hidden_states=texts)
    wait(device)
    return time.perf_counter() - began


def inputs(backbone: Backbone, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (rows, C, h, w) and texts (rows, L, D)."""
    channels, side = int(backbone.network.config["in_channels"]), backbone.resolution // backbone.size_multiple  # type: ignore[index,call-overload]
    tokens = backbone.encode_prompt([""]).tokens
    return torch.randn(rows, channels, side, side, device=device), tokens.expand(rows, -1, -1)


@torch.no_grad()
def authors_loop(backbone: Backbone, steps: int, levels: int, device: torch.device) -> tuple[int, float]:
    """UNet rows and seconds of a picture in one style, everywhere: inversion, reconstruction, denoising."""
    unet: Any = backbone.network
    latents, empty = inputs(backbone, 1, device)
    schedule = backbone.sampling_schedule(steps)
    side = backbone.resolution
    mask = interpolate(torch.full((1, 1, 8, 8), 255.0), (side, side))[0, 0].numpy().astype(np.uint8)
    wait(device)
    began = time.perf_counter()
    z = latents
    for level in [*range(levels), *reversed(range(levels))]:
        z = 0.999 * z + 0.001 * unet(z, torch.tensor(level, device=device), encoder_hidden_states=empty).sample
    timesteps = schedule.timesteps.tolist()
    transcribe(
        unet,
        [{}],
        [mask],
        [empty],
        empty,
        empty,
        dict.fromkeys(timesteps, z[0]),
        timesteps,
        [level.signal**2 for level in schedule.levels],
        z[0],
        10.5,
    )
    wait(device)
    return 2 * levels + 6 * len(timesteps), time.perf_counter() - began


if __name__ == "__main__":
    main()
