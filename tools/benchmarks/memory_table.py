"""What fit and predict take of a card, by forecast: public models' shapes, settings that save memory, cards that do.

python tools/benchmarks/memory_table.py
python tools/benchmarks/memory_table.py --measure --models sd15 sd21 sdxl

The second one makes models of these shapes with random weights on a CUDA device, fits and predicts with them, and puts
what the allocator held at the peak beside the forecast.
"""

# diffusers annotates its pipelines' parts as it likes
# pyright: reportArgumentType=false

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bench_fit import fit as fit_loras
from bench_fit import noise_pictures, quiet, reset
from bench_models import SHAPES
from bench_predict import random_lora, triple
from bench_predict import run as predict_pictures
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffstyler.backbones import Backbone, StableDiffusion, StableDiffusionXL
from diffstyler.backbones.quantization import Quantization
from diffstyler.backbones.source import EMBEDDED, ModelSource
from diffstyler.diffusion.initial import FromContent
from diffstyler.fit.crops import Crops
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.fit.jobs import ATTENTION
from diffstyler.memory.forecast import forecast_fit, forecast_predict
from diffstyler.memory.plan import GIB
from diffstyler.predict.stylizer import Stylizer

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
    parser.add_argument("--measure", action="store_true", help="on a CUDA device")
    parser.add_argument("--models", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--packs", type=int, nargs="*", default=[1, 4, 16], help="LoRAs at once that are measured")
    options = parser.parse_args()
    if options.measure:
        measure(options)
        return
    lora = LoraConfig(r=options.rank, target_modules=list(ATTENTION))
    columns = ("", "base", "fit 1", "fit 4", "fit 16", "fit 1, checkpointed", "predict", "predict, tiles, offload")
    print("GiB by forecast, bf16, batch 1, the model's own size; predict: 3 rows a call, one style")
    print(f"| {' | '.join((*columns, 'smallest card for fit / predict'))} |\n|{'---|' * (len(columns) + 1)}")
    for name in options.models:
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


def measure(options: argparse.Namespace) -> None:
    """Print forecast and measured peaks of fit and predict."""
    quiet()
    lora = LoraConfig(r=options.rank, target_modules=list(ATTENTION))
    card, device = torch.cuda.get_device_name(), torch.device("cuda")
    print(f"GiB, bf16, rank {options.rank}, batch 1, the model's own size, {card}, torch {torch.__version__}")
    print("| | forecast | held at the peak | forecast / held | in use at the peak |\n|---|---|---|---|---|")
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder, random_model(name, Path(folder)) as backbone:

            def own(side: int, _: int) -> tuple[int, int]:
                return side, side

            fit = forecast_fit(backbone, own, torch.bfloat16, lora)
            predict = forecast_predict(backbone, own, torch.bfloat16, lora)
            base = torch.cuda.memory_reserved()
            backbone.load(torch.bfloat16)
            for pack in options.packs:
                reset(device)
                run = argparse.Namespace(
                    rank=options.rank, batch_size=1, precision="bf16-mixed", resolution=backbone.resolution
                )
                fit_loras(LoRAFinetuner, backbone, pack, pack, 3, run, [], Crops(count=2), preview_steps=0)
                told(f"{name}, fit {pack}", fit.bytes(pack, 1, checkpointing=False), base)
            backbone.to(device)
            loras = [random_lora(backbone, Path(folder) / f"lora{i}", options.rank, seed=i) for i in range(1)]
            with noise_pictures(Path(folder), 1, backbone.resolution) as pictures:
                stylizer = Stylizer(backbone, output_dir=None, num_inference_steps=3, initial=FromContent())
                reset(device)
                predict_pictures(stylizer, [triple(picture, loras) for picture in pictures], "bf16-mixed", device)
                told(f"{name}, predict", predict.bytes(3, 1), base)


def told(what: str, forecast: float, base: int) -> None:
    held, used = torch.cuda.max_memory_reserved() - base, torch.cuda.max_memory_allocated()
    cells = [what, f"{forecast / GIB:.1f}", f"{held / GIB:.1f}", f"{forecast / held:.2f}", f"{used / GIB:.1f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


@contextmanager
def random_model(name: str, folder: Path) -> Iterator[Backbone]:
    """A whole model of public shape with random weights, read from a diffusers folder as any other."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")

    def text_encoder(kind: type, width: int, layers: int) -> torch.nn.Module:
        config = CLIPTextConfig(
            vocab_size=49_408,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            projection_dim=width,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return kind(config)

    with torch.device("cuda"):
        parts = {
            "unet": UNet2DConditionModel(**SHAPES[name]).to(torch.bfloat16),
            "vae": AutoencoderKL(**VAE, scaling_factor=0.13025 if name == "sdxl" else 0.18215).to(torch.bfloat16),
            "text_encoder": text_encoder(CLIPTextModel, *((1024, 23) if name == "sd21" else (768, 12))),
        }
        if name == "sdxl":
            parts["text_encoder_2"] = text_encoder(CLIPTextModelWithProjection, 1280, 32)
    parts = {part: model.to(torch.bfloat16) for part, model in parts.items()}
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    if name == "sdxl":
        pipeline = StableDiffusionXLPipeline(
            **parts, tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=scheduler, add_watermarker=False
        )
    else:
        extras = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler, **extras)
    pipeline.save_pretrained(folder / "model")
    del pipeline, parts
    torch.cuda.empty_cache()
    family = StableDiffusionXL if name == "sdxl" else StableDiffusion
    yield family(str(folder / "model"))
    gc.collect()
    torch.cuda.empty_cache()


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
