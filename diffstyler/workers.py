"""What the CPU does beside the device: read, finish, encode, write."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

#: threads; most of what they do is compression, which runs side by side
THREADS = 4


class Workers:
    """Threads beside a device that computes; where the CPU computes itself, everything is done at once.

    Args:
        apart: in threads.
        threads: how many.
    """

    def __init__(self, *, apart: bool, threads: int = THREADS) -> None:
        self.apart = apart
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="diffstyler") if apart else None

    def submit(self, task: Callable[..., T], *args: Any) -> Future[T]:
        """What it gives, or raises, in time; tasks begin in the order in which they come."""
        if self._pool is not None:
            return self._pool.submit(task, *args)
        return settled(task(*args))

    def close(self) -> None:
        """Wait for all of them."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=False)


def settled(value: T) -> Future[T]:
    """What is there already."""
    future: Future[T] = Future()
    future.set_result(value)
    return future
