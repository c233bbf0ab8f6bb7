"""Whole fits and predicts on the tiny model, in this process and in others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import lightning
import torch
from PIL import Image
from tiny_models import loaded

from diffstyler.adapters import read_lora
from diffstyler.backbones import StableDiffusion
from diffstyler.cli.main import main as diffstyler
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
    if "backbone" not in settings:
        settings["backbone"] = _model(tiny_dir, precision, accelerator, settings)
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


def _model(folder: Path, precision: str, accelerator: str, settings: dict) -> StableDiffusion:
    """One for all runs that load it in the same way, for each leaves it as it was; the real command loads its own."""
    if (precision, accelerator) != ("32-true", "cpu") or settings.keys() & {"max_memory", "gradient_checkpointing"}:
        return StableDiffusion(str(folder))
    model = loaded(folder)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return model


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
    flags = {"accelerator": "cpu", "logger": False, **(flags or {})}
    backbone = settings.pop("backbone", None) or _model(tiny_dir, precision, flags["accelerator"], settings)
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
        **flags,
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


def two_ranks(command: list[str], folder: Path, *more: str) -> tuple[list[int], str, str]:
    """A run whose ranks a cluster has started -> their exit codes, and what the first one says on stdout and on stderr.

    They are forked, so that none imports torch anew.
    """
    told = [[folder.with_name(f"{folder.name}-rank{rank}.{name}") for name in ("out", "err")] for rank in range(2)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        cluster = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "COLUMNS": "200"}
    ranks = [
        _forked([*command, "--lora_dir", str(folder), *DDP, *more], {**cluster, "LOCAL_RANK": str(rank)}, *told[rank])
        for rank in range(2)
    ]
    codes = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
    return codes, told[0][0].read_text(), told[0][1].read_text()


def _forked(words: list[str], environment: dict[str, str], stdout: Path, stderr: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which do nothing here
        process = os.fork()
    if process == 0:
        try:
            signal.alarm(120)  # its end, where it waits for something that does not come
            os.environ.update(environment)
            for number, file in ((1, stdout), (2, stderr)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            code = diffstyler([*words])
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    return process


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
