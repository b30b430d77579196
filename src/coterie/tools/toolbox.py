"""Toolbox: the tools of a run with their limits, and the calls of one episode."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.tools.base import Call, Result, Tool, ToolUnavailableError, as_text, clean
from coterie.tools.tool_pool import Request, ToolPool
from coterie.tools.wire import WireFormat, unknown_tool


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Limits of calls."""

    turn: int = 4
    """Calls of a turn that run; further ones get an error as their result."""
    episode: int = 8
    """Calls of an episode that run."""
    result: int = 1000
    """Characters of a result; the rest is cut off."""
    timeout_s: float = 10.0
    """Deadline of a call of a user's tool."""


class Toolbox:
    """The tools of a run.

    Args:
        tools: by name.
        workers: processes for users' tools.
    """

    def __init__(self, tools: Mapping[str, Tool], wire: WireFormat, limits: CallLimits, *, workers: int = 2) -> None:
        self.tools, self.wire, self.limits = dict(tools), wire, limits
        targets = list(dict.fromkeys(tool.target for tool in tools.values() if tool.target))
        self.pool = ToolPool(targets, workers=workers, timeout_s=limits.timeout_s, limit=limits.result)
        self._numbers, self._lock = itertools.count(), threading.Lock()

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """JSON schemas of the tools, for a chat template."""
        return [dict(tool.schema) for tool in self.tools.values()]

    def calls(self, text: str) -> list[Call]:
        """Calls in a completion; none where it is an answer."""
        return self.wire.parse(text, self.tools)

    def episode(self, row: Mapping[str, Any]) -> EpisodeCalls:
        """The calls of a new episode.

        Args:
            row: columns of its prompt, for the `reset` of a class.
        """
        with self._lock:
            return EpisodeCalls(toolbox=self, key=str(next(self._numbers)), row=row)


@dataclass(slots=True, kw_only=True)
class EpisodeCalls:
    """Calls of one episode, counted against its limits."""

    toolbox: Toolbox
    key: str
    row: Mapping[str, Any]
    count: int = 0
    """Calls that ran."""
    instances: dict[type, Any] = field(default_factory=dict)
    """Of built-in tools with state."""
    past: dict[str, list[tuple[str, Mapping[str, Any]]]] = field(default_factory=dict)
    """Calls of users' classes, by target, with which a killed worker's state is made again."""

    @property
    def spent(self) -> bool:
        """True if no call is left."""
        return self.count >= self.toolbox.limits.episode

    def run(self, calls: Sequence[Call]) -> list[Result]:
        """Results of a turn's calls, in order. Users' tools run at once; a fault of a call is its result.

        Raises:
            ToolUnavailableError: the infrastructure of a tool failed.
        """
        results: dict[int, Result] = {}
        requests: dict[int, Request] = {}
        for number, call in enumerate(calls):
            prepared = self._prepared(number, call)
            if isinstance(prepared, Result):
                results[number] = prepared
            else:
                requests[number] = prepared
        if requests:
            pairs = zip(requests, self.toolbox.pool.run(list(requests.values())), strict=True)
            results |= dict(pairs)
        limit = self.toolbox.limits.result
        return [
            Result(content=clean(results[number].content, limit), error=results[number].error)
            for number in range(len(calls))
        ]

    def refused(self, calls: Sequence[Call]) -> list[Result]:
        """Results of calls while the tools are switched off; they count as calls."""
        self.count += len(calls)
        return [Result(content="Error: the tool is switched off", error="off") for _ in calls]

    def end(self) -> None:
        """Drop the state of tools with state."""
        if self.past:
            self.toolbox.pool.forget(self.key)

    def _prepared(self, number: int, call: Call) -> Result | Request:
        """The result of a built-in tool or of a call that does not run, else the request for a worker."""
        tools, limits = self.toolbox.tools, self.toolbox.limits
        if call.problem is not None:
            stranger = bool(call.name) and call.name not in tools
            return Result(content=f"Error: {call.problem}", error="unknown_tool" if stranger else "malformed")
        tool = tools.get(call.name)
        if tool is None:
            return Result(content=f"Error: {unknown_tool(call.name, tools)}", error="unknown_tool")
        if number >= limits.turn or self.spent:
            most = f"{limits.turn} a turn" if not self.spent else f"{limits.episode} in all"
            return Result(content=f"Error: no call is left (at most {most}); answer now", error="limit")
        try:
            arguments = tool.checked(call.arguments)
        except ValueError as error:
            return Result(content=f"Error: {error}", error="arguments")
        self.count += 1
        if tool.target:
            return self._request(tool, arguments)
        return self._local(tool, arguments)

    def _local(self, tool: Tool, arguments: dict[str, Any]) -> Result:
        try:
            if tool.function is not None:
                value = tool.function(**arguments)
            else:
                assert tool.owner is not None
                instance = self.instances.setdefault(tool.owner, tool.owner())
                value = getattr(instance, tool.method)(**arguments)
        except ToolUnavailableError:
            raise
        except ValueError as error:
            return Result(content=f"Error: {error}", error="raised")
        return value if isinstance(value, Result) else as_text(value, self.toolbox.limits.result)

    def _request(self, tool: Tool, arguments: dict[str, Any]) -> Request:
        return Request(
            target=tool.target,
            method=tool.method,
            arguments=arguments,
            episode=self.key,
            row=self.row,
            before=self.past.setdefault(tool.target, []) if tool.method else [],
        )
