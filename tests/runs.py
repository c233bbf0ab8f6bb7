"""Whole fits and predicts on the tiny model, in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import lightning
import torch
from PIL import Image

from diffstyler.adapters import read_lora
from diffstyler.backbones import StableDiffusion
from diffstyler.diffusion.denoiser import Denoiser
from diffstyler.diffusion.sampling import Canvas, Region, denoise
from diffstyler.fit.crops import Crops
from diffstyler.fit.data import FitData
from diffstyler.fit.finetuner import LoRAFinetuner
from diffstyler.images import load_image
from diffstyler.predict.data import PredictData
from diffstyler.predict.stylizer import Stylizer
from diffstyler.types import Schedule, StyleRegion, Trajectory, Triple


def row(studio: Path, content: str = "photo", style: str = "gold", **changes) -> Triple:
    region = {k: changes.pop(k) for k in ("strength", "prompt", "guidance_scale", "negative_prompt") if k in changes}
    name = changes.pop("id", f"{content}-{style}")
    return Triple(name, studio / f"{content}.png", (StyleRegion(studio / f"{style}.png", **region),), **changes)


def stylize(
    studio: Path, tiny_dir: Path, *rows: Triple, out: str = "out", batch_size: int = 1, **settings
) -> list[Image.Image]:
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, **settings}
    on_error = settings.pop("on_error", "stop")
    precision, accelerator = settings.pop("precision", "32-true"), settings.pop("accelerator", "cpu")
    settings.setdefault("backbone", StableDiffusion(str(tiny_dir)))
    module = Stylizer(lora_dir=studio / "loras", output_dir=studio / out, **settings)
    trainer = lightning.Trainer(
        accelerator=accelerator,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    data = PredictData(triples=rows, batch_size=batch_size, on_error=on_error)
    trainer.predict(module, datamodule=data, return_predictions=False)
    return [load_image(studio / out / f"{r.id}.png") for r in rows]


def pixels(image: Image.Image) -> bytes:
    return image.tobytes()


def finetune(
    tiny_dir,
    lora_dir,
    pictures,
    *,
    jobs=None,
    steps=3,
    pack_size=1,
    precision="32-true",
    callbacks=(),
    seed=0,
    prompt="painting of <sss>",
    deterministic=False,
    together=None,
    flags=None,
    **settings,
):
    settings = {"rank": 4, "preview_steps": 0, "batch_size": 2, **settings}
    settings.setdefault("optimizer", lambda params: torch.optim.AdamW(params, lr=1e-3))
    backbone = settings.pop("backbone", None) or StableDiffusion(str(tiny_dir))
    module = LoRAFinetuner(backbone, lora_dir=lora_dir, **settings)
    data = FitData(
        jobs=jobs,
        pictures=pictures,
        pack_size=pack_size,
        crops=Crops(resolution=64, crop_size=64, count=3),
        seed=seed,
        prompt=prompt,
        together=together,
    )
    trainer = lightning.Trainer(
        max_steps=steps,
        precision=precision,
        deterministic=deterministic,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=list(callbacks),
        **{"accelerator": "cpu", "logger": False, **(flags or {})},
    )
    try:
        trainer.fit(module, datamodule=data)
    finally:
        torch.use_deterministic_algorithms(False)
    return {entry.identity.name: matrices(entry.folder) for entry in module.finished}


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    """A and B of every module of a LoRA."""
    parts = read_lora(folder).parts
    named = {f"{part} {name}": module for part, modules in parts.items() for name, module in modules.items()}
    return {f"{name} {side}": getattr(module, side) for name, module in named.items() for side in ("down", "up")}


class KilledError(Exception):
    pass


class KillAt(lightning.Callback):
    """Stops the program after a step, as a lost machine would: nothing is saved on the way out."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == self.step:
            pl_module.bench.slots = [None] * len(pl_module.bench.slots)
            raise KilledError


DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def start(command: list[str], folder: Path, *more: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen:
    arguments = [*command, "--lora_dir", str(folder), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "diffstyler", *arguments],
        stderr=subprocess.PIPE,
        stdout=stdout,
        text=True,
        env=environment,
        start_new_session=True,
    )


def wait_for(folder: Path, pattern: str) -> None:
    for _ in range(15000):  # other tests may take the processors
        if any(folder.glob(pattern)):
            return
        time.sleep(0.02)
    raise TimeoutError(pattern)


@torch.no_grad()
def generate(denoiser: Denoiser, latents: torch.Tensor, schedule: Schedule, region: Region) -> torch.Tensor:
    """Text to image by plain DDIM under one adapter: noise (C, h, w) -> x_0 (C, h, w)."""
    nowhere = Trajectory(schedule.timesteps, latents.expand(len(schedule) + 1, *latents.shape))
    return denoise(denoiser, [Canvas(latents, nowhere, (region,))], schedule, region.negative_prompt)[0]
