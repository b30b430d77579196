"""Records of tool use: tools, calls, results, and their form in messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from coterie.types import Message


class ToolUnavailableError(Exception):
    """A fault of the tool's own infrastructure, such as a server that does not answer: the episode ends as an error of
    its environment, and no reward comes of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool with its schema."""

    name: str
    schema: Mapping[str, Any]
    """JSON schema as transformers, TRL and vLLM have it: `{"type": "function", "function": {…}}`."""
    arguments: type[BaseModel]
    """Checks and converts the arguments of a call."""
    function: Callable[..., Any] | None = None
    """A built-in tool's own, called in this process; None where a worker process calls `target`, or an instance of
    `owner` does."""
    target: str = ""
    """`module:function` or `module:Class` of a user's tool."""
    method: str = ""
    """Public method, where the target or owner is a class."""
    owner: type | None = None
    """Class of a built-in tool with state, of which an episode has an instance in this process."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Properties of the schema by parameter."""
        return self.schema["function"]["parameters"].get("properties", {})

    @property
    def required(self) -> list[str]:
        """Names of the required parameters."""
        return self.schema["function"]["parameters"].get("required", [])

    @property
    def signature(self) -> str:
        """`search(query)`; optional parameters have a question mark."""
        names = [name if name in self.required else f"{name}?" for name in self.parameters]
        return f"{self.name}({', '.join(names)})"

    def checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, converted to the types of the schema.

        Raises:
            ValueError: says in a line what is wrong, for the model.
        """
        try:
            return self.arguments.model_validate(dict(arguments)).model_dump(exclude_unset=True, by_alias=True)
        except ValidationError as error:
            faults = [_fault(detail) for detail in error.errors(include_url=False)[:3]]
            raise ValueError(f"{self.signature}: {'; '.join(faults)}") from error


def _fault(detail: Any) -> str:
    name = ".".join(map(str, detail["loc"])) or "arguments"
    if detail["type"] == "missing":
        return f"{name} is missing"
    if detail["type"] == "extra_forbidden":
        return f"{name} is no parameter"
    return f"{name}: {detail['msg'][:120]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call as the model wrote it."""

    text: str
    """The exact span of the completion."""
    name: str = ""
    """Of the tool; empty where none can be read."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Reason for which it cannot be read; None where it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a call."""

    content: str
    """Text that the model is shown: the tool's own, or the error."""
    error: str | None = None
    """Kind of the failure: `malformed`, `unknown_tool`, `arguments`, `limit`, `raised`, `timeout`, `crashed`, `type`,
    `off`; None where the tool returned."""


def assistant_calls(calls: Sequence[Call], turn: int) -> list[dict[str, Any]]:
    """`tool_calls` of an assistant's message, in the form that transformers, TRL and vLLM share.

    `text` is the call as it stands in the message's content, which the content keeps: a chat template is not shown a
    call twice. A call that could not be read has its problem in `error`.

    Args:
        turn: of the episode, from 0; ids are unique within it.
    """
    return [
        {"type": "function", "id": call_id(turn, number), "text": call.text}
        | {"function": {"name": call.name, "arguments": dict(call.arguments)}}
        | ({} if call.problem is None else {"error": call.problem})
        for number, call in enumerate(calls)
    ]


def call_id(turn: int, number: int) -> str:
    """Id of a call: `call_0_1` is the second one of the first turn."""
    return f"call_{turn}_{number}"


def tool_messages(calls: Sequence[Call], results: Sequence[Result], turn: int, role: str) -> tuple[Message, ...]:
    """The messages that show results to the model, one a call; `error` is the kind of a failure."""
    messages: list[Message] = []
    for number, (call, result) in enumerate(zip(calls, results, strict=True)):
        message: Message = {"role": role, "content": result.content, "tool_call_id": call_id(turn, number)}
        if call.name:
            message["name"] = call.name
        if result.error is not None:
            message["error"] = result.error
        messages.append(message)
    return tuple(messages)


def portable(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """An episode in the strict form of transformers, TRL and vLLM: calls stand in `tool_calls` alone, and no longer in
    the content; a call that could not be read stays text.

    >>> call = {"type": "function", "id": "call_0_0", "text": "<search>Oder</search>"}
    >>> call["function"] = {"name": "search", "arguments": {"query": "Oder"}}
    >>> (message,) = portable([{"role": "assistant", "content": "So <search>Oder</search>", "tool_calls": [call]}])
    >>> message["content"], message["tool_calls"][0]["function"]["name"]
    ('So', 'search')
    """
    out: list[dict[str, Any]] = []
    for message in messages:
        plain = {key: value for key, value in message.items() if key != "error"}
        calls = [call for call in message.get("tool_calls", ()) if "error" not in call]
        if "tool_calls" in plain:
            content = message["content"]
            for call in calls:
                content = content.replace(call.get("text", ""), "", 1)
            plain["content"] = content.strip() if calls else content
            plain["tool_calls"] = [{key: call[key] for key in ("type", "id", "function")} for call in calls]
            if not calls:
                del plain["tool_calls"]
        out.append(plain)
    return out


def as_text(value: Any, limit: int) -> Result:
    """What a tool returned, as text of at most `limit` characters: text as it is, other plain values as JSON."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, bytes | bytearray | memoryview):
        return Result(content="Error: the tool returned bytes, expected text", error="type")
    else:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return Result(content=f"Error: the tool returned a {type(value).__name__}, expected text", error="type")
    return Result(content=clean(text, limit))


def clean(text: str, limit: int) -> str:
    """Text that any tokenizer can encode, of at most `limit` characters; what is cut off ends in ` …`."""
    cut = text[: limit + 1]
    cut = cut.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
    return f"{cut[: max(limit - 2, 0)].rstrip()} …" if len(text) > limit else cut
