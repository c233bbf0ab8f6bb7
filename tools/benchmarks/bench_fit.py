"""How fast LoRAs are fitted: a peft loop, as the usual example scripts train, beside diffstyler with packs.

python tools/benchmarks/bench_fit.py --model embedded --packs 1 2 4 8
python tools/benchmarks/bench_fit.py --model sd15 --precision bf16-mixed --packs 1 2 4 8 16 32 --steps 20
python tools/benchmarks/bench_fit.py --overhead 64 --steps 20 --batch_size 4

The last one fits so many LoRAs from beginning to end and prints the share of the time outside training steps.
"""

from __future__ import annotations

import argparse
import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import lightning
import torch
from bench_models import build, forward_flops, peak_memory, wait
from peft import LoraConfig
from PIL import Image

from diffstyler.backbones import Backbone
from diffstyler.distributed import Team
from diffstyler.fit.bench import FitBatch, FitBench
from diffstyler.fit.crops import Crops
from diffstyler.fit.data import FitData
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.fit.jobs import ATTENTION
from diffstyler.memory.forecast import matrix_rate

LORA_STEPS = 200  # of one LoRA, for the column "LoRAs an hour"
BACKWARD = 1.13  # of the forward's operations: gradients of activations through a frozen base, and the adapters' own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="embedded", help="embedded, a directory, or sd15, sd21, sdxl (random weights)"
    )
    parser.add_argument("--packs", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--resolution", type=int, help="of the crops, in pixels; default: the model's")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=1, help="rows of each LoRA in a step")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--overhead", type=int, metavar="LORAS", help="fit so many; print where the time goes")
    parser.add_argument("--compile", action="store_true", help="also with model.compile")
    options = parser.parse_args()
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if options.precision == "bf16-mixed" else torch.float32
    backbone = build(options.model).load(dtype).to(device)
    options.resolution = options.resolution or backbone.resolution
    if options.overhead:
        overhead(backbone, options)
        return
    size, channels = options.resolution // backbone.size_multiple, backbone.network.config["in_channels"]  # type: ignore[index,assignment]
    flops = (1 + BACKWARD) * forward_flops(backbone, size, int(channels)) * options.batch_size
    rate = matrix_rate(device, dtype)
    card = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    facts = [options.model, f"{options.resolution} px", f"rank {options.rank}", options.precision, card]
    facts += [f"torch {torch.__version__}", f"matrix product {rate / 1e12:.2f} TFLOP/s"]
    print(", ".join(facts), f"{flops / 1e12:.3f} TFLOP a step\n", sep=", ")
    columns = ("", "ms a step", "adapter-steps/s", "LoRAs an hour", "peak memory", "of the matrix rate")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for compiled in (False, True) if options.compile else (False,):
        for width in options.packs:  # each beside a peft loop of its own: a machine's speed drifts
            baseline = line("peft, one at a time", 1, peft_loop(backbone, options, device), flops, rate, device)
            label = f"diffstyler, {width} at once{', compiled' if compiled else ''}"
            seconds = packed(backbone, width, options, device, compiled)
            speed = line(label, width, seconds, flops, rate, device)
            print(f"<!-- {speed / baseline:.2f} times the peft loop -->", flush=True)


def line(label: str, width: int, seconds: float, flops: float, rate: float, device: torch.device) -> float:
    """Print one row of the table; returns its adapter-steps a second."""
    speed = width / seconds
    share = speed * flops / rate
    cells = [label, f"{1000 * seconds:.0f}", f"{speed:.2f}", f"{3600 * speed / LORA_STEPS:.0f}", peak_memory(device)]
    print(f"| {' | '.join(cells)} | {share:.0%} |", flush=True)
    return speed


def peft_loop(backbone: Backbone, options: argparse.Namespace, device: torch.device) -> float:
    """Seconds a step (the mean) of one adapter added by diffusers and peft, with AdamW and autocast."""
    unet: Any = backbone.to(device).network  # a Trainer leaves its model on the CPU
    unet.add_adapter(LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=list(ATTENTION)), "bench")
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=1e-2)
    channels, size = unet.config["in_channels"], options.resolution // backbone.size_multiple
    clean, prompt = torch.randn(16, channels, size, size, device=device), backbone.encode_prompt(["a"])
    level = backbone.noise_levels(torch.arange(backbone.num_train_timesteps))
    levels = torch.stack([torch.as_tensor(level.signal), torch.as_tensor(level.sigma)], 1).float().to(device)
    unet.train()

    def step() -> None:
        rows = torch.randint(16, (options.batch_size,), device=device)
        timesteps = torch.randint(1000, (options.batch_size,), device=device)
        noise = torch.randn_like(clean[rows])
        noisy = levels[timesteps, 0] * clean[rows] + levels[timesteps, 1] * noise
        # as the example scripts do
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed")
        with mixed, mock.patch.object(Backbone, "own_precision", return_value=nullcontext()):
            prompts = type(prompt)(prompt.tokens.expand(options.batch_size, -1, -1))
            loss = torch.nn.functional.mse_loss(backbone.predict(noisy, timesteps, prompts).float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # as the example scripts do for their progress bar

    reset(device)
    clock = Clock(options.warmup, options.steps, device)
    for index in range(options.warmup + options.steps):
        clock.begin(index)
        step()
        clock.end(index)
    unet.eval()
    unet.unload_lora()
    unet.requires_grad_(False)
    return clock.mean


def packed(backbone: Backbone, width: int, options: argparse.Namespace, device: torch.device, compiled: bool) -> float:
    """Seconds a step (the mean) of diffstyler's own fit, through its Trainer, with ``width`` LoRAs at once."""
    clock = Clock(options.warmup, options.steps, device)
    more = {"compile": True} if compiled else {}
    reset(device)
    steps = options.warmup + options.steps + 1
    fit(LoRAFinetuner, backbone, width, width, steps, options, [clock], Crops(count=2), preview_steps=0, **more)
    print(f"<!-- first step after {clock.first:.0f} s -->", flush=True)
    return clock.mean


def fit(
    finetuner: type[LoRAFinetuner],
    backbone: Backbone,
    count: int,
    width: int,
    steps: int,
    options: argparse.Namespace,
    callbacks: list[lightning.Callback],
    crops: Crops,
    **settings: Any,
) -> LoRAFinetuner:
    """Fit ``count`` LoRAs, ``width`` at once, on pictures of noise."""
    with tempfile.TemporaryDirectory() as folder, noise_pictures(Path(folder), count, options.resolution) as pictures:
        module = finetuner(
            backbone,
            lora_dir=Path(folder) / "loras",
            rank=options.rank,
            batch_size=options.batch_size,
            checkpoint_every=10**6,
            **settings,
        )
        trainer = lightning.Trainer(
            max_steps=steps,
            precision=options.precision,
            accelerator="auto",
            devices=1,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        crops = replace(crops, crop_size=options.resolution)
        trainer.fit(module, datamodule=FitData(pictures=pictures, pack_size=width, crops=crops))
    return module


def overhead(backbone: Backbone, options: argparse.Namespace) -> None:
    """Print where the time goes when many short LoRAs are fitted as the command does, previews and all."""
    for width in options.packs:
        module = fit(TimedFinetuner, backbone, options.overhead, width, options.steps, options, [], Crops())
        assert isinstance(module, TimedFinetuner)
        total = module.ended - module.began
        seconds = {"elsewhere": total - sum(module.seconds.values()), **module.seconds}
        steps = seconds.pop("steps")
        parts = ", ".join(f"{name} {part / total:.1%}" for name, part in seconds.items())
        speed = options.overhead * options.steps / total
        print(
            f"{options.overhead} LoRAs of {options.steps} steps, {width} at once: {total:.1f} s from the first draw, ",
            end="",
        )
        print(f"{speed:.1f} adapter-steps/s, ", end="")
        print(f"outside training steps {1 - steps / total:.1%} ({parts})", flush=True)


class TimedFinetuner(LoRAFinetuner):
    """Adds up what it does with its time."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seconds = {"steps": 0.0, "opening": 0.0, "previews": 0.0, "writing": 0.0}
        self.began = self.ended = 0.0

    def on_train_start(self) -> None:
        self.began = time.perf_counter()

    def on_train_end(self) -> None:
        self.ended = time.perf_counter()

    def training_step(self, batch: FitBatch, batch_idx: int) -> None:
        with self._timed("steps"):
            super().training_step(batch, batch_idx)

    def _open_bench(self, team: Team) -> FitBench:
        bench = super()._open_bench(team)
        for method, name in {"_open": "opening", "_previews": "previews", "_publish": "writing"}.items():
            setattr(bench, method, self._timed(name)(getattr(bench, method)))
        return bench

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Time in ``name``, without what is timed inside it."""
        inside, began = sum(self.seconds.values()), time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began - (sum(self.seconds.values()) - inside)


class Clock(lightning.Callback):
    """Times the ``steps`` after ``warmup`` ones as one, so that they may overlap; the last step of a LoRA, which writes
    its file, is not among them."""

    def __init__(self, warmup: int, steps: int, device: torch.device) -> None:
        self.warmup, self.steps, self.device = warmup, steps, device
        self.began = self.seconds = self.first = 0.0
        self.made = time.perf_counter()

    @property
    def mean(self) -> float:
        return self.seconds / self.steps

    def begin(self, index: int) -> None:
        if index == self.warmup:
            wait(self.device)
            self.began = time.perf_counter()

    def end(self, index: int) -> None:
        if index == 0:
            wait(self.device)
            self.first = time.perf_counter() - self.made
        if index == self.warmup + self.steps - 1:
            wait(self.device)
            self.seconds = time.perf_counter() - self.began

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: int, batch_idx: int) -> None:
        self.begin(batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: int, batch_idx: int) -> None:
        self.end(batch_idx)


@contextmanager
def noise_pictures(folder: Path, count: int, side: int) -> Iterator[list[Path]]:
    paths = [folder / f"{index}.png" for index in range(count)]
    for path in paths:
        Image.effect_noise((side, side), 90).convert("RGB").save(path)
    yield paths


def reset(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()  # what a run before left in circles
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "diffusers", "xformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
