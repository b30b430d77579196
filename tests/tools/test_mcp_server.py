"""MCP servers as tools: real ones made by the SDK, over standard input and HTTP, good ones and bad ones."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coterie.errors import ConfigError
from coterie.tools import mcp_server
from coterie.tools.base import Result, ToolUnavailableError
from coterie.tools.mcp_server import Address, McpServer, shown
from coterie.tools.registry import tools_for
from coterie.tools.signatures import arguments_of_schema
from coterie.tools.toolbox import CallLimits, Toolbox
from coterie.tools.wire import Tags

SAMPLES = Path(__file__).parent / "mcp_samples.py"
STDIO = f"mcp:{sys.executable} {SAMPLES}"


@pytest.fixture(autouse=True)
def servers() -> Iterator[None]:
    """Ends the servers of a test."""
    made: list[McpServer] = []
    inner = McpServer.__init__

    def remember(self: McpServer, address: Address) -> None:
        inner(self, address)
        made.append(self)

    McpServer.__init__ = remember
    yield
    McpServer.__init__ = inner
    for server in made:
        server.close()
    mcp_server.server_for.cache_clear()


def box_of(entry: Any) -> Toolbox:
    return Toolbox(tools_for([entry]), Tags(), CallLimits(turn=9, episode=99, result=60), workers=1)


def run(box: Toolbox, text: str) -> list[Result]:
    return box.episode({}).run(box.calls(text))


def test_the_tools_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mcp")
    monkeypatch.setenv("SHOWN", "yes")
    monkeypatch.setenv("HIDDEN", "secret")
    box = box_of({"name": STDIO, "env": ["SHOWN"], "timeout_s": 60.0})
    hasty = box_of({"name": STDIO, "env": ["SHOWN"], "timeout_s": 1.0})
    assert list(box.tools) == ["add", "say_it", "environment", "picture", "unruly"]
    assert box.tools["add"].signature == "add(a, b?)"
    assert box.schemas[0]["function"]["parameters"]["properties"]["a"]["type"] == "integer"
    assert run(box, '<add>41</add><add>{"a": 1, "b": "2"}</add><say_it>{"text": "a", "how": "loud"}</say_it>') == [
        Result(content="42"),
        Result(content="3"),
        Result(content="A"),
    ]
    wrong = run(box, '<add>much</add><say_it>{"text": "a", "how": "odd"}</say_it><add>{"a": 1, "c": 2}</add>')
    assert [result.error for result in wrong] == ["arguments"] * 3
    results = run(box, "<environment>SHOWN</environment><environment>HIDDEN</environment><picture></picture>")
    assert [result.content for result in results] == [
        "yes",
        "unset",
        "Error: the tool returned image/png, expected text",
    ]
    (raised, flood) = run(box, "<unruly>raise</unruly><unruly>flood</unruly>")
    assert raised.error == "raised"
    assert raised.content.startswith("Error: ")
    assert flood == Result(content="y" * 58 + " …")
    with ThreadPoolExecutor(32) as executor:
        many = list(executor.map(lambda number: run(box, f"<add>{number}</add>")[0].content, range(300)))
    assert many == [str(number + 1) for number in range(300)]
    died, after = run(box, "<unruly>die</unruly><add>1</add>")
    assert (died.error, after.content) == ("crashed", "2")
    started = time.monotonic()
    assert [run(hasty, "<unruly>hang</unruly>")[0].error for _ in range(2)] == ["timeout"] * 2
    assert run(box, "<add>1</add>")[0].content == "2", "a server that hangs is started again"
    assert time.monotonic() - started < 60


def test_a_server_over_http() -> None:
    pytest.importorskip("mcp")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with subprocess.Popen([sys.executable, str(SAMPLES), str(port)], stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}/mcp"
        for _ in range(200):
            try:
                box = box_of({"name": "mcp", "url": url, "tools": ["unruly", "add"]})
                break
            except ConfigError:
                time.sleep(0.1)
        assert list(box.tools) == ["unruly", "add"], "the settings' order"
        assert run(box, "<add>1</add>") == [Result(content="2")]
        process.kill()
        process.wait()
        with pytest.raises(ToolUnavailableError, match=f"{url} is gone|{url} cannot be used"):
            run(box, "<add>1</add>")
    mcp_server.server_for.cache_clear()
    with pytest.raises(ConfigError, match=f"{url} cannot be used: .*; start it, or correct its command"):
        box_of(f"mcp:{url}")


def test_what_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mcp")
    with pytest.raises(ConfigError, match="cannot be used: FileNotFoundError"):
        box_of("mcp:no-such-program-at-all")
    broken = [sys.executable, "-c", "import sys; sys.exit('no licence')"]
    with pytest.raises(ConfigError, match="its last words: no licence"):
        box_of({"name": "mcp", "command": broken})
    with pytest.raises(ConfigError, match="has no tool ad; it has add, say-it"):
        box_of({"name": STDIO, "tools": ["ad"]})
    monkeypatch.setattr(mcp_server, "find_spec", lambda name: None)
    mcp_server.server_for.cache_clear()
    with pytest.raises(ConfigError, match=r"needs the package mcp, which is not installed: .*install"):
        box_of(STDIO)


@pytest.mark.parametrize(
    "entry",
    [
        "mcp",
        {"name": "mcp", "command": "python server.py"},
        {"name": "mcp", "command": ["a"], "url": "http://b"},
        {"name": "mcp", "url": "http://b", "timeout_s": 0},
        {"name": "mcp", "url": "http://b", "token": "NO_SUCH_VARIABLE"},
    ],
)
def test_settings_that_are_refused(entry: Any) -> None:
    with pytest.raises(ConfigError, match="expected one of command"):
        tools_for([entry])


def reply(*blocks: dict[str, Any], structured: Any = None, is_error: bool = False) -> SimpleNamespace:
    content = [SimpleNamespace(**block) for block in blocks]
    return SimpleNamespace(content=content, structured_content=structured, is_error=is_error)


@pytest.mark.parametrize(
    ("given", "result"),
    [
        (reply({"type": "text", "text": "a"}, {"type": "text", "text": "b"}), Result(content="a\nb")),
        (reply({"type": "text", "text": "no"}, is_error=True), Result(content="Error: no", error="raised")),
        (reply(structured={"n": 3}), Result(content='{"n": 3}')),
        (reply(), Result(content="")),
        (reply({"type": "resource", "resource": SimpleNamespace(text="r", uri="u")}), Result(content="r")),
        (reply({"type": "resource_link", "uri": "file:///a"}), Result(content="file:///a")),
        (
            reply({"type": "audio", "mime_type": "audio/wav"}),
            Result(content="Error: the tool returned audio/wav, expected text", error="type"),
        ),
    ],
)
def test_a_reply_is_text(given: SimpleNamespace, result: Result) -> None:
    assert shown(given) == result


def test_arguments_are_checked_as_far_as_the_schema_is_plain() -> None:
    properties = {
        "schema": {"type": "string"},
        "max-results": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "deep": {"$ref": "#/$defs/Deep"},
        "mood": {"enum": ["good", "bad"]},
    }
    model = arguments_of_schema({"properties": properties, "required": ["schema"]}, "odd")
    given = {"schema": 3, "max-results": "4", "deep": [1], "mood": "good"}
    assert model.model_validate(given).model_dump(by_alias=True) == {**given, "schema": "3", "max-results": 4}
    for wrong in ({}, {"schema": "a", "mood": "so"}, {"schema": "a", "other": 1}, {"schema": "a", "max-results": "x"}):
        with pytest.raises(ValueError, match="validation error"):
            model.model_validate(wrong)
