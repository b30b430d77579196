"""Environment in which the model may call tools before it answers.

[environment]
name = "tools"
params = { tools = ["calculator", { name = "search", index = "geonames-facts" }], format = "tags" }
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from coterie.envs.base import Episode, EpisodeError, Observation
from coterie.errors import ConfigError
from coterie.tools.base import ToolUnavailableError, assistant_calls, tool_messages
from coterie.tools.registry import tools_for
from coterie.tools.signatures import described
from coterie.tools.toolbox import CallLimits, Toolbox
from coterie.tools.wire import FORMATS
from coterie.types import Prompt

EXPLAINED = {
    "tags": "You can call tools. The result of a call comes in the next message. When you know the answer, give it.",
    "hermes": "",
}
"""Sentence before the descriptions of the tools, where the chat template has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """Runs the calls in each completion and shows their results, until a completion has none: that is the answer.

    The environment gives no reward; the reward functions `call_valid`, `call_useful`, `call_needed` and `call_cost`
    judge the calls.
    """

    tools: Sequence[str | Mapping[str, Any]] = ()
    """Names of built-in tools, tables with a name and its settings, or `module:function` and `module:Class`."""
    format: Literal["tags", "hermes"] = "hermes"
    """Wire format of calls."""
    lenient: bool = True
    """Also read calls without a closing tag, and with `hermes` bare JSON and fenced JSON."""
    role: Literal["tool", "user"] = "tool"
    """Role of the messages that show results; `user` for a chat template that knows no other."""
    describe: bool = True
    """Tell the model of its tools in the system message; with `hermes` the chat template does."""
    enabled: bool = True
    """Run calls; false is the control: a call gets the result that the tool is switched off."""
    calls_per_turn: int = 4
    """Most calls of a turn that run."""
    calls_per_episode: int = 8
    """Most calls of an episode that run."""
    result_length: int = 1000
    """Most characters of a result."""
    timeout_s: float = 10.0
    """Deadline of a call of a tool of your own, seconds."""
    workers: int = 2
    """Processes for tools of your own."""
    toolbox: Toolbox = field(init=False)

    def __post_init__(self) -> None:
        numbers = (self.calls_per_turn, self.calls_per_episode, self.result_length, self.workers)
        if min(numbers) < 1 or self.timeout_s <= 0:
            raise ConfigError(
                f"environment.params has calls_per_turn, calls_per_episode, result_length, workers = {numbers} and "
                f"timeout_s = {self.timeout_s}; expected at least 1 each, and a positive time"
            )
        choices = (("format", self.format, tuple(FORMATS)), ("role", self.role, ("tool", "user")))
        for name, value, expected in choices:
            if value not in expected:
                raise ConfigError(f"environment.params has {name} = {value!r}; expected one of {', '.join(expected)}")
        if isinstance(self.tools, str) or not isinstance(self.tools, Sequence):
            raise ConfigError(f'environment.params has tools = {self.tools!r}; expected a list, such as ["calculator"]')
        limits = CallLimits(
            turn=self.calls_per_turn,
            episode=self.calls_per_episode,
            result=self.result_length,
            timeout_s=self.timeout_s,
        )
        wire = FORMATS[self.format](lenient=self.lenient)
        box = Toolbox(tools_for(self.tools), wire, limits, workers=self.workers)
        object.__setattr__(self, "toolbox", box)

    @property
    def preamble(self) -> str:
        """Text about the tools for the system message; empty where the chat template writes it."""
        if not self.describe or self.format != "tags":
            return ""
        tools, wire = self.toolbox.tools, self.toolbox.wire
        examples = " ".join(wire.example(tool) for tool in tools.values())
        return f"{EXPLAINED['tags']}\n{described(tools)}\nWritten: {examples}"

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """Schemas for the chat template; empty where it is not told of the tools."""
        return self.toolbox.schemas if self.describe and self.format == "hermes" else []

    def episode(self, prompt: Prompt) -> Episode:
        row = {**prompt.attributes, "answer": prompt.answer, "task": prompt.task}
        session = self.toolbox.episode(row)
        try:
            completion = yield Observation(messages=prompt.messages)
            turn = 0
            while calls := self.toolbox.calls(completion):
                spent = session.spent
                results = session.run(calls) if self.enabled else session.refused(calls)
                if spent:
                    return 0.0  # it was told to answer, and called again
                completion = yield Observation(
                    messages=tool_messages(calls, results, turn, self.role), calls=tuple(assistant_calls(calls, turn))
                )
                turn += 1
        except ToolUnavailableError as error:
            raise EpisodeError(f"a tool is not available: {error}") from error
        finally:
            session.end()
        return 0.0
