"""Kill a run at random moments, again and again; what it leaves in the end must be what an undisturbed run leaves.

    python tools/reliability/crashes.py --kills 30 fit --data.manifest rows.csv --trainer.max_steps 200 …
    python tools/reliability/crashes.py --kills 30 predict --data.manifest rows.csv --lora_dir loras …

The command is diffstyler's own, without its output folder. Processes are forked, so that none imports torch anew.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from diffstyler.adapters import read_lora
from diffstyler.cli import lightning_cli  # noqa: F401  imported once, before the forks
from diffstyler.cli.main import main as diffstyler
from diffstyler.files import file_sha256, read_json

OUTPUT = {"fit": "--lora_dir", "predict": "--output_dir"}
#: what is the same in every run; sidecars tell seconds, pages and curves their time
SAME = {"fit": ("*/pytorch_lora_weights.safetensors", "*/diffstyler.json"), "predict": ("*.png", "masks/*.png")}


def survive(command: Sequence[str], folder: Path, kills: int, seed: int = 0) -> int:
    """Kill the command ``kills`` times in ``folder``, let it end -> how often it had ended before it was killed.

    Args:
        command: ``fit`` or ``predict`` and its settings, without the output folder.
        folder: where runs write; made here.
        kills: with SIGKILL, at moments drawn evenly from the time of an undisturbed run.
        seed: of these moments.

    Raises:
        AssertionError: a file under its final name was not whole, something was left over, or the files differ.
    """
    moments, kind = random.Random(seed), command[0]
    began = time.monotonic()
    assert ended(start(command, folder / "undisturbed")) == 0, "the undisturbed run failed"
    seconds = time.monotonic() - began
    expected = files(kind, folder / "undisturbed")
    assert expected, "the undisturbed run left nothing"
    disturbed, early = folder / "disturbed", 0
    for _ in range(kills):
        process = start(command, disturbed)
        time.sleep(moments.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        code = ended(process)
        assert code in (0, -signal.SIGKILL), f"a run after a kill ended with {code}"
        check_whole(kind, disturbed)
        if code == 0:
            early += 1
            assert files(kind, disturbed) == expected, "files differ"
            shutil.rmtree(disturbed)
    assert ended(start(command, disturbed)) == 0, "the last run failed"
    assert files(kind, disturbed) == expected, "files differ"
    left = list(disturbed.rglob(".*.tmp"))
    left += [path for path in disturbed.glob(".unfinished/*") if path.suffix not in {".lock"}]
    assert not left, f"left over: {left}"
    return early


def start(command: Sequence[str], output: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which do nothing here
        process = os.fork()
    if process == 0:
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            code = diffstyler([*command, OUTPUT[command[0]], str(output)])
        except BaseException:
            code = 1
        os._exit(code)
    return process


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def files(kind: str, folder: Path) -> dict[str, str]:
    """By their place in it, the SHA-256 of each file that is the same in every run."""
    paths = [path for pattern in SAME[kind] for path in folder.glob(pattern)]
    return {str(path.relative_to(folder)): file_sha256(path) for path in paths}


def check_whole(kind: str, folder: Path) -> None:
    """Whether whatever has its final name is whole."""
    for path in folder.glob("*.png" if kind == "predict" else "*-*/"):
        if kind == "fit":
            read_lora(path)
            read_json(path / "diffstyler.json")
            continue
        with Image.open(path) as image:
            image.load()
    for path in folder.glob("*.json"):
        told = read_json(path)
        assert file_sha256(folder / told["result"]) == told["result_sha256"], f"{path} is of another picture"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        early = survive(chosen.command, Path(folder), chosen.kills, chosen.seed)
    print(f"{chosen.command[0]}: {chosen.kills - early} kills survived ({early} runs had ended before), equal files")


if __name__ == "__main__":
    main()
