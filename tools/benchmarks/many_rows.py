"""Thousands of rows over hundreds of LoRAs: how long the manifest takes to check and resolve, and what memory is kept.

    python tools/benchmarks/many_rows.py --rows 2000 --loras 200

On the embedded model at 64 px, one step, LoRAs of rank 2 on the queries, contents all different.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import psutil
import torch
from bench_fit import quiet
from peft import LoraConfig
from PIL import Image

from diffstyler.adapters import LoRAIdentity, LoRALibrary, LoRAPack, save_lora
from diffstyler.backbones import NETWORK, StableDiffusion
from diffstyler.images import load_image, picture_sha256
from diffstyler.predict.data import PredictData
from diffstyler.predict.stylizer import Stylizer


class Memory(lightning.Callback):
    """Prints what the process holds after some rows."""

    def __init__(self, after: set[int]) -> None:
        self.after = after

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx + 1 in self.after:
            resident = psutil.Process().memory_info().rss / 2**20
            device = torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
            print(f"after row {batch_idx + 1}: {resident:.0f} MiB resident, {device:.0f} MiB on the device", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--loras", type=int, default=200)
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), options.rows, options.loras)


def measure(folder: Path, rows: int, loras: int) -> None:
    generator = np.random.default_rng(0)
    backbone = StableDiffusion().load()
    pack = LoRAPack(backbone.network, LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]), 1)
    pack.scale.fill_(1)
    library = LoRALibrary(folder / "loras")
    for index in range(loras):
        picture(folder / f"style{index}.png", generator)
        pack.flat.normal_(0, 0.05)
        sha256 = picture_sha256(load_image(folder / f"style{index}.png"))
        identity = LoRAIdentity("style", f"style{index}", sha256, backbone.fingerprint(), {"prompt": f"style {index}"})

        def write(place: Path) -> None:
            save_lora(place, {NETWORK: pack.export(0)}, {NETWORK: pack.config})

        library.publish(identity, write)
    pack.detach()
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("content", "style", "content_prompt"))
        for index in range(rows):
            picture(folder / f"photo{index}.png", generator)
            writer.writerow((f"photo{index}.png", f"style{index % loras}.png", f"photograph {index}"))
    stylizer = Stylizer(
        backbone,
        lora_dir=folder / "loras",
        output_dir=folder / "out",
        num_inference_steps=1,
        guidance_scale=1.0,
        resolution=64,
    )
    data = PredictData(folder / "manifest.csv")
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[Memory({50, rows // 2, rows})],
    )
    stylizer.trainer = data.trainer = trainer
    trainer.datamodule = data  # type: ignore[attr-defined]
    began = time.perf_counter()
    data.setup("predict")
    stylizer.setup("predict")
    print(f"{rows} rows over {loras} LoRAs checked and resolved in {time.perf_counter() - began:.1f} s", flush=True)
    trainer.predict(stylizer, datamodule=data, return_predictions=False)


def picture(path: Path, generator: np.random.Generator) -> None:
    small = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((64, 64)).save(path)


if __name__ == "__main__":
    main()
