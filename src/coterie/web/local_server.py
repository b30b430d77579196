"""A web application that listens on a socket: in this thread until Ctrl-C, or in a thread of its own until stopped."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from coterie.errors import ConfigError, RunError, install_command


def require(extra: str, what: str) -> None:
    """Refuse to start where a web server's packages are not installed.

    Args:
        extra: that has them.
        what: needs them, e.g. `the board`.

    Raises:
        ConfigError: with the remedy.
    """
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            f"{what} needs a package that is not installed ({error}): {install_command(extra)}"
        ) from error
    del starlette, uvicorn


def listen(host: str, ports: Iterable[int]) -> socket.socket:
    """A listening socket on the first of the ports that is free.

    Raises:
        RunError: the last one is taken, or may not be used.
    """
    problem = "no port was given"
    for port in ports:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(512)
        except (OSError, OverflowError) as error:
            listener.close()
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            problem = f"port {port} " + ("is in use by another program" if taken else f"cannot be used: {error}")
        else:
            return listener
    raise RunError(f"{problem}; choose another one with --port, or leave it out to get a free one")


class LocalServer:
    """An ASGI application on a socket that listens already.

    Args:
        name: of the thread.
        settings: of uvicorn, beside those of every server here.
    """

    def __init__(self, application: Any, listener: socket.socket, name: str, settings: Mapping[str, Any]) -> None:
        import uvicorn

        self.listener, self._name = listener, name
        self._thread: threading.Thread | None = None
        config = uvicorn.Config(
            application,
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            date_header=False,
            ws="none",
            http="h11",
            timeout_keep_alive=5,
            **settings,
        )
        self._server = uvicorn.Server(config)

    @property
    def stopping(self) -> bool:
        """Ctrl-C or `stop` came; what is open may still end."""
        return self._server.should_exit

    def serve(self) -> None:
        """Answer until `stop` or Ctrl-C."""
        asyncio.run(self._server.serve(sockets=[self.listener]))

    def start(self) -> None:
        """Answer from a thread of this process."""
        self._thread = threading.Thread(target=self.serve, name=self._name, daemon=True)
        self._thread.start()

    @property
    def started(self) -> bool:
        """A thread answers."""
        return self._thread is not None

    def stop(self) -> None:
        """Stop answering, and free the port."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None
        self.listener.close()
