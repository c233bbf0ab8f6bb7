"""What a parser or a library says -> what the user reads: a few lines, with the nearest valid name."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import warnings
from collections.abc import Iterable
from typing import NoReturn

from diffstyler.chatter import LIBRARY_CHATTER, LOGGERS, redirect_ultralytics
from diffstyler.errors import did_you_mean, printable

#: whose classes settings may name, unless they are trusted: those of packages that do nothing else
PACKAGES = ["diffstyler", "lightning", "torch.optim", "bitsandbytes.optim", "transformers.optimization"]


def telling(name: str, parser: type) -> type:
    """The parser class of a command with errors of a few lines, in place of a page of usage."""

    class Parser(parser):  # type: ignore[misc]
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            options = [o.lstrip("-") for action in self._actions for o in action.option_strings if o.startswith("--")]
            text = f"diffstyler {name}: {printable(explain(message, options))}\nsee diffstyler {name} --help\n"
            raise SystemExit(self.exit(2, text))

    return Parser


def explain(message: str, options: Iterable[str]) -> str:
    """The last paragraph of jsonargparse's message, and the nearest valid name of an unknown key."""
    unknown = re.search(
        r"[Kk]ey '([\w.]+)' is not expected"
        r"|[Uu]nrecognized arguments: --([\w.]+)"
        r"|Option '([\w.]+)'"
        r"|(Group '[\w.]+' does not accept option '[\w.]+')",
        message,
    )
    if told := _unknown_class(message):
        return told
    if denied := re.search(r"Importing '([^']+)' is not allowed", message):
        return (
            f"'{denied[1]}' is not imported: settings name classes of {', '.join(PACKAGES)}; --trust_config on the "
            "command line allows any that is installed, which can run anything"
        )
    if not unknown:
        # a value that fits none of several types: the reasons come last, one a line
        return message.strip().split("\n\n")[-1].split("Errors:\n")[-1].strip()
    found = next(group for group in unknown.groups() if group)
    key = ".".join(re.findall(r"'([\w.]+)'", found)) or found
    return f"'{key}' is not a setting{did_you_mean(key, options)}"


def _unknown_class(message: str) -> str:
    """Of a setting that is an object: the known names, in place of what jsonargparse expected of a path; or nothing."""
    named = re.search(r"Expected a dot import path string: (\S+)|Given value: (\S+)\s*$", message)
    base = re.search(r"<class '(diffstyler[\w.]*)\.(\w+)'>", message)
    wrong = "dot import path" in message or "does not correspond to a subclass" in message
    wrong |= "import path denylist" in message
    if not (wrong and named and base):
        return ""
    key, word = re.search(r'key "([\w.]+)"', message), named[1] or named[2]
    names = sorted(_concrete(getattr(importlib.import_module(base[1]), base[2])))
    where = f"{key[1]}: " if key else ""
    return (
        f"{where}no class '{word}'{did_you_mean(word, names)}; known: {', '.join(names)}, or your own by its full "
        "path, with --trust_config"
    )


def _concrete(kind: type) -> set[str]:
    """The names of our classes below it that can be made."""
    own = {kind.__name__} if kind.__module__.startswith("diffstyler") and not inspect.isabstract(kind) else set()
    return own.union(*map(_concrete, kind.__subclasses__()))


def is_surprising(error: Exception) -> bool:
    """Errors of our own say what to do; others come from a library."""
    return not type(error).__module__.startswith("diffstyler") and type(error) is not ValueError


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def quiet_libraries() -> None:
    """For as long as the command runs."""
    for name, level in LOGGERS.items():
        if not name.startswith("lightning"):  # importing it sets the level
            logging.getLogger(name).setLevel(level)
    terminal = logging.StreamHandler()
    terminal.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(handlers=[terminal], level=logging.INFO)
    for message in LIBRARY_CHATTER:
        warnings.filterwarnings("ignore", message)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' too
    redirect_ultralytics()  # any class path of a command line may import it
