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
    if not unknown and (path := re.search(r"Expected a dot import path string: (\S+)", message)):
        key = re.search(r'key "([\w.]+)"', message)
        return f"{key[1] + ': ' if key else ''}no class '{path[1]}'; name it by its path, such as torch.optim.AdamW"
    if not unknown:
        return _reasons(message)
    found = next(group for group in unknown.groups() if group)
    key = ".".join(re.findall(r"'([\w.]+)'", found)) or found
    return f"'{key}' is not a setting{did_you_mean(key, options)}"


EXPECTED = r"Expected a (?:<class '(?:\w+\.)*)?([\w.\[\]', -]+?)(?:'>)?(?:\. Got value.*)?$"
#: types as jsonargparse writes them -> as a user of YAML does
KINDS = {"NoneType": "null", "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}


def _reasons(message: str) -> str:
    """The setting, what it may be and what it was given; or, of an object that cannot be made, why."""
    text = message.strip().split("\n\n")[-1]
    key = re.search(r'key "([\w.]+)"', message)
    given = re.search(r"(?:Given value|Got value): (.*)", text, re.DOTALL)
    told = re.split(r"^\s*Given value", text.split("Errors:\n")[-1], flags=re.MULTILINE)[0]
    reasons = [reason.strip() for reason in re.split(r"^\s*- ", told, flags=re.MULTILINE) if reason.strip()]
    types = [found[1] for reason in reasons if (found := re.search(EXPECTED, reason))]
    kinds = [KINDS.get(kind, kind.replace("typing.Literal", "one of ")) for kind in types]
    if key and given and reasons and len(kinds) == len(reasons):
        return f"{key[1]}: expected {' or '.join(kinds)}, got {given[1].strip()}"
    kept = [reason for reason in reasons if "<class 'NoneType'>" not in reason]
    return kept[0] if len(reasons) > 1 and len(kept) == 1 else text.split("Errors:\n")[-1].strip()


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
