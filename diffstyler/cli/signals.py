"""SIGINT and SIGTERM end a command, wherever they come: within seconds, with one line and their own exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
#: seconds that a command has to keep what it is at, before it is ended
PATIENCE = 8.0


def told_of(command: str, signum: int) -> str:
    """What the user reads."""
    return f"{command} was {WORDS[signal.Signals(signum)]}; what was done is kept, and the same command goes on"


def exit_code(signum: int) -> int:
    """As shells count it."""
    return 128 + signum


@contextmanager
def noted(command: str) -> Iterator[Sequence[int]]:
    """The first of these signals interrupts what runs inside, and is noted; what has not ended ``PATIENCE`` later, for
    a library took the interruption for an error of its own or waits for something, is ended without more ado.

    Later ones change nothing: what is under way is being kept.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    own, (reader, writer), over = os.getpid(), os.pipe(), threading.Event()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            if came:
                return
            came.append(signum)
            if is_importing(frame):  # an exception there may end in an abort: half of a C++ library is there
                leave(told_of(command, signum), signum)
            os.write(writer, b"!")
        raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(exit_code(signum))

    def watch() -> None:
        if os.read(reader, 1) and not over.wait(PATIENCE):
            leave(told_of(command, came[0]), came[0])

    # a thread is not started in a handler: it may have interrupted the start of another one
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    hooks = sys.unraisablehook, threading.excepthook
    before = {signum: signal.signal(signum, interrupt) for signum in WORDS}
    sys.unraisablehook = lambda told: None if came else hooks[0](told)  # else of an interrupted finalizer, at length
    threading.excepthook = lambda told: None if came else hooks[1](told)
    try:
        yield came
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook, threading.excepthook = hooks
        over.set()
        os.write(writer, b".")  # a forked process may hold the pipe: closing it alone would not wake the thread
        watching.join()
        os.close(writer)
        os.close(reader)


def end_at_once() -> None:
    """From here on these signals end the process: nothing is under way."""

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        leave(WORDS[signal.Signals(signum)], signum)

    for signum in WORDS:
        signal.signal(signum, end)


def is_importing(frame: FrameType | None) -> bool:
    """Whether what runs there is a part of an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def leave(text: str, signum: int) -> NoReturn:
    """As a kill does it: whatever has its final name is whole."""
    os.write(2, f"diffstyler: {text}\n".encode())
    os._exit(exit_code(signum))
