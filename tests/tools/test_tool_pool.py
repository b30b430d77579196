"""Tools of a user in worker processes: what they may do wrong costs a call, no more."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coterie.config.user_functions import search_in
from coterie.errors import ConfigError
from coterie.tools.base import Call, Result
from coterie.tools.registry import tools_for
from coterie.tools.tool_pool import ToolPool
from coterie.tools.toolbox import CallLimits, Toolbox
from coterie.tools.wire import Tags


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    search_in([str(Path(__file__).parent)])
    yield
    search_in([])


@pytest.fixture(scope="module")
def box() -> Iterator[Toolbox]:
    search_in([str(Path(__file__).parent)])
    tools = tools_for(["tool_samples:convert", "tool_samples:unruly", "tool_samples:Shop", "calculator", "notes"])
    toolbox = Toolbox(tools, Tags(), CallLimits(turn=9, episode=99, result=60, timeout_s=1.0), workers=2)
    yield toolbox
    toolbox.pool.close()


def run(box: Toolbox, *texts: str) -> list[Result]:
    session = box.episode({})
    results = session.run([call for text in texts for call in box.calls(text)])
    session.end()
    return results


@pytest.mark.parametrize(
    ("kind", "error", "content"),
    [
        ("raise", "raised", "Error: raised KeyError: 'no such thing'"),
        ("exit", "raised", "Error: raised SystemExit: 2"),
        ("die", "crashed", "Error: the tool ended its worker process with exit code 3"),
        ("hang", "timeout", "Error: the tool did not return within 1 s and was killed"),
        ("flood", None, "flood"),
        ("long", None, "y" * 58 + " …"),
        ("bytes", "type", "Error: the tool returned bytes, expected text"),
        ("object", "type", "Error: the tool returned a object, expected text"),
        ("none", None, "null"),
        ("list", None, '[1, "a"]'),
        ("nul", None, "a\ufffdb?"),
    ],
)
def test_what_a_tool_does_is_its_result(box: Toolbox, kind: str, error: str | None, content: str) -> None:
    started = time.monotonic()
    (result,) = run(box, f"<unruly>{kind}</unruly>")
    assert result.error == error
    assert result.content.startswith(content[:60])
    assert time.monotonic() - started < 30
    (after,) = run(box, "<convert>8</convert>")
    assert after == Result(content="5.0 mi")


def test_calls_of_a_turn_keep_their_order(box: Toolbox) -> None:
    results = run(box, "<convert>8</convert><calculator>1+1</calculator><unruly>die</unruly><convert>16.09</convert>")
    assert [result.content[:6] for result in results] == ["5.0 mi", "2", "Error:", "10.0 m"]


def test_state_is_of_an_episode_and_outlives_a_kill(box: Toolbox) -> None:
    first, second = box.episode({"purse": 20}), box.episode({})
    calls = lambda text: box.calls(text)  # noqa: E731
    assert [r.content for r in first.run(calls("<buy>5</buy><money></money>"))] == ["15 left", "15"]
    assert [r.content for r in second.run(calls("<money></money>"))] == ["10"]
    assert first.run(calls("<buy>99</buy>"))[0].error == "raised"
    for pid in box.pool.pids:
        os.kill(pid, 9)
    killed = first.run(calls("<money></money>"))
    again = first.run(calls("<money></money>"))
    assert {killed[0].error, again[0].error} <= {None, "crashed"}
    assert again[0].content == "15"
    assert [result.error for result in first.run(calls("<buy>-1</buy><money></money>"))] == ["timeout", None]
    assert first.run(calls("<buy>1</buy><money></money>"))[1].content == "14"
    first.end()
    second.end()


def test_notes_are_of_an_episode(box: Toolbox) -> None:
    session = box.episode({})
    assert [r.content for r in session.run(box.calls("<note>a</note><note>b</note><notes></notes>"))][
        -1
    ] == "1. a\n2. b"
    assert run(box, "<notes></notes>")[0].content == "no notes yet"


def test_limits_hold() -> None:
    toolbox = Toolbox(tools_for(["calculator"]), Tags(), CallLimits(turn=2, episode=3))
    session = toolbox.episode({})
    first = session.run(toolbox.calls("<calculator>1</calculator>" * 3))
    assert [result.error for result in first] == [None, None, "limit"]
    second = session.run(toolbox.calls("<calculator>1</calculator>" * 2))
    assert [result.error for result in second] == [None, "limit"]
    assert session.spent
    assert toolbox.pool.pids == []


def test_faults_of_a_call_are_results(box: Toolbox) -> None:
    results = run(box, "<convert>much</convert><unrul>x</unrul><buy></buy><calculator>1/0</calculator>")
    assert [result.error for result in results] == ["arguments", "unknown_tool", "arguments", "raised"]


def test_a_module_that_cannot_be_imported_stops_the_run() -> None:
    pool = ToolPool(["tool_samples:nothing"], workers=1, timeout_s=1.0, limit=10)
    toolbox = Toolbox(tools_for(["tool_samples:convert"]), Tags(), CallLimits())
    toolbox.pool = pool
    with pytest.raises(ConfigError, match="no function 'nothing'"):
        toolbox.episode({}).run([Call(text="", name="convert", arguments={"value": 1})])
    assert pool.pids == []
