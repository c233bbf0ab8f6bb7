"""Requirements into an environment, by uv where it can be had and minds what pip was told here, else by pip.

    .venv/bin/python tools/install/install.py --editable '.[all]'
    .venv/bin/python tools/install/install.py --python .venv-oldest/bin/python --resolution lowest-direct --editable .

uv takes a minute where pip takes eight. It reads no pip.conf and no PIP_* variable, so these are handed to it: an index
of one's own, a folder of wheels, a certificate, a proxy. A setting that is not known here means pip.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

#: pip's setting -> uv's option, once for each value
OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraints",
    "trusted-host": "--allow-insecure-host",
}
#: pip's setting -> uv's option, where it is on
FLAGS = {"no-index": ("--no-index",), "pre": ("--prerelease", "allow"), "no-cache-dir": ("--no-cache",)}
#: pip's setting -> variables that uv reads
VARIABLES = {
    "cert": ("SSL_CERT_FILE",),
    "client-cert": ("SSL_CLIENT_CERT",),
    "proxy": ("HTTP_PROXY", "HTTPS_PROXY"),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
    "retries": ("UV_HTTP_RETRIES",),
}
#: of pip's own ways, not of what is installed
NO_MATTER = {
    "break-system-packages",
    "cache-dir",
    "config-file",
    "disable-pip-version-check",
    "no-color",
    "no-compile",
    "no-input",
    "no-python-version-warning",
    "no-warn-script-location",
    "prefer-binary",
    "progress-bar",
    "quiet",
    "require-virtualenv",
    "root-user-action",
    "verbose",
}
#: sections of pip's settings that ``pip install`` reads, the last one wins
SECTIONS = ("global", "install", ":env:")
OFF = {"0", "false", "no", "off", ""}


class UnknownSettingError(Exception):
    """pip was told what uv cannot be told here."""


def pip_settings(listed: str) -> dict[str, str]:
    """Lines of ``pip config list``, as ``global.cert='/etc/ca.pem'`` -> what ``pip install`` goes by."""
    lines = [line.partition("=") for line in listed.splitlines() if "=" in line]
    told = [(*key.rpartition(".")[::2], str(ast.literal_eval(value))) for key, _, value in lines]
    return {name: value for wanted in SECTIONS for section, name, value in told if section == wanted}


def for_uv(settings: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """pip's settings -> uv's options and variables.

    Raises:
        UnknownSettingError: one of them has no counterpart here.
    """
    options, variables = ["--index-strategy", "unsafe-best-match"], {}  # as pip: the best of all indexes
    for name, value in settings.items():
        if name in OPTIONS:
            options += [word for each in value.split() for word in (OPTIONS[name], each)]
        elif name in FLAGS:
            options += FLAGS[name] if value.lower() not in OFF else ()
        elif name in VARIABLES:
            variables |= dict.fromkeys(VARIABLES[name], value)
        elif name not in NO_MATTER:
            raise UnknownSettingError(f"pip's setting {name}")
    return options, variables


def by_uv(words: Sequence[str]) -> str:
    """uv installs -> why it did not, or nothing."""
    pip = [sys.executable, "-m", "pip"]
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=True).stdout
    try:
        options, variables = for_uv(pip_settings(listed))
    except UnknownSettingError as error:
        return f"{error} is not known to tools/install"
    if subprocess.run([*pip, "install", "--quiet", "uv"]).returncode:
        return "uv cannot be had here"
    done = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", "--quiet", *options, *words], env={**os.environ, **variables}
    )
    return "uv could not" if done.returncode else ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Install by uv, or else by pip.")
    parser.add_argument("--python", default=sys.executable, help="of the environment (default: this one's)")
    parser.add_argument("--resolution", choices=["lowest-direct"], help="uv's alone")
    parser.add_argument("--editable", required=True, help="a folder and its extras, as .[all]")
    chosen = parser.parse_args(arguments)
    what = ["--editable", chosen.editable]
    how = ["--resolution", chosen.resolution] if chosen.resolution else []
    problem = by_uv(["--python", chosen.python, *how, *what])
    if not problem:
        return 0
    if chosen.resolution:
        print(f"{problem}, and pip knows no --resolution", file=sys.stderr)
        return 1
    print(f"{problem}: pip installs, which takes some minutes", file=sys.stderr)
    return subprocess.run([chosen.python, "-m", "pip", "install", "--quiet", *what]).returncode


if __name__ == "__main__":
    sys.exit(main())
