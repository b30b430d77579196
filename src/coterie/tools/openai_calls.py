"""Calls of tools between OpenAI's form and the text that a model reads and writes (Hermes' `<tool_call>`)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPENING, CLOSING = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a model's text says."""

    content: str
    """Before the first call; all of it where there is none."""
    calls: tuple[dict[str, Any], ...] = ()
    """OpenAI's `tool_calls`."""

    def message(self) -> dict[str, Any]:
        """The assistant's message in OpenAI's form."""
        if not self.calls:
            return {"role": "assistant", "content": self.content}
        return {"role": "assistant", "content": self.content or None, "tool_calls": list(self.calls)}


def read_calls(text: str, tools: Collection[str]) -> Reading:
    """The calls in a text, if all of them can be read and name a tool; else the text, as the model wrote it.

    >>> text = 'Let me see. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    >>> read_calls(text, ["add"]).content, read_calls(text, ["add"]).calls[0]["function"]["arguments"]
    ('Let me see.', '{"a": 1}')
    >>> read_calls(text, []).calls
    ()
    """
    content, *blocks = text.split(OPENING)
    calls = []
    for block in blocks:
        inside, end, rest = block.partition(CLOSING)
        call = _call(inside, tools) if end and not rest.strip() else None
        if call is None:
            return Reading(content=text)
        calls.append(call)
    return Reading(content=content.strip() if calls else text, calls=tuple(calls))


def _call(inside: str, tools: Collection[str]) -> dict[str, Any] | None:
    try:
        call = json.loads(inside)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or call.get("name") not in tools or not isinstance(call.get("arguments"), dict):
        return None
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(8)}", "type": "function", "function": function}


def tools_in_words(tools: Sequence[Mapping[str, Any]]) -> str:
    """Text of a system message that tells a model of its tools, for any chat template."""
    schemas = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        f"You can call these functions:\n<tools>\n{schemas}\n</tools>\nA call is a JSON object in tags:\n{OPENING}\n"
        f'{{"name": <name>, "arguments": <object>}}\n{CLOSING}'
    )


def results_in_words(results: Sequence[str]) -> str:
    """Text of a user's message with the results of calls."""
    return "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)
