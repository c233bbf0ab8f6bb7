"""Jobs shared through a folder: each has a lock file that the kernel frees when its holder ends, however it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from diffstyler.farm.base import Farm, Job


class LockFarm(Farm):
    """Whoever holds a job's lock works on it; nothing else is exchanged between processes, ranks or nodes, which must
    see the same file system.

    What was settled by others is found out under its lock, by what lies in the folder.

    Args:
        folder: of the locks; it is made when one is taken.
        note: keeps what was given up, and why, where the other processes find it.
    """

    def __init__(self, folder: Path, note: Callable[[str, str], None]) -> None:
        self.folder = folder
        self.note = note
        self._left: dict[str, Job] = {}
        self._locks: dict[str, FileLock] = {}

    def offer(self, jobs: Sequence[Job]) -> None:
        self._left = {job.key: job for job in jobs}

    def claim(self, kinds: Collection[str] = (), most: int = 1) -> list[str]:
        claimed: list[str] = []
        for job in list(self._left.values()):
            if len(claimed) < most and (not kinds or job.kind in kinds) and self._lock(job.key):
                del self._left[job.key]
                claimed.append(job.key)
        return claimed

    def finish(self, key: str) -> None:
        self._left.pop(key, None)
        if lock := self._locks.pop(key, None):
            Path(lock.lock_file).unlink(missing_ok=True)  # whoever locks a settled job from now on finds that out
            lock.release()

    def fail(self, key: str, reason: str) -> None:
        self.note(key, reason)
        self.finish(key)

    def left(self) -> list[str]:
        return list(self._left)

    def close(self) -> None:
        for lock in self._locks.values():
            lock.release()
        self._locks = {}

    def _lock(self, key: str) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{key}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        self._locks[key] = lock
        return True
