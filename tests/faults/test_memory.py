"""Of a large picture, which a small file may hold, few bytes a pixel are taken."""

import subprocess
import sys

import numpy as np
from PIL import Image

SIDE = 3000
#: bytes a pixel of the content, beside what the same run takes of a small one (32 … 40 were seen, 15 without a mask):
#: its own 3, the result's 12 in float32, 4 of the mask and 4 of what it covers, and what a step of it needs
BOUND = 45


def peak(words: list[str]) -> int:
    """Bytes that the command took at the most; a process of its own, for a peak is of the largest of all children."""
    program = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


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
        folders = ["--lora_dir", str(studio / "loras"), "--output_dir", str(studio / f"out-{content}")]
        manifest = ["--data.manifest", str(studio / f"{content}.csv")]
        taken[content] = peak([sys.executable, "-m", "diffstyler", "predict", *model, *here, *folders, *manifest])
    assert 0 < taken["large"] - taken["photo"] <= BOUND * SIDE**2
