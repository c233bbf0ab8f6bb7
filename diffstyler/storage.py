"""Storage that is no disk: what a URL names has a place on this disk, to which it is fetched when it is read, and from
which it is put when it is written.

``s3://bucket/a.png`` lies at ``<mounts>/s3/bucket/a.png``, so that all code deals with paths. A path that stands for
nothing is left alone, and costs the comparison of its beginning.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from stat import S_ISDIR

import fsspec
from fsspec.core import url_to_fs

from diffstyler.errors import DiffstylerError

#: the folder below which URLs have their places
MOUNTS = "DIFFSTYLER_MOUNTS"
#: where an object is there as a whole or not at all; elsewhere one is put beside and moved
OBJECT_STORES = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"))
_URL = re.compile(r"([a-z][a-z0-9+]+):/{1,2}([^/].*)")  # paths have one slash left of two

_fetched: set[Path] = set()


class StorageError(DiffstylerError):
    """A URL cannot be read or written; the text says which and why."""


def mounts() -> str:
    """The folder below which URLs have their places, with a slash at its end."""
    return _absolute(os.environ.get(MOUNTS) or "~/.cache/diffstyler/mounts")


def local(path: Path | str) -> Path:
    """The place of what a URL names; any other path as it is.

    Raises:
        StorageError: nothing is known of such URLs here, or one leads out of its place by ``..``.
    """
    found = _URL.fullmatch(str(path))
    if found is None:
        return Path(path)
    _check_inside(f"{found[1]}://{found[2]}")
    try:
        fsspec.get_filesystem_class(found[1])
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"{found[1]}://{found[2]}: expected a path, or a URL that fsspec can open: {error}"
        ) from error
    return Path(mounts(), found[1], *found[2].split("/"))


def told(path: Path | str) -> str:
    """The URL that a place stands for; the path of any other."""
    root, text = mounts(), str(path)
    if not text.startswith(root):
        return text
    protocol, _, rest = text[len(root) :].partition(os.sep)
    return f"{protocol}://{rest}"


def is_remote(path: Path) -> bool:
    return str(path).startswith(mounts())


def fetch(path: Path, *, changes: bool = False) -> Path:
    """What a place stands for is brought there, with the files of a folder, unless it is there as it is now.

    Args:
        path: left alone where it stands for nothing.
        changes: while a run goes on; else it is looked at once.
    """
    if not is_remote(path) or (path in _fetched and not changes):
        return path
    url = told(path)
    with _errors_told(url):
        fs, remote = _open(url)
        try:
            info = fs.info(remote)
            if info["type"] == "directory":
                path.mkdir(parents=True, exist_ok=True)
                inside = [info for info in fs.ls(remote, detail=True) if info["type"] == "file"]
                _get(fs, [(str(one["name"]), path / Path(one["name"]).name) for one in inside])
            else:
                _get(fs, [(remote, path)])
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            return path
    _fetched.add(path)
    return path


def is_folder(path: Path) -> bool:
    """Raises: OSError: nothing is there."""
    if not is_remote(path):
        return S_ISDIR(path.stat().st_mode)
    with _errors_told(told(path)):
        fs, remote = _open(told(path))
        return fs.info(remote)["type"] == "directory"


def is_there(path: Path) -> bool:
    """Whether a file is; nothing is fetched."""
    if not is_remote(path):
        return path.is_file()
    with _errors_told(told(path)):
        fs, remote = _open(told(path))
        return fs.isfile(remote)


def files(folder: Path, pattern: str) -> list[Path]:
    """Those of a folder by a pattern as of ``Path.glob``, sorted and fetched: they never change."""
    if not is_remote(folder):
        return sorted(folder.glob(pattern))
    with _errors_told(told(folder)):
        fs, remote = _open(told(folder))
        names = [str(name) for name in fs.glob(f"{remote}/{pattern}")]
        places = [folder / name[len(remote.rstrip("/")) + 1 :] for name in names]
        _get(fs, [(name, place) for name, place in zip(names, places, strict=True) if not place.is_file()])
    return sorted(places)


def put(path: Path) -> None:
    """A file that was written at a place is put where it stands for, as a whole or not at all."""
    if not is_remote(path):
        return
    url = told(path)
    with _errors_told(url):
        fs, remote = _open(url)
        if url.partition(":")[0] in OBJECT_STORES:
            fs.put_file(str(path), remote)
            return
        beside = f"{remote}.{secrets.token_hex(4)}.tmp"
        fs.makedirs(remote.rpartition("/")[0], exist_ok=True)
        fs.put_file(str(path), beside)
        fs.mv(beside, remote)


def remove(path: Path) -> None:
    """A file, here and where it stands for; it may be absent."""
    path.unlink(missing_ok=True)
    if is_remote(path):
        with _errors_told(told(path)), suppress(FileNotFoundError):
            fs, remote = _open(told(path))
            if fs.exists(remote):
                fs.rm_file(remote)


def check_storage(folder: Path) -> None:
    """Raises: StorageError: nothing can be put into what a folder stands for."""
    if is_remote(folder):
        probe = folder / f".{secrets.token_hex(4)}.probe"
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"diffstyler")
        put(probe)
        remove(probe)


@cache
def _absolute(folder: str) -> str:
    return str(Path(folder).expanduser().absolute()) + os.sep


def _check_inside(url: str) -> None:
    if ".." in url.split("/"):
        raise StorageError(f"{url}: expected a URL without '..', which leads out of its place on this disk")


def _open(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    _check_inside(url)
    return url_to_fs(url, use_listings_cache=False)


def _get(fs: fsspec.AbstractFileSystem, wanted: Sequence[tuple[str, Path]]) -> None:
    """Fetch those files that are not here as they are there."""
    stamps = {name: str(fs.ukey(name)) for name, place in wanted if place.is_file()}
    wanted = [(name, place) for name, place in wanted if _stamp(place) != stamps.get(name)]
    beside = [place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp") for _, place in wanted]
    for folder in {place.parent for _, place in wanted}:
        folder.mkdir(parents=True, exist_ok=True)
    if wanted:
        fs.get([name for name, _ in wanted], [str(place) for place in beside])
    for (name, place), here in zip(wanted, beside, strict=True):
        here.replace(place)
        _stamp_file(place).write_text(stamps.get(name) or str(fs.ukey(name)))


def _stamp_file(place: Path) -> Path:
    return place.with_name(f".{place.name}.ukey")


def _stamp(place: Path) -> str | None:
    """What the file was there when it was fetched."""
    file = _stamp_file(place)
    return file.read_text() if place.is_file() and file.is_file() else ""


@contextmanager
def _errors_told(url: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, DiffstylerError):
        raise
    except Exception as error:  # each storage has its own
        raise StorageError(f"{url}: expected storage that can be read and written, got: {error}") from error
