"""Which classes a config may name: those of packages that do nothing else, unless the command line trusts it."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser, set_parsing_settings

from diffstyler.cli.messages import PACKAGES

FLAG = "--trust_config"


def limit_imports(arguments: Sequence[str]) -> bool:
    """Let parsers import what settings may name, or, where the words have the flag, anything -> the latter?

    What runs commands or changes the parser is never imported.
    """
    trusted = FLAG in arguments
    allowed = [] if trusted else PACKAGES
    set_parsing_settings(import_path_denylist=["os", "pydoc"] if trusted else ["*"], import_path_allowlist=allowed)
    return trusted


def add_flag(parser: ArgumentParser) -> None:
    told = f"import any class that settings name, not only those of {', '.join(PACKAGES)}: they can run anything"
    parser.add_argument(FLAG, action="store_true", help=told)
