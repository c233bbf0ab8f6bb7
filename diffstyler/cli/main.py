"""The `diffstyler` command: a command line in, an exit code out. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from diffstyler.cli import commands
from diffstyler.cli.messages import explain, is_surprising, quiet_libraries
from diffstyler.cli.signals import exit_code, noted, told_of
from diffstyler.errors import did_you_mean, printable

COMMANDS = {
    "fit": (commands.fit, "fit a LoRA for every style (or content) picture of a manifest"),
    "predict": (commands.predict, "make the pictures of a manifest"),
    "masks": (commands.masks, "show what the mask prompts of a manifest, or of one picture, find"),
    "test": (commands.test, "measure the pictures of a folder: content, style, what happened outside the masks"),
    "sweep": (
        commands.sweep,
        "make the pictures of a manifest under each setting of a grid, with heat maps",
    ),
    "check": (commands.check, "say whether a fit or predict would run here, and what it would take; loads no weights"),
    "inspect": (commands.inspect, "tell what a LoRA file is: family, rank, targets, prompt, norms, NaN"),
    "export": (commands.export, "write a LoRA for other tools: kohya's form, for A1111 and ComfyUI"),
    "push": (commands.push, "upload a LoRA to the Hugging Face Hub; asks first"),
    "studio": (commands.studio, "fit and restyle in a browser (extra: studio)"),
    "demo": (commands.demo, "run them on the example pictures and the embedded model"),
    "fetch-masker": (commands.fetch_masker, "download the weights of a masker, or a hub id, for words on photographs"),
    "fetch-fastsam": (commands.fetch_fastsam, "download FastSAM's weights (AGPL-3.0), for FastSAMMasker"),
}

LINES = "\n".join(f"  {name:14} {text}" for name, (_, text) in COMMANDS.items())
HELP = f"""\
usage: diffstyler COMMAND [options]

Localized image style transfer with diffusion models.

commands:
{LINES}

`diffstyler COMMAND --help` lists a command's options, `--print_config` its settings as YAML.

  diffstyler demo --output_dir demo
  diffstyler fit --config configs/style.yaml --data.manifest my.csv --lora_dir loras
  diffstyler predict --config configs/predict.yaml --data.manifest my.csv --lora_dir loras --output_dir out
  diffstyler masks --content photo.jpg --mask "the house" --output_dir masks
"""


#: what a disk says that takes no more
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line -> exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted, 143
    terminated."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(HELP, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    if command == "--version":
        print(f"diffstyler {version('diffstyler')}")
        return 0
    if command not in COMMANDS:
        return _fail(f"no command '{command}'{did_you_mean(command, COMMANDS)}; see diffstyler --help", 2)
    quiet_libraries()
    run, _ = COMMANDS[command]
    with noted(command) as signals:
        try:
            run(rest)
        except BaseException as error:
            if os.environ.get("DIFFSTYLER_DEBUG"):
                raise
            if signals:  # libraries make other errors of them, and Lightning another exit code
                return _fail(told_of(command, signals[0]), exit_code(signals[0]))
            if not isinstance(error, (ValueError, RuntimeError, OSError)):
                raise
            text = explain(str(error), [])
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                return _fail(f"{error.filename}: {error.strerror}; what was done is kept: make room, and run again", 1)
            return _fail(f"{text}\n(DIFFSTYLER_DEBUG=1 shows where)" if is_surprising(error) else text, 1)
    return 0


def _fail(text: str, code: int) -> int:
    print(f"diffstyler: {printable(text)}", file=sys.stderr)
    return code
