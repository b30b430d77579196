"""Servers of the Model Context Protocol (MCP, revisions 2024-11-05 to 2026-07-28) whose tools a model may call.

The official SDK `mcp` speaks the protocol on one thread of its own; a server is started once a process, and shared.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TextIO

from coterie.errors import ConfigError, install_command
from coterie.tools.base import Result, ToolUnavailableError, as_text

START_S = 60.0
"""Deadline of the start of a server and its list of tools."""
SPARE_S = 5.0
"""Seconds behind a call's deadline in which the SDK reports it."""
HUNG = 2
"""Calls in a row that pass their deadline before the server counts as hung, and is started again."""
PAGES = 100
"""Pages of a list of tools that are read."""
LONGEST = 100_000
"""Characters of a result that are kept; `result_length` cuts further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is: a command, which is started, or an URL."""

    command: tuple[str, ...] = ()
    url: str = ""
    env: tuple[str, ...] = ()
    """Names of environment variables that the command is given beside HOME, PATH and the like."""
    token: str = ""
    """Name of the environment variable with the bearer token for the URL."""

    def __str__(self) -> str:
        return self.url or " ".join(self.command)


@dataclass(slots=True)
class _Session:
    """A connection, which lives in a task of its own on the SDK's thread."""

    ready: Future[Any] = field(default_factory=Future)
    """The client, once it is connected."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)


class McpServer:
    """A server, connected when it is first asked. Safe to use from several threads.

    Raises:
        ConfigError: the package is missing.
    """

    def __init__(self, address: Address) -> None:
        if find_spec("mcp") is None:
            raise ConfigError(
                f"the MCP server {address} needs the package mcp, which is not installed: {install_command('mcp')}"
            )
        self.address = address
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._late = 0

    def tools(self) -> list[Any]:
        """The server's tools (`mcp.types.Tool`).

        Raises:
            ToolUnavailableError: it cannot be started or reached, or does not speak the protocol.
        """

        async def listed(client: Any) -> list[Any]:
            tools, cursor = [], None
            for _ in range(PAGES):
                page = await client.list_tools(cursor=cursor)
                tools += page.tools
                cursor = page.next_cursor
                if cursor is None:
                    break
            return tools

        session = self._connected()
        try:
            return _wait(listed(session.ready.result()), START_S)
        except Exception as error:
            self._drop(session)
            raise ToolUnavailableError(f"the MCP server {self.address} lists no tools: {_in_a_line(error)}") from error

    def call(self, name: str, arguments: dict[str, Any], timeout_s: float) -> Result:
        """Result of a call. A server that dies in it, or hangs again and again, is started anew by the next call.

        Args:
            name: of the tool, as the server has it.
            timeout_s: deadline, seconds.

        Raises:
            ToolUnavailableError: it cannot be started or reached: no fault of the call.
        """
        codes: Any = import_module("mcp.types")
        session = self._connected()
        call = session.ready.result().call_tool(name, arguments, read_timeout_seconds=timeout_s)
        try:
            reply = _wait(call, timeout_s + SPARE_S)
        except Exception as error:
            code = getattr(error, "code", None)
            if code == codes.REQUEST_TIMEOUT or isinstance(error, LateError):
                self._late += 1
                if self._late >= HUNG or isinstance(error, LateError):
                    self._drop(session)
                return Result(content=f"Error: the tool did not return within {timeout_s:g} s", error="timeout")
            if (
                code is not None and code != codes.CONNECTION_CLOSED
            ):  # the server's own refusal, such as of the arguments
                return Result(content=f"Error: {_in_a_line(error)}", error="raised")
            self._drop(session)
            if self.address.url:
                raise ToolUnavailableError(f"the MCP server {self.address} is gone: {_in_a_line(error)}") from error
            return Result(content="Error: the tool's server ended", error="crashed")
        self._late = 0
        return shown(reply)

    def close(self) -> None:
        """End the connection, and the command."""
        with self._lock:
            session = self._session
        if session is not None:
            self._drop(session)

    def _connected(self) -> _Session:
        with self._lock:
            if self._session is None:
                loop = _loop()
                session = self._session = _Session()
                asyncio.run_coroutine_threadsafe(self._live(session), loop)
            session = self._session
        try:
            session.ready.result(START_S)
        except Exception as error:
            self._drop(session)
            cause = str(error) or f"it did not start within {START_S:g} s"
            raise ToolUnavailableError(f"the MCP server {self.address} cannot be used: {cause}") from error
        return session

    def _drop(self, session: _Session) -> None:
        """Forget a session; the next call opens another."""
        with self._lock:
            if self._session is session:
                self._session, self._late = None, 0
        _loop().call_soon_threadsafe(session.stop.set)

    async def _live(self, session: _Session) -> None:
        """A session from its start to its end, in one task, as the SDK's cancel scopes want it."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as words:
            try:
                async with self._client(words) as client:
                    session.ready.set_result(client)
                    await session.stop.wait()
            except BaseException as error:
                if not session.ready.done():
                    words.seek(0)
                    lines = words.read().strip().splitlines()
                    last = f"; its last words: {lines[-1][:200]}" if lines else ""
                    session.ready.set_exception(ConnectionError(f"{_in_a_line(error)}{last}"))

    @asynccontextmanager
    async def _client(self, words: TextIO) -> AsyncGenerator[Any]:
        """The SDK's client; a command's standard error goes to `words`, for the error when it does not start."""
        mcp: Any = import_module("mcp")
        if not self.address.url:
            command, *rest = self.address.command
            given = {name: os.environ[name] for name in self.address.env if name in os.environ}
            place = mcp.stdio_client(mcp.StdioServerParameters(command=command, args=rest, env=given), errlog=words)
            async with mcp.Client(place, read_timeout_seconds=START_S) as client:
                yield client
            return
        streams: Any = import_module("mcp.client.streamable_http")
        httpx: Any = import_module("httpx2")
        headers = {"Authorization": f"Bearer {os.environ.get(self.address.token, '')}"} if self.address.token else {}
        async with httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(START_S, read=None)) as connections:
            place = streams.streamable_http_client(self.address.url, http_client=connections)
            async with mcp.Client(place, read_timeout_seconds=START_S) as client:
                yield client


@lru_cache(maxsize=32)
def server_for(address: Address) -> McpServer:
    """The server of this process, shared by training, evaluation and checks."""
    return McpServer(address)


def shown(reply: Any) -> Result:
    """A server's reply to a call (`CallToolResult`) as text."""
    texts, others = [], []
    for block in reply.content:
        resource = getattr(block, "resource", block)
        text = getattr(resource, "text", None) or (str(resource.uri) if block.type == "resource_link" else None)
        if isinstance(text, str):
            texts.append(text)
        elif block.type != "text":
            others.append(str(getattr(resource, "mime_type", None) or block.type))
    if not texts and not others and reply.structured_content is not None:
        return as_text(reply.structured_content, LONGEST)
    if others and not texts:
        return Result(content=f"Error: the tool returned {', '.join(others[:3])}, expected text", error="type")
    result = as_text("\n".join(texts), LONGEST)
    if reply.is_error:
        return Result(content=f"Error: {result.content}", error="raised")
    return result


def _in_a_line(error: BaseException) -> str:
    """An error in a line; of a group its first one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    words = " ".join(str(getattr(error, "message", error)).split())
    return f"{type(error).__name__}: {words}"[:300] if words else type(error).__name__


def _wait(work: Any, seconds: float) -> Any:
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result(seconds)
    except LateError:
        future.cancel()
        raise


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """Event loop of the SDK, on a thread that ends with this process; the servers' input ends then too."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="mcp", daemon=True).start()
    return loop


def allowed(tools: Sequence[Any], names: Sequence[str], address: Address) -> list[Any]:
    """The tools of those names, in the settings' order; all of them where none is named.

    Raises:
        ConfigError: the server has no such tool.
    """
    by_name = {tool.name: tool for tool in tools}
    absent = [name for name in names if name not in by_name]
    if absent:
        raise ConfigError(f"the MCP server {address} has no tool {', '.join(absent)}; it has {', '.join(by_name)}")
    return [by_name[name] for name in names] if names else list(tools)
