"""Of a large picture, which a small file may hold, few bytes a pixel are taken."""

import ctypes
import os
import sys
from pathlib import Path

import crashes
import numpy as np
from PIL import Image

SIDE = 3000
#: bytes a pixel of the content, beside what the same run takes of a small one (50 were seen, 32 without a mask): its
#: own 3, the result's 12 in float32, 4 of the mask and 4 of what it covers, and what a step of it needs
BOUND = 55


def peak(words: list[str], output: Path) -> int:
    """Bytes that the command took at the most, with those of this process, which it is forked from."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what this one has freed would hide what that one takes
    _, status, used = os.wait4(crashes.start(words, output), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_a_large_picture_and_its_mask_take_few_bytes_a_pixel(studio, tiny_dir):
    Image.new("RGB", (SIDE, SIDE), (200, 60, 30)).save(studio / "large.png")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[SIDE // 4 : SIDE // 2, SIDE // 4 : SIDE // 2] = 255
    Image.fromarray(mask).save(studio / "mask.png")
    taken = {}
    for content, prompt in {"photo": "", "large": "file: mask.png"}.items():
        (studio / f"{content}.csv").write_text(f"content,style,mask\n{content}.png,gold.png,{prompt}\n")
        model = ["--model.backbone", "StableDiffusion", "--model.backbone.model", str(tiny_dir)]
        here = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--model.num_inference_steps", "1"]
        data = ["--lora_dir", str(studio / "loras"), "--data.manifest", str(studio / f"{content}.csv")]
        taken[content] = peak(["predict", *model, *here, *data], studio / f"out-{content}")
    assert 0 < taken["large"] - taken["photo"] <= BOUND * SIDE**2
