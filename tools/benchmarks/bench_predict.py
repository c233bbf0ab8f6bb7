"""How fast pictures are stylized: UNet rows and pictures a second, contents seen first and seen before.

python tools/benchmarks/bench_predict.py --model embedded --pictures 1 4 --styles 1 4 --steps 20
python tools/benchmarks/bench_predict.py --model sd15 --precision bf16-mixed --pictures 1 8 --styles 1 4
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import lightning
import torch
from bench_fit import noise_pictures, quiet, reset
from bench_models import build, forward_flops, peak_memory, wait
from peft import LoraConfig

from diffstyler.adapters import LoRAPack, save_lora
from diffstyler.backbones import Backbone
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.initial import FromContent
from diffstyler.fit.jobs import ATTENTION
from diffstyler.memory.forecast import matrix_rate
from diffstyler.predict.data import PredictData
from diffstyler.predict.stylizer import Stylizer
from diffstyler.types import StyleRegion, Triple

#: boxes of the regions, as fractions
QUARTERS = ("0.0,0.0,0.5,0.5", "0.5,0.0,1.0,0.5", "0.0,0.5,0.5,1.0", "0.5,0.5,1.0,1.0")


@dataclass(frozen=True)
class Measured:
    """Of one run of ``predict``: seconds of the pictures alone, UNet rows, and UNet calls."""

    seconds: float
    rows: int
    calls: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="embedded", help="embedded, a directory, or sd15, sd21, sdxl (random weights)"
    )
    parser.add_argument("--pictures", type=int, nargs="*", default=[1, 8], help="made together")
    parser.add_argument("--styles", type=int, nargs="*", default=[1, 4], choices=range(1, 5), help="of each picture")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="run full calls compiled, which is not in the times")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    options = parser.parse_args()
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if options.precision == "bf16-mixed" else torch.float32
    backbone = build(options.model).load(dtype).to(device)
    channels, side = int(backbone.network.config["in_channels"]), backbone.resolution // backbone.size_multiple  # type: ignore[index,call-overload]
    flops, rate = forward_flops(backbone, side, channels), matrix_rate(device, dtype)
    card = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    facts = [options.model, f"{backbone.resolution} px", f"{options.steps} steps", f"rank {options.rank}"]
    facts += [options.precision, card, f"torch {torch.__version__}", f"matrix product {rate / 1e12:.2f} TFLOP/s"]
    print(", ".join(facts), f"{flops / 1e12:.4f} TFLOP a row\n", sep=", ")
    columns = ("pictures", "styles", "content", "rows", "rows a call", "rows/s", "pictures/s", "peak memory")
    print(f"| {' | '.join((*columns, 'of the matrix rate'))} |\n|{'---|' * (len(columns) + 1)}")
    with tempfile.TemporaryDirectory() as folder:
        loras = [random_lora(backbone, Path(folder) / f"lora{i}", options.rank, seed=i) for i in range(4)]
        for count in options.pictures:
            with noise_pictures(Path(folder), 2 * count, backbone.resolution) as both:
                pictures, warm = both[:count], both[count:]
                for styles in options.styles:
                    triples = [triple(picture, loras[:styles]) for picture in pictures]
                    stylizer = Stylizer(
                        backbone,
                        output_dir=None,
                        num_inference_steps=options.steps,
                        initial=FromContent(),
                        compile=options.compile,
                    )
                    run(stylizer, [triple(picture, loras[:styles]) for picture in warm], options.precision, device)
                    for seen in ("seen first", "seen before"):
                        reset(device)
                        found = run(stylizer, triples, options.precision, device)
                        speed = found.rows / found.seconds
                        cells = [count, styles, seen, found.rows, f"{found.rows / found.calls:.1f}", f"{speed:.1f}"]
                        cells += [f"{count / found.seconds:.3f}", peak_memory(device), f"{speed * flops / rate:.0%}"]
                        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def triple(picture: Path, loras: Sequence[Path]) -> Triple:
    masks = ["everything"] if len(loras) == 1 else [f"box: {quarter}" for quarter in QUARTERS]
    regions = [StyleRegion(lora, mask=mask, prompt="a") for lora, mask in zip(loras, masks, strict=False)]
    return Triple(picture.stem, picture, tuple(regions))


def random_lora(backbone: Backbone, folder: Path, rank: int, seed: int) -> Path:
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ATTENTION))
    pack = LoRAPack(backbone.network, config, 1)
    pack.init_slot(0, seed=seed, scale=1.0)
    folder.mkdir()
    save_lora(folder, {"unet": pack.export(0)}, {"unet": config})
    pack.detach()
    return folder


def run(
    stylizer: Stylizer,
    triples: Sequence[Triple],
    precision: str,
    device: torch.device,
    together: int | Literal["auto"] = "auto",
) -> Measured:
    """Make the pictures through the Trainer, timed from the first one's start to the last one's end."""
    rows, seconds, run_rows = [], [], Denoiser._run

    def counted(self: Denoiser, own: list, *call: Any) -> torch.Tensor:
        rows.append(len(own))
        return run_rows(self, own, *call)

    class Clock(lightning.Callback):
        def on_predict_batch_start(self, *_: object) -> None:
            if not seconds:
                wait(device)
                seconds.append(-time.perf_counter())

        def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            stylizer.workers.close()
            wait(device)
            seconds[0] += time.perf_counter()

    trainer = lightning.Trainer(
        precision=precision,  # type: ignore[arg-type]
        accelerator="auto",
        devices=1,
        callbacks=[Clock()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    data = PredictData(triples=triples, batch_size=together)
    with mock.patch.object(Denoiser, "_run", counted):
        trainer.predict(stylizer, datamodule=data, return_predictions=False)
    return Measured(sum(seconds), sum(rows), len(rows))


if __name__ == "__main__":
    main()
