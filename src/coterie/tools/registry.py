"""Registry of built-in tools: calculator, notes, python, search, MCP servers; and tools of the user's own by name."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from coterie.data import assets
from coterie.errors import ConfigError, DataError
from coterie.sandbox.base import Limits, SandboxError
from coterie.sandbox.choice import sandbox_for
from coterie.search.corpora import index_of
from coterie.search.index import Index, Searcher
from coterie.search.retrieval import RemoteSearcher
from coterie.tools.base import Result, Tool, ToolUnavailableError
from coterie.tools.calculator import calculator
from coterie.tools.mcp_server import Address, McpServer, allowed, server_for
from coterie.tools.signatures import arguments_of_schema, check_name, public_methods, tool_of, user_tools


class Notes:
    """Scratch memory of an episode."""

    MOST, LONGEST = 50, 500
    """Notes, and characters of a note."""

    def __init__(self) -> None:
        self._notes: list[str] = []

    def note(self, text: str) -> str:
        """Write down a note for later in this conversation.

        Args:
            text: the note, in a line
        """
        if len(self._notes) >= self.MOST or len(text) > self.LONGEST:
            raise ValueError(f"there is room for {self.MOST} notes of {self.LONGEST} characters")
        self._notes.append(" ".join(text.split()))
        return f"noted as {len(self._notes)}"

    def notes(self) -> str:
        """Read all notes that were written down."""
        return "\n".join(f"{number}. {text}" for number, text in enumerate(self._notes, 1)) or "no notes yet"


def _calculator() -> list[Tool]:
    return [tool_of(calculator)]


def _notes() -> list[Tool]:
    tools = [tool_of(function, method=name, target="notes") for name, function in public_methods(Notes)]
    return [
        Tool(name=tool.name, schema=tool.schema, arguments=tool.arguments, method=tool.method, owner=Notes)
        for tool in tools
    ]


def _search(*, index: str, results: int = 2, titles: bool = False) -> list[Tool]:
    """
    Args:
        index: file of an index, asset with a corpus, or URL of a retrieval server.
        results: passages a call.
        titles: show each passage's title.
    """
    if not 1 <= results <= 20:
        raise ConfigError(f"the tool search has results = {results}; expected 1 to 20")
    searcher = searcher_for(index)

    def search(query: str) -> str:
        """Search the corpus for passages that tell about something.

        Args:
            query: what to look for, in a few words
        """
        try:
            passages = searcher.search(query, results)
        except DataError as error:
            raise ToolUnavailableError(str(error)) from error
        shown = [
            f"{passage.title}: {passage.text}" if titles and passage.title else passage.text for passage in passages
        ]
        return "\n".join(shown) or "nothing was found"

    return [tool_of(search)]


def _python(*, tier: str = "auto", seconds: float = 2.0, memory_mb: int = 256) -> list[Tool]:
    """
    Args:
        tier: of the sandbox: auto, wasi, bubblewrap, remote or unsafe_rlimits.
        seconds: of computing a call.
        memory_mb: of memory a call.
    """
    if seconds <= 0 or memory_mb < 32:
        raise ConfigError(f"the tool python has seconds = {seconds}, memory_mb = {memory_mb}; expected more")
    sandbox, limits = sandbox_for(tier), Limits(seconds=seconds, memory_mb=memory_mb)

    def python(code: str) -> str:
        """Run a Python program and read what it prints.

        Args:
            code: the program; it must print its result
        """
        try:
            run = sandbox.run(code, limits=limits)
        except SandboxError as error:
            raise ToolUnavailableError(str(error)) from error
        if run.end == "ok":
            return run.stdout.rstrip() or "(nothing was printed)"
        raise ValueError(f"{run.stdout[-200:].rstrip()}\n{run.error or run.end}".strip())

    return [tool_of(python)]


def _mcp(
    *,
    target: str = "",
    command: Sequence[str] = (),
    url: str = "",
    tools: Sequence[str] = (),
    env: Sequence[str] = (),
    token: str = "",
    timeout_s: float = 10.0,
) -> list[Tool]:
    """
    Args:
        target: the rest of a name such as `mcp:python server.py` or `mcp:https://example.org/mcp`.
        command: starts the server, which speaks over its standard input and output.
        url: of a server that speaks over HTTP.
        tools: names of the tools that the model gets; all of them when left out.
        env: names of environment variables that the command is given.
        token: name of the environment variable with the URL's bearer token.
        timeout_s: deadline of a call.
    """
    if target:
        command, url = ((), target) if "://" in target else (shlex.split(target), url)
    if isinstance(command, str) or bool(command) == bool(url) or timeout_s <= 0 or (token and token not in os.environ):
        raise ConfigError(
            f"the tool mcp has command = {command!r}, url = {url!r}, timeout_s = {timeout_s}, token = {token!r}; "
            'expected one of command = ["python", "server.py"] and url = "https://…", a positive time, and as token '
            "the name of a variable that is set"
        )
    server = server_for(Address(command=tuple(command), url=url, env=tuple(env), token=token))
    try:
        offered = allowed(server.tools(), tools, server.address)
    except ToolUnavailableError as error:
        raise ConfigError(f"{error}; start it, or correct its command") from error
    return [_mcp_tool(server, tool, timeout_s) for tool in offered]


def _mcp_tool(server: McpServer, tool: Any, timeout_s: float) -> Tool:
    name = re.sub(r"\W", "_", tool.name)
    check_name(name)
    parameters = {key: value for key, value in tool.input_schema.items() if key not in ("$schema", "title")}
    function = {"name": name, "description": tool.description or "", "parameters": parameters}

    def call(**arguments: Any) -> Result:
        return server.call(tool.name, arguments, timeout_s)

    return Tool(
        name=name,
        schema={"type": "function", "function": function},
        arguments=arguments_of_schema(parameters, name),
        function=call,
    )


def searcher_for(index: str) -> Searcher:
    """The index behind a setting: an URL, the file of an index, or an asset with a corpus.

    Raises:
        DataError, AssetError: it cannot be opened, or fetched.
    """
    if "://" in index:
        return RemoteSearcher(index)
    path = index_of(index) if index in assets.ASSETS else Path(index)
    return _opened(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=8)
def _opened(path: Path, changed: int) -> Index:
    """The index, opened and verified once for training, evaluation and checks."""
    return Index(path)


BUILT_IN: dict[str, Callable[..., list[Tool]]] = {
    "calculator": _calculator,
    "mcp": _mcp,
    "notes": _notes,
    "python": _python,
    "search": _search,
}
"""Names of `environment.params.tools`, beside `module:function` and `module:Class`."""


def tools_for(entries: Sequence[str | Mapping[str, Any]]) -> dict[str, Tool]:
    """Tools of the settings by name.

    Args:
        entries: names, or tables with `name` and the tool's own settings.

    Raises:
        ConfigError: there is no such tool, two have the same name, or one does not take its settings.
    """
    tools: dict[str, Tool] = {}
    for entry in entries:
        for tool in _tools(entry):
            if tool.name in tools:
                raise ConfigError(f"environment.params.tools has several tools called {tool.name!r}; rename one")
            tools[tool.name] = tool
    if not tools:
        raise ConfigError(
            f'environment.params.tools is empty; name some of {", ".join(BUILT_IN)}, or your own as "module:function"'
        )
    return tools


def _tools(entry: str | Mapping[str, Any]) -> list[Tool]:
    settings = {"name": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, Mapping) else {}
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(
            f'environment.params.tools holds {entry!r:.80}; expected a name, or a table such as {{ name = "search", '
            'index = "facts.sqlite" }'
        )
    if name.startswith("mcp:"):
        name, settings["target"] = "mcp", name.removeprefix("mcp:")
    if ":" in name:
        if settings:
            raise ConfigError(
                f"the tool {name!r} has the settings {', '.join(settings)}; a tool of your own takes none"
            )
        return user_tools(name)
    if name not in BUILT_IN:
        near = get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else 'your own tool is written "module:function"'
        raise ConfigError(f"environment.params.tools names {name!r}; expected one of {', '.join(BUILT_IN)}: {hint}")
    try:
        return BUILT_IN[name](**settings)
    except TypeError as error:
        raise ConfigError(f"the tool {name} does not take these settings, {settings}: {error}") from error
