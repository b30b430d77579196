"""Wire formats: calls in the text that a model writes, and how they are read.

`tags` is `<search>rivers of Poland</search>` (Search-R1, arXiv 2503.09516; ReSearch, arXiv 2503.19470), which a small
model learns; `hermes` is `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as vLLM's parser `hermes` reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

from coterie.tools.base import Call, Tool

ANSWER = "<answer>"
"""What follows the first of these is the answer, and no call."""
LONGEST = 20_000
"""Characters of a call's text; a longer one is malformed."""
_TAG = re.compile(r"<(/?)([A-Za-z_]\w*)>")


class WireFormat(Protocol):
    """Reads calls from a completion."""

    def parse(self, text: str, tools: Mapping[str, Tool]) -> list[Call]:
        """The calls in order, the malformed ones among them; none where the completion is an answer."""
        ...

    def example(self, tool: Tool) -> str:
        """A call of a tool in this format, for messages."""
        ...


def before_answer(text: str) -> str:
    """The part in which calls count: a call after the answer is none."""
    return text.partition(ANSWER)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """`<name>argument</name>`; several arguments as a JSON object between the tags.

    With `lenient`, a call that ends with the text instead of its closing tag counts, as where `sampling.stop` holds
    that tag or the turn was cut.
    """

    lenient: bool = True

    def parse(self, text: str, tools: Mapping[str, Tool]) -> list[Call]:
        calls: list[Call] = []
        opening: re.Match[str] | None = None
        text = before_answer(text)
        closed = {tag[2] for tag in _TAG.finditer(text) if tag[1]}
        for tag in _TAG.finditer(text):
            closes, name = tag[1] == "/", tag[2]
            if opening is None:
                if name in tools and not closes:
                    opening = tag
                elif not closes and name in closed:
                    calls += self._stranger(text, tag, tools)
            elif closes and name == opening[2]:
                calls.append(self._call(text[opening.start() : tag.end()], text[opening.end() : tag.start()], tools))
                opening = None
            elif not closes and name in tools:
                span = text[opening.start() : tag.end()]
                problem = f"<{opening[2]}> holds another <{name}>; close a call before the next one"
                calls.append(Call(text=span, name=opening[2], problem=problem))
                opening = None if name != opening[2] else opening
                break
        else:
            if opening is not None:
                calls.append(self._unclosed(text[opening.start() :], text[opening.end() :], opening[2], tools))
        return calls

    def example(self, tool: Tool) -> str:
        names = tool.required or list(tool.parameters)
        inside = names[0] if len(names) == 1 else json.dumps(dict.fromkeys(names, "…"), ensure_ascii=False)
        return f"<{tool.name}>{inside if names else ''}</{tool.name}>"

    def _unclosed(self, span: str, inside: str, name: str, tools: Mapping[str, Tool]) -> Call:
        if self.lenient and inside.strip():
            return self._call(span, inside, {name: tools[name]}, name)
        return Call(text=span, name=name, problem=f"<{name}> has no end; write {self.example(tools[name])}")

    def _call(self, span: str, inside: str, tools: Mapping[str, Tool], name: str = "") -> Call:
        tool = tools[name or span[1 : span.index(">")]]
        inside = inside.strip()
        if len(inside) > LONGEST:
            return _too_long(span, tool.name)
        if inside.startswith("{") and tool.parameters:
            arguments = _json_object(inside)
            if arguments is not None and (arguments.keys() & tool.parameters.keys() or len(tool.parameters) > 1):
                return Call(text=span, name=tool.name, arguments=arguments)
        if not inside and not tool.required:
            return Call(text=span, name=tool.name)
        names = tool.required if len(tool.required) == 1 else list(tool.parameters)
        if len(names) != 1:
            return Call(text=span, name=tool.name, problem=f"expected {self.example(tool)}")
        return Call(text=span, name=tool.name, arguments={names[0]: inside})

    def _stranger(self, text: str, tag: re.Match[str], tools: Mapping[str, Tool]) -> Iterator[Call]:
        """A tag that is nearly a tool's name is a call of an unknown tool; others are the model's own layout."""
        end = text.find(f"</{tag[2]}>", tag.end()) + len(tag[2]) + 3
        if end > tag.end() and get_close_matches(tag[2].lower(), tools, n=1, cutoff=0.75):
            yield Call(text=text[tag.start() : end], name=tag[2], problem=unknown_tool(tag[2], tools))


_BLOCK = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_FENCE = re.compile(r"```(?:json|tool_call)?\s*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hermes:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number a turn.

    With `lenient`, a missing closing tag, a fenced block of JSON and bare JSON count too, where they name a tool: what
    Qwen2.5-Coder-0.5B writes.
    """

    lenient: bool = True

    def parse(self, text: str, tools: Mapping[str, Tool]) -> list[Call]:
        text = before_answer(text)
        calls = []
        for block in _BLOCK.finditer(text):
            if not self.lenient and not block[2]:
                calls.append(Call(text=block[0], problem="<tool_call> has no end; write </tool_call> behind the JSON"))
            else:
                calls += self._calls(block[0], block[1], tools)
        if calls or not self.lenient:
            return calls
        for fence in _FENCE.finditer(text):
            calls += [call for call in self._calls(fence[0], fence[1], tools) if call.name]
        bare = text.strip()
        if not calls and bare.startswith(("{", "[{")) and '"name"' in bare:
            calls = self._calls(bare, bare, tools)
        return calls

    def example(self, tool: Tool) -> str:
        arguments = dict.fromkeys(tool.required or tool.parameters, "…")
        return f"<tool_call>{json.dumps({'name': tool.name, 'arguments': arguments}, ensure_ascii=False)}</tool_call>"

    def _calls(self, span: str, inside: str, tools: Mapping[str, Tool]) -> list[Call]:
        if len(inside) > LONGEST:
            return [_too_long(span, "")]
        try:
            value = json.loads(inside.strip())
        except (ValueError, RecursionError) as error:
            where = f" ({error})"[:80] if isinstance(error, ValueError) else ""
            example = next(iter(tools.values()))
            return [Call(text=span, problem=f"the call is no JSON{where}; write {self.example(example)}")]
        items = value if isinstance(value, list) and self.lenient else [value]
        return [self._call(span, item, tools) for item in items] or [Call(text=span, problem="the call is empty")]

    def _call(self, span: str, item: Any, tools: Mapping[str, Tool]) -> Call:
        if isinstance(item, dict) and self.lenient and isinstance(item.get("function"), dict):
            item = item["function"]  # OpenAI's form of a call
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            return Call(text=span, problem='the call has no name; write {"name": …, "arguments": {…}}')
        arguments = item.get("arguments", item.get("parameters", {}) if self.lenient else {})
        if isinstance(arguments, str) and self.lenient:
            arguments = _json_object(arguments)
        if not isinstance(arguments, dict):
            return Call(text=span, name=name, problem="the call's arguments are no JSON object")
        return Call(text=span, name=name, arguments=arguments)


FORMATS = {"tags": Tags, "hermes": Hermes}
"""Names of the setting `format`."""


def unknown_tool(name: str, tools: Mapping[str, Tool]) -> str:
    """There is no such tool, and what there is."""
    near = get_close_matches(name, tools, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no tool {name[:40]!r}; there is {', '.join(tools)}{hint}"


def _too_long(span: str, name: str) -> Call:
    problem = f"the call has more than {LONGEST} characters"
    return Call(text=span[:LONGEST], name=name, problem=problem)


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
