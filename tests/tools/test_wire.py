"""Calls in what a model writes: both formats, and malformed calls of every kind."""

from __future__ import annotations

import json

import pytest
from tool_samples import convert, undocumented

from coterie.errors import ConfigError
from coterie.tools.base import Call, as_text, assistant_calls, clean, portable
from coterie.tools.calculator import calculator
from coterie.tools.registry import BUILT_IN, tools_for
from coterie.tools.signatures import tool_of
from coterie.tools.wire import LONGEST, Hermes, Tags
from coterie.types import Message


def look(query: str, year: int = 2000) -> str:
    """Look something up.

    Args:
        query: the words
        year: of the edition
    """
    return f"{query} {year}"


TOOLS = {"look": tool_of(look), **tools_for(["calculator", "notes"])}


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<look>rivers</look>", [("look", {"query": "rivers"})]),
        (
            "First <look> a </look> then <calculator>1+1</calculator>.",
            [("look", {"query": "a"}), ("calculator", {"expression": "1+1"})],
        ),
        ('<look>{"query": "a", "year": 1999}</look>', [("look", {"query": "a", "year": 1999})]),
        ("<notes></notes>", [("notes", {})]),
        ("<think>so</think><look>x < y</look>", [("look", {"query": "x < y"})]),
        ("<look>cut off", [("look", {"query": "cut off"})]),
        ("<answer>3</answer><look>late</look>", []),
        ("plain words, <b>bold</b> ones", []),
        ("</look> <answer>x", []),
        ("", []),
    ],
)
def test_tags(text: str, calls: list[tuple[str, dict]]) -> None:
    parsed = Tags().parse(text, TOOLS)
    assert [(call.name, dict(call.arguments)) for call in parsed] == calls
    assert all(call.problem is None and call.text in text for call in parsed)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<look><look>a</look></look>", "holds another"),
        ("<look>", "no end"),
        ("<lookup>a</lookup>", "there is no tool 'lookup'"),
        (f"<look>{'a' * (LONGEST + 1)}</look>", "more than"),
    ],
)
def test_malformed_tags_are_calls_with_a_problem(text: str, problem: str) -> None:
    (call,) = Tags().parse(text, TOOLS)
    assert call.problem is not None
    assert problem in call.problem


def test_strict_tags_want_their_end() -> None:
    (call,) = Tags(lenient=False).parse("<look>cut off", TOOLS)
    assert call.problem == "<look> has no end; write <look>query</look>"


CALL = json.dumps({"name": "look", "arguments": {"query": "a"}})


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", 1, 1),
        (f"Yes. <tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", 2, 2),
        (CALL, 0, 1),
        (f"```json\n{CALL}\n```", 0, 1),
        (f"[{CALL}, {CALL}]", 0, 2),
        (f"<tool_call>{CALL}", -1, 1),
        (f'<tool_call>{{"function": {CALL}}}</tool_call>', -1, 1),
        ('<tool_call>{"name": "look", "arguments": "{\\"query\\": \\"a\\"}"}</tool_call>', -1, 1),
        ('{"a": 1}', 0, 0),
        ("```python\nprint(1)\n```", 0, 0),
        (f"<answer>3</answer><tool_call>{CALL}</tool_call>", 0, 0),
    ],
)
def test_hermes(text: str, strict: int, lenient: int) -> None:
    """Minus one: a call with a problem."""
    for wire, count in ((Hermes(lenient=False), strict), (Hermes(), lenient)):
        calls = wire.parse(text, TOOLS)
        assert len(calls) == abs(count)
        assert all((call.problem is None) == (count > 0) for call in calls)
        assert all(call.name == "look" and dict(call.arguments) == {"query": "a"} for call in calls if count > 0)


@pytest.mark.parametrize(
    "inside",
    [
        '{"name": "look", "argu',
        "",
        "null",
        "3",
        "[]",
        '{"name": 7}',
        '{"arguments": {}}',
        "{" * 5000,
        '{"name": "look", "arguments": [1]}',
    ],
)
def test_malformed_json_is_a_call_with_a_problem(inside: str) -> None:
    (call,) = Hermes().parse(f"<tool_call>{inside}</tool_call>", TOOLS)
    assert call.problem


def test_ten_thousand_calls_are_read_in_a_moment() -> None:
    assert len(Hermes().parse(f"<tool_call>{CALL}</tool_call>" * 10_000, TOOLS)) == 10_000
    assert len(Tags().parse("<look>a</look>" * 10_000, TOOLS)) == 10_000
    assert len(Tags().parse("<x>" * 20_000, TOOLS)) == 0


def test_arguments_are_checked_and_converted() -> None:
    tool = tool_of(convert, target="tool_samples:convert")
    assert tool.checked({"value": "3"}) == {"value": 3.0}
    assert tool.signature == "convert(value, unit?)"
    for arguments, cause in (
        ({}, "value is missing"),
        ({"value": "much"}, "value: Input should be a valid number"),
        ({"value": 1, "unit": "ft"}, "unit: Input should be 'km' or 'mi'"),
        ({"value": 1, "speed": 2}, "speed is no parameter"),
    ):
        with pytest.raises(ValueError, match=cause):
            tool.checked(arguments)


def test_a_schema_is_the_one_of_transformers() -> None:
    assert TOOLS["look"].schema == {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look something up.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "the words"},
                    "year": {"type": "integer", "description": "of the edition"},
                },
                "required": ["query"],
            },
        },
    }


@pytest.mark.parametrize(
    ("entries", "cause"),
    [
        ([], "is empty"),
        (["calculater"], "did you mean 'calculator'"),
        (["calculator", "calculator"], "several tools called"),
        ([3], "expected a name, or a table"),
        ([{"name": "calculator", "digits": 3}], "does not take these settings"),
        (["no_such_module_at_all:f"], "found no module"),
        ([{"name": "tool_samples:convert", "x": 1}], "takes none"),
        (["tool_samples:undocumented"], "no schema"),
        (["tool_samples:nothing"], "no function 'nothing'"),
    ],
)
def test_bad_settings_are_refused(entries: list, cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        tools_for(entries)


def test_a_name_that_the_formats_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be called 'answer'"):
        tool_of(look, name="answer")
    assert undocumented(3) == 3
    assert {"calculator", "notes", "search"} <= BUILT_IN.keys()


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(3 + 4) * 2.5", "17.5"),
        ("0.1 + 0.2", "0.3"),
        ("1/3", "1/3 (about 0.3333333333)"),
        ("2^10 =", "1024"),
        ("1,234,567 × 2", "2469134"),
        ("-7 // 2", "-4"),
        ("max(3, 4) - min(1, 2)", "3"),
        ("round(2.675, 2)", "2.68"),
        ("9 ** 0.5", "3"),
    ],
)
def test_the_calculator_is_exact(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "1 +",
        "__import__('os')",
        "9**9**9",
        "2**100000",
        "(" * 400,
        "x",
        "1/0",
        "5 % 0",
        "0 ** -1",
        "'a' * 3",
        "[1]",
        "1 if 1 else 2",
        "abs()",
        "round(1, 10**9)",
        "1" * 501,
        "1e999999",
        "lambda: 1",
        "True",
    ],
)
def test_the_calculator_refuses_the_rest(expression: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        calculator(expression)


def test_results_are_text_that_can_be_encoded() -> None:
    assert as_text("a\x00b\ud800", 10).content == "a\ufffdb?"
    assert as_text(b"\xff", 50).error == "type"
    assert as_text({1: object()}, 50).error == "type"
    assert as_text([1, None], 50).content == "[1, null]"
    assert clean("y" * 50_000_000, 20) == "y" * 18 + " …"


def test_a_record_becomes_the_shared_form() -> None:
    text = "So <look>a</look> and <look"
    calls = [Call(text="<look>a</look>", name="look", arguments={"query": "a"}), Call(text="<look", problem="no end")]
    message: Message = {"role": "assistant", "content": text, "tool_calls": assistant_calls(calls, 0)}
    (plain,) = portable([message])
    assert plain["content"] == "So  and <look"
    assert plain["tool_calls"] == [
        {"type": "function", "id": "call_0_0", "function": {"name": "look", "arguments": {"query": "a"}}}
    ]
