"""Chat templates for tools: the model's own where it has tools, else a small Hermes template for ChatML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coterie.data.chat import Chat
from coterie.errors import DataError
from coterie.types import Message

HERMES = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n\\n' }}{%- endif %}
{{- 'You can call these functions:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\nA call is a JSON object in tags:\\n<tool_call>\\n{"name": <name>, "arguments": <object>}\\n' }}
{{- '</tool_call><|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message['role'] == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- elif message['role'] != 'system' or not loop.first %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
{%- for call in message['tool_calls'] or [] %}
{%- set function = call['function'] %}
{{- '\\n<tool_call>\\n{"name": "' + function['name'] + '", "arguments": ' + (function['arguments'] | tojson) + '}' }}
{{- '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
"""Hermes' format (as Qwen2.5's own template has it) for ChatML models whose template knows no tools."""
_NAME = "weather_in_a_city"
PROBE = {
    "type": "function",
    "function": {"name": _NAME, "description": "", "parameters": {"type": "object", "properties": {}}},
}


def equip(chat: Chat, schemas: Sequence[Mapping[str, Any]] = (), preamble: str = "", role: str = "tool") -> Chat:
    """The chat with tools: from here on every conversation is rendered with them.

    Args:
        schemas: of the tools, for the chat template; where the model's own ignores them, `HERMES` takes its place.
        preamble: text that goes before the system message.
        role: of the messages that show results.

    Returns:
        The chat itself, or a new one with another template.

    Raises:
        DataError: the template cannot show tools, or messages of this role.
    """
    if schemas and not _shows_tools(chat):
        chat = _with_hermes(chat)
    chat.tools, chat.preamble = [dict(schema) for schema in schemas], preamble
    _require_role(chat, role)
    return chat


def _shows_tools(chat: Chat) -> bool:
    """True if the template writes the tools that it is given."""
    before, chat.tools = chat.tools, [PROBE]
    try:
        return _NAME in chat.tokenizer.decode(chat.render([Message(role="user", content="How warm is it?")]))
    except DataError:
        return False
    finally:
        chat.tools = before


def _with_hermes(chat: Chat) -> Chat:
    """The chat with the shipped template."""
    if "<|im_start|>" not in chat.template:
        raise DataError(
            "the model's chat template knows no tools, and it is not ChatML, for which coterie has a template with "
            'tools; set environment.params.format = "tags", or give the model\'s folder a chat_template with tools'
        )
    chat.tokenizer.chat_template = HERMES
    equipped = Chat(chat.tokenizer, stop_ids=chat.stop_ids)
    equipped.silent_ids = chat.silent_ids | equipped.silent_ids
    equipped.notes.append("the chat template knows no tools: coterie's Hermes template for ChatML takes its place")
    return equipped  # without files: the tokenizer is saved with this template, not copied with the former one


def _require_role(chat: Chat, role: str) -> None:
    shown = "the tool's own words"
    call = {"type": "function", "id": "call_0_0", "function": {"name": _NAME, "arguments": {}}, "text": "<call>"}
    messages: list[Message] = [
        Message(role="user", content="How warm is it?"),
        Message(role="assistant", content="<call>", tool_calls=[call]),
        Message(role=role, content=shown, tool_call_id="call_0_0", name=_NAME),
    ]
    try:
        text = chat.tokenizer.decode(chat.render(messages))
    except DataError as error:
        raise DataError(f'{error}; or set environment.params.role = "user"') from error
    if shown not in text:
        raise DataError(
            f"the model's chat template leaves out messages of the role {role!r}, so no result would be seen; set "
            'environment.params.role = "user"'
        )
