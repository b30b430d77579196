"""Client of a server of completions: JSON requests, and streams of tokens that are read in threads of their own."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from coterie.errors import ConfigError, EngineError

PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Between two attempts, doubled up to the second."""
STALE = 409
"""Status where the server has other weights than were asked for."""
PASSING = (408, STALE, 429, 502, 503, 504)
"""Statuses that are tried again: the server is busy, stopping, or about to be given the weights."""


class RefusedError(Exception):
    """An answer of the server that is none.

    Attributes:
        status: of HTTP; 0 where the connection was lost.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionClient:
    """A server's address and how to ask it.

    Args:
        base_url: up to and with `/v1`.
        api_key_var: variable of the environment with the key; nothing is sent where it is not set.
        timeout_s: without a byte from the server, after which a connection counts as lost.
        retry_s: in which a lost server must be back.
        setting: that names the address.

    Raises:
        ConfigError: the address is none, or holds a password.
    """

    base_url: str
    api_key_var: str = "COTERIE_API_KEY"
    timeout_s: float = 120.0
    retry_s: float = 300.0
    setting: str = "engine.base_url"

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ConfigError(
                f"{self.setting} = {parts._replace(netloc=parts.hostname or '').geturl()!r}; expected an address such "
                "as http://127.0.0.1:8000/v1, without name and password (the key comes from the environment)"
            )

    def connection(self) -> http.client.HTTPConnection:
        """A new connection, not opened yet."""
        parts = urlsplit(self.base_url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self.timeout_s)

    def begin(self, connection: http.client.HTTPConnection, path: str, body: Any = None) -> http.client.HTTPResponse:
        """Ask, and return the answer to be read.

        Args:
            path: below the base address, or from the server's root with a `/` in front.
            body: of a POST, as JSON; None makes a GET.

        Raises:
            RefusedError: the server refuses, with its message.
            OSError, http.client.HTTPException: the connection is lost.
        """
        place = path if path.startswith("/") else f"{urlsplit(self.base_url).path.rstrip('/')}/{path}"
        headers = {"content-type": "application/json"}
        key = os.environ.get(self.api_key_var, "")
        if key:
            headers["authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        connection.request("GET" if data is None else "POST", place, data, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise RefusedError(answer.status, _message(answer.read(1 << 16), answer.reason))
        return answer

    def ask(self, path: str, body: Any = None) -> dict[str, Any]:
        """A JSON object.

        Raises:
            RefusedError: the server refuses, or cannot be reached.
        """
        connection = self.connection()
        try:
            value = json.loads(self.begin(connection, path, body).read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RefusedError(0, _reason(error)) from error
        finally:
            connection.close()
        if not isinstance(value, dict):
            raise RefusedError(0, f"the answer is {value!r:.60}, expected a JSON object")
        return value

    def card(self, model: str) -> Mapping[str, Any]:
        """What the server says of a model; of its first one where `model` is empty.

        Raises:
            RefusedError: it cannot be reached, or asks for another key.
            EngineError: it has no such model.
        """
        cards = self.ask("models").get("data") or []
        card = next((card for card in cards if model in ("", card["id"])), None)
        if card is None:
            names = ", ".join(str(card["id"]) for card in cards)
            raise EngineError(f"the server {self.base_url} has no model {model!r}; expected of {names}")
        return card

    def persist(self, function: Callable[[], Any], *, ended: Callable[[float], bool] | None = None) -> Any:
        """What `function` returns, called again while the server is away or busy.

        Args:
            ended: waits so many seconds and says whether to give up quietly, with None.

        Raises:
            EngineError: the server refuses, or was away for `retry_s`.
        """
        pause, deadline = PAUSE_S, None
        while True:
            try:
                return function()
            except RefusedError as error:
                problem, now = error, time.monotonic()
            if problem.status and problem.status not in PASSING:
                raise EngineError(f"the server {self.base_url} refuses (status {problem.status}): {problem}")
            deadline = now + self.retry_s if deadline is None else deadline
            if now > deadline:
                raise EngineError(
                    f"the server {self.base_url} has not answered for {self.retry_s:g} s (last: {problem}); start it "
                    "anew, then `coterie resume` the run"
                )
            if ended is None:
                time.sleep(pause)
            elif ended(pause):
                return None
            pause = min(2 * pause, LONGEST_PAUSE_S)


@dataclass(slots=True, kw_only=True, eq=False)
class TokenStream:
    """One completion, read by a thread from its beginning to its end, again from the beginning where it broke off.

    What a reader sees grows only: tokens of a stream that broke off are replaced once the new one has as many.
    """

    client: CompletionClient
    body: Mapping[str, Any]
    changed: threading.Condition
    """Notified of each change, and held while it is made."""
    check: Callable[[dict[str, Any]], None]
    """Called with each chunk; what it raises as RefusedError is tried again."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    problem: EngineError | None = None
    stale: bool = False
    """The server has other weights; it is asked again until it has the right ones."""
    _closed: threading.Event = field(default_factory=threading.Event)
    _connection: http.client.HTTPConnection | None = None

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._run, name="completion", daemon=True).start()

    def close(self) -> None:
        """Hang up, which ends the completion at the server too."""
        self._closed.set()
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            self.client.persist(self._attempt, ended=self._closed.wait)
        except EngineError as error:
            problem = error
        except Exception as error:  # a bug, or an answer that is no completion: nobody else would hear of it
            problem = EngineError(
                f"the server {self.client.base_url} gave no completion: {type(error).__name__}: {error}"
            )
        else:
            return
        with self.changed:
            self.problem = problem
            self.changed.notify_all()

    def _attempt(self) -> None:
        try:
            self._read()
        except RefusedError as error:
            if error.status == STALE:
                with self.changed:
                    self.stale = True
                    self.changed.notify_all()
            raise

    def _read(self) -> None:
        self._connection = connection = self.client.connection()
        tokens: list[int] = []
        logprobs: list[float] = []
        try:
            answer = self.client.begin(connection, "completions", dict(self.body))
            while not self._closed.is_set():
                line = answer.readline()
                if not line:
                    raise RefusedError(0, "the answer broke off")
                if line.startswith(b"data: ") and self._take(line[6:].strip(), tokens, logprobs):
                    return
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self._closed.is_set():
                raise RefusedError(0, _reason(error)) from error
        finally:
            connection.close()

    def _take(self, data: bytes, tokens: list[int], logprobs: list[float]) -> bool:
        """Add an event of the stream; True at its end."""
        if data == b"[DONE]":
            raise RefusedError(0, "the answer ended without a finish_reason")
        chunk = json.loads(data)
        if "error" in chunk:
            passing = chunk["error"].get("type") in ("service_unavailable_error", "timeout_error")
            raise RefusedError(503 if passing else 500, _message(data, "an error in the stream"))
        self.check(chunk)
        (choice,) = chunk["choices"]
        tokens += choice.get("token_ids") or ()
        logprobs += (choice.get("logprobs") or {}).get("token_logprobs") or ()
        finish = choice.get("finish_reason")
        with self.changed:
            if len(tokens) >= len(self.tokens) or finish is not None:
                self.tokens, self.logprobs, self.finish_reason = tokens, logprobs, finish
                self.changed.notify_all()
        return finish is not None


def _message(data: bytes, fallback: str) -> str:
    """The message of an error as OpenAI's API writes it."""
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return data.decode(errors="replace")[:200].strip() or fallback


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
