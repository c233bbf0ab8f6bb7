"""What fit and predict take of a card, by forecast: public models' shapes, settings that save memory, cards that do.

python tools/benchmarks/memory_table.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bench_models import SHAPES
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig

from diffstyler.backbones import Backbone, StableDiffusion, StableDiffusionXL
from diffstyler.backbones.quantization import Quantization
from diffstyler.backbones.source import ModelSource
from diffstyler.fit.jobs import ATTENTION
from diffstyler.memory.forecast import forecast_fit, forecast_predict
from diffstyler.memory.plan import GIB

CARDS = (8, 12, 24)
#: parameters of the text encoders, which the table knows no files of
TEXT_PARAMETERS = {"sd15": 123_060_480, "sd21": 340_387_840, "sdxl": 123_060_480 + 694_659_840}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    lora = LoraConfig(r=options.rank, target_modules=list(ATTENTION))
    columns = ("", "base", "fit 1", "fit 4", "fit 16", "fit 1, checkpointed", "predict", "predict, tiles, offload")
    print("GiB by forecast, bf16, batch 1, the model's own size; predict: 3 rows a call, one style")
    print(f"| {' | '.join((*columns, 'smallest card for fit / predict'))} |\n|{'---|' * (len(columns) + 1)}")
    for name in SHAPES:
        for kind in (None, "int8", "nf4"):
            with shaped(name, kind) as backbone:
                fit = forecast_fit(backbone, lambda side, _: (side, side), torch.bfloat16, lora)
            with shaped(name, kind) as backbone:
                predict = forecast_predict(backbone, lambda side, _: (side, side), torch.bfloat16, lora)
            fits = [fit.bytes(n, 1, checkpointing=False) for n in (1, 4, 16)] + [fit.bytes(1, 1, checkpointing=True)]
            predicts = [predict.bytes(3, 2), predict.bytes(3, 2, tiling=True, offload=True)]
            cards = " / ".join(smallest(min(these)) for these in (fits, predicts))
            cells = [name, kind or "bf16", *(f"{value / GIB:.1f}" for value in (*fits, *predicts)), cards]
            print(f"| {' | '.join(cells)} |", flush=True)


def smallest(need: float) -> str:
    return next((f"{card} GiB" for card in CARDS if need <= card * GIB), f"over {CARDS[-1]} GiB")


@contextmanager
def shaped(name: str, kind: Quantization | None) -> Iterator[Backbone]:
    """A model of public shape by configurations alone."""
    family = StableDiffusionXL if name == "sdxl" else StableDiffusion
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("meta"):
            unet, vae = UNet2DConditionModel(**SHAPES[name]), AutoencoderKL(**VAE)
        unet.save_config(str(Path(folder) / "unet"))
        vae.save_config(str(Path(folder) / "vae"))
        backbone = family(folder, quantization=kind)
        counts = [sum(p.numel() for p in part.parameters()) for part in (unet, vae)]
        backbone.source = Counted(folder, parameters=sum(counts) + TEXT_PARAMETERS[name])  # type: ignore[assignment]
        yield backbone


class Counted(ModelSource):
    """A model's directory without weights, whose size is known."""

    def __init__(self, model: str, *, parameters: int) -> None:
        super().__init__(model)
        object.__setattr__(self, "parameters", parameters)

    def parameter_count(self) -> int:
        return self.parameters  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
