"""What a studio is asked for, in tests."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from pathlib import Path

import torch
from PIL import Image

from diffstyler.studio.folder import Folder


def new_picture(folder: Folder, name: str, seed: int) -> Path:
    """Uploaded, and without a LoRA."""
    small = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    path = folder.path / f"{name}.png"
    Image.fromarray(small.numpy()).resize((64, 64)).save(path)
    return folder.keep_picture(path)


def fit_request(picture: Path, steps: int) -> dict:
    return {"picture": str(picture), "name": picture.stem, "steps": steps, "prompt": ""}


def restyle_request(photograph: Path, *regions: dict) -> dict:
    return {
        "content": str(photograph),
        "content_prompt": "",
        "regions": [{"mask": "everything", "strength": 1.0, "guidance_scale": 2.0, **region} for region in regions],
        "seed": 3,
        "preset": "draft",
        "steps": 3,
        "settings": {"model.initial": "FromContent", "model.initial.noise": 0.2},
        "fit_steps": 2,
    }


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def status(url: str, data: bytes | None = None, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
