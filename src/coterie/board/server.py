"""The board's server: a loopback socket, its address with the token, and the loop that serves it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from subprocess import PIPE

from coterie.board.catalog import Catalogue
from coterie.board.trials import Trials
from coterie.errors import RunError
from coterie.web.local_server import LocalServer, listen, require
from coterie.web.origin import new_secret

HOST = "127.0.0.1"
PORT = 8642
"""The first that is tried where none is asked for."""
TRIED = 20
"""Ports that are tried from there on."""


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
    trying: bool = False
    """Let the page sample from checkpoints: it loads models, and runs the reward functions of the runs."""
    catalogue: Catalogue = field(init=False)
    _trials: Trials | None = field(init=False, repr=False, default=None)
    _server: LocalServer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require("board", "the board")
        from coterie.board.routes import application

        self.catalogue = Catalogue(Path(self.runs))
        self.token = self.token or new_secret()
        listener = listen(HOST, [self.port] if self.port is not None else [*range(PORT, PORT + TRIED), 0])
        self.port = listener.getsockname()[1]
        self._trials = Trials() if self.trying else None
        page = application(
            self.catalogue,
            port=self.port,
            token=self.token,
            trials=self._trials,
            stopping=lambda: self._server.stopping,
        )
        settings = {"timeout_graceful_shutdown": 1, "limit_concurrency": 256}
        self._server = LocalServer(page, listener, "coterie-board", settings)

    @property
    def address(self) -> str:
        """What to open in a browser, with the token."""
        fragment = f"#/run/{self.catalogue.single}" if self.catalogue.single else ""
        return f"http://{HOST}:{self.port}/?token={self.token}{fragment}"

    def serve(self) -> None:
        """Answer until `stop` or Ctrl-C."""
        threading.Thread(target=_warm, daemon=True).start()
        try:
            self._server.serve()
        finally:
            self._free()

    def start(self) -> Board:
        """Answer from a thread of this process."""
        threading.Thread(target=_warm, daemon=True).start()
        self._server.start()
        return self

    def open(self) -> bool:
        """Open the page in a browser; False where there is no screen to show one."""
        screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        return bool(screen) and webbrowser.open(self.address)

    def stop(self) -> None:
        """Stop answering, and free the port and the memory of models that were tried."""
        self._server.stop()
        self._free()

    def _free(self) -> None:
        if self._trials is not None:
            self._trials.stop()

    def __enter__(self) -> Board:
        return self if self._server.started else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _repr_html_(self) -> str:
        """A link, for notebooks."""
        return f'<a href="{self.address}" target="_blank" rel="noreferrer">{self.address}</a>'


def _warm() -> None:
    """Import what the first page with tokens or regions would else wait for."""
    for name in ("tokenizers", "coterie.board.regions"):
        with suppress(ImportError):
            import_module(name)


@contextmanager
def beside(runs: Path) -> Generator[str]:
    """Context with a board in a process of its own, at a low priority; yields its address.

    It ends with the context, and with this process however that ends: it reads a pipe from it until the pipe closes.
    What becomes of it is nothing to the training.

    Raises:
        ConfigError: the packages of the extra `board` are not installed.
        RunError: it did not start.
    """
    require("board", "the board")
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
