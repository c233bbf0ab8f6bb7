"""`diffstyler studio`: an address in, the page at it and the worker beside it out, until somebody ends them."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from diffstyler.errors import DiffstylerError
from diffstyler.studio.engine import Engine
from diffstyler.studio.folder import MOST_UPLOADED, Folder
from diffstyler.studio.guard import Guard, is_loopback
from diffstyler.studio.queue import JobQueue

log = logging.getLogger(__name__)

#: seconds that a worker has to keep what it is at, and before another one takes the place of one that died
GRACE, AGAIN = 20, 1.0


@dataclass(frozen=True)
class Address:
    """Where the page is, and who may see it: (user, password), or None where it is this machine alone.

    Raises:
        DiffstylerError: others could see it without a password.
    """

    host: str
    port: int
    auth: tuple[str, str] | None

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and self.auth is None:
            raise DiffstylerError(
                f"--host {self.host}: others could reach the studio; set a name and a password, --auth NAME:PASSWORD, "
                "or leave --host out"
            )


class WorkerProcess:
    """The worker, started again whenever it dies; it ends when this process does.

    Args:
        command: starts it.
        folder: gets its log.
    """

    def __init__(self, command: Sequence[str], folder: Folder) -> None:
        self.command = command
        self.folder = folder
        self.closing = threading.Event()
        self.process: subprocess.Popen | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self.closing.is_set():
            with (self.folder.path / "worker.log").open("ab") as told:
                # a session of its own: Ctrl-C is for the page, which closes the worker's input
                self.process = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=told, stderr=told, start_new_session=True
                )
            code = self.process.wait()
            assert self.process.stdin is not None
            self.process.stdin.close()
            if not self.closing.is_set():
                JobQueue(self.folder.queue).interrupted("the worker ended; another one takes its place")
                log.warning("the worker ended with exit code %d; another one takes its place", code)
                self.closing.wait(AGAIN)

    def close(self) -> None:
        """Let it keep what it is at, and end."""
        self.closing.set()
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._thread.join(GRACE)


def serve(engine: Engine, folder: Folder, address: Address, worker: Sequence[str], tell: Callable[[str], None]) -> None:
    """Until the process is interrupted or terminated, which raises an exception here.

    Args:
        engine: finds masks for the page.
        folder: of the studio.
        address: of the page.
        worker: the command that starts the worker.
        tell: is told the page's address.

    Raises:
        DiffstylerError: Gradio is not installed, or the port is taken.
    """
    with opened(engine, folder, address) as url:
        process = WorkerProcess(worker, folder)
        try:
            tell(url)
            while True:
                time.sleep(0.5)
        finally:
            process.close()


@contextmanager
def opened(engine: Engine, folder: Folder, address: Address) -> Iterator[str]:
    """Inside, the page is at the address that is given. Arguments and errors as of :func:`serve`."""
    _look_for_room(address)
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(folder.uploads))
    try:
        from diffstyler.studio.page import LOOK, build
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise DiffstylerError("the studio needs Gradio: pip install 'diffstyler[studio]'") from error
    from starlette.middleware import Middleware

    page = build(engine, folder)
    guard = Middleware(Guard, alone=address.auth is None)
    try:
        _, url, _ = page.queue(default_concurrency_limit=8).launch(
            server_name=address.host,
            server_port=address.port,
            auth=address.auth,
            allowed_paths=[str(folder.files)],
            max_file_size=MOST_UPLOADED,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            app_kwargs={"middleware": [guard]},
            **LOOK,
        )
    except OSError as error:
        raise DiffstylerError(f"--port {address.port}: {error}; name another port") from error
    try:
        yield url
    finally:
        page.close(verbose=False)


def _look_for_room(address: Address) -> None:
    """Raises: DiffstylerError: the page cannot be there; said before anything heavy is loaded."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((address.host, address.port))
    except OSError as error:
        reason = error.strerror or error
        raise DiffstylerError(f"--host {address.host} --port {address.port}: {reason}; name another port") from error
