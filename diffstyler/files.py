"""Files that are never half-written, their hashes, and lines of JSON."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from diffstyler import storage
from diffstyler.errors import DiffstylerError

try:
    import fcntl
except ImportError:  # on Windows, where a file in use cannot be removed anyway
    fcntl = None

_log = logging.getLogger(__name__)

#: bytes that a disk has left at least before a run begins: less than one picture needs
LEAST_FREE = 1 << 20


def atomic_write(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``: whoever reads it sees the old file or the new one, never a part, even after a crash.

    Raises:
        OSError: it cannot be written; the error names ``path``, and what was there stays.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # somebody is at work on it, see sweep
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            beside.replace(path)
        storage.put(path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk does not say which file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def check_writable(folder: Path) -> None:
    """Whether files can be put into a folder, which need not be there; nothing is written.

    Raises:
        DiffstylerError: they cannot.
    """
    storage.check_storage(folder)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise DiffstylerError(f"{folder}: expected a folder to write to, but {there} is a file; name another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise DiffstylerError(f"{folder}: expected a folder to write to, but {there} is read-only; name another one")
    if shutil.disk_usage(there).free < LEAST_FREE:
        raise DiffstylerError(f"{folder}: expected room to write, but the disk is full; free some, or name another one")


def own_folder(folder: Path) -> None:
    """Make a folder inside an output folder; a link in its place is replaced, for what it names lies elsewhere."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def sweep(folder: Path) -> None:
    """Remove what :func:`atomic_write` left in this folder where it was killed, and nothing that is being written."""
    for path in folder.glob(".*.tmp") if folder.is_dir() else ():
        try:
            with path.open("rb") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        except OSError:
            continue  # in use, or another sweep was faster


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict:
    """The JSON object in a file.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def read_json_lines(path: Path) -> list[dict]:
    """The JSON objects of a file, one a line; none where there is no file. Lines that hold something else are left
    out, with a warning."""
    objects = []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else (), start=1):
        try:
            value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            value = line
        if isinstance(value, dict):
            objects.append(value)
        elif line.strip():
            _log.warning("%s line %d is damaged: expected a JSON object; left out", path, number)
    return objects
