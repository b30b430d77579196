"""The board's server: a loopback socket, its address with the token, and the loop that serves it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Any

from coterie.board.catalog import Catalogue
from coterie.errors import ConfigError, RunError, install_command

HOST = "127.0.0.1"
PORT = 8642
"""The first that is tried where none is asked for."""
TRIED = 20
"""Ports that are tried from there on."""


def require() -> None:
    """Raise ConfigError, with the remedy, where the packages of the extra `board` are not installed."""
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            f"the board needs a package that is not installed ({error}): {install_command('board')}"
        ) from error
    del starlette, uvicorn


@dataclass(slots=True)
class Board:
    """A board that listens; `serve` answers until it is stopped, `start` does so in a thread.

    Args:
        runs: folder of runs, or of one run.
        port: to listen on; None takes the first free one from 8642 on, 0 any free one.

    Raises:
        ConfigError: the packages of the extra `board` are not installed.
        RunError: there is no such folder, or the port is taken.
    """

    runs: Path
    port: int | None = None
    token: str = ""
    """Made anew where it is empty."""
    catalogue: Catalogue = field(init=False)
    _socket: socket.socket = field(init=False, repr=False)
    _server: Any = field(init=False, repr=False)
    _thread: threading.Thread | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        require()
        import uvicorn

        from coterie.board.guard import new_token
        from coterie.board.routes import application

        self.catalogue = Catalogue(Path(self.runs))
        self.token = self.token or new_token()
        self._socket = listen(self.port)
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application(self.catalogue, port=self.port, token=self.token),
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            date_header=False,
            ws="none",
            http="h11",
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
            limit_concurrency=256,
        )
        self._server = uvicorn.Server(config)

    @property
    def address(self) -> str:
        """What to open in a browser, with the token."""
        fragment = f"#/run/{self.catalogue.single}" if self.catalogue.single else ""
        return f"http://{HOST}:{self.port}/?token={self.token}{fragment}"

    def serve(self) -> None:
        """Answer until `stop` or Ctrl-C."""
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def start(self) -> Board:
        """Answer from a thread of this process."""
        self._thread = threading.Thread(target=self.serve, name="coterie-board", daemon=True)
        self._thread.start()
        return self

    def open(self) -> bool:
        """Open the page in a browser; False where there is no screen to show one."""
        screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        return bool(screen) and webbrowser.open(self.address)

    def stop(self) -> None:
        """Stop answering, and free the port."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None
        self._socket.close()

    def __enter__(self) -> Board:
        return self.start() if self._thread is None else self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _repr_html_(self) -> str:
        """A link, for notebooks."""
        return f'<a href="{self.address}" target="_blank" rel="noreferrer">{self.address}</a>'


def listen(port: int | None) -> socket.socket:
    """A socket on loopback.

    Raises:
        RunError: the port is taken or may not be used.
    """
    ports = [port] if port is not None else [*range(PORT, PORT + TRIED), 0]
    for candidate in ports:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, candidate))
            listener.listen(128)
        except (OSError, OverflowError) as error:
            listener.close()
            if candidate == ports[-1]:
                taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
                why = "is in use by another program" if taken else f"cannot be used: {error}"
                raise RunError(
                    f"port {candidate} {why}; choose another one with --port, or leave it out to get a free one"
                ) from error
        else:
            return listener
    raise AssertionError("a port was tried")


@contextmanager
def beside(runs: Path) -> Generator[str]:
    """Context with a board in a process of its own, at a low priority; yields its address.

    It ends with the context, and with this process however that ends: it reads a pipe from it until the pipe closes.
    What becomes of it is nothing to the training.

    Raises:
        ConfigError: the packages of the extra `board` are not installed.
        RunError: it did not start.
    """
    require()
    runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "coterie", "board", "--runs", str(runs), "--no-browser", "--beside"]
    process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RunError(f"the board did not start: {process.stderr.read()[-2000:].strip() or 'it said nothing'}")
        yield address
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()


def stop_at_end_of_input(board: Board) -> None:
    """Stop the board when the process that started it is gone, and leave the processor to that one until then."""

    def wait() -> None:
        sys.stdin.buffer.read()
        board.stop()

    os.nice(10)
    threading.Thread(target=wait, daemon=True).start()
