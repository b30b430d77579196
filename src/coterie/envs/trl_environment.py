"""Environments of TRL's `environment_factory`: public methods are tools, `reset` opens, `get_reward` scores.

[environment]
name = "trl"
params = { factory = "my_games:Counter" }
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from coterie.config.user_functions import user_function
from coterie.envs.base import Episode, Observation
from coterie.errors import ConfigError
from coterie.tools.base import Call, Result, Tool, assistant_calls, tool_messages
from coterie.tools.signatures import HOOKS, tool_of
from coterie.tools.toolbox import as_text
from coterie.tools.wire import Hermes, unknown_tool
from coterie.types import Message, Prompt

ROLE = "tool"
"""Of the messages that show results."""


class TrlEnvironment:
    """Makes an instance for each episode, calls its methods as the model asks, and ends with an answer without a call.

    A method's exception is the result that the model is shown, as in TRL. Methods run in threads of the trainer's
    process.

    Args:
        factory: class or function that makes an instance, `module:name`.
        result_length: most characters of a result.
    """

    role = ROLE
    preamble = ""

    def __init__(self, factory: str, result_length: int = 4000) -> None:
        self.make: Callable[[], Any] = user_function(factory)
        self.result_length = result_length
        kind = type(self.make())
        if not callable(getattr(kind, "reset", None)):
            raise ConfigError(f"environment.params.factory = {factory!r} makes a {kind.__name__}, which has no `reset`")
        members = inspect.getmembers(kind, predicate=inspect.isfunction)  # those of base classes too, as TRL has it
        methods = {name: member for name, member in members if not name.startswith("_") and name not in HOOKS}
        self.tools: dict[str, Tool] = {
            name: tool_of(member, name=name, target=factory, method=name) for name, member in methods.items()
        }
        self.wire = Hermes()

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """Schemas of the tools, for the chat template."""
        return [dict(tool.schema) for tool in self.tools.values()]

    def episode(self, prompt: Prompt) -> Episode:
        instance = self.make()
        row = {**prompt.attributes, "prompt": [dict(message) for message in prompt.messages], "answer": prompt.answer}
        addition = _finished(instance.reset(**_taken(instance.reset, row)))
        *before, last = prompt.messages
        opening = Message(role=last["role"], content=last["content"] + ("" if addition is None else str(addition)))
        text = yield Observation(messages=(*before, opening))
        turn = 0
        while self.tools and (calls := self.wire.parse(text, self.tools)):
            results = [self._result(instance, call) for call in calls]
            text = yield Observation(
                messages=tool_messages(calls, results, turn, self.role), calls=tuple(assistant_calls(calls, turn))
            )
            turn += 1
        score = getattr(instance, "get_reward", None)
        return 0.0 if score is None else _finished(score())

    def _result(self, instance: Any, call: Call) -> Result:
        if call.problem is not None:
            return Result(content=f"Error: {call.problem}", error="malformed")
        tool = self.tools.get(call.name)
        if tool is None:
            return Result(content=f"Error: {unknown_tool(call.name, self.tools)}", error="unknown_tool")
        try:
            arguments = tool.checked(call.arguments)
        except ValueError as error:
            return Result(content=f"Error: {error}", error="arguments")
        try:
            return as_text(_finished(getattr(instance, tool.method)(**arguments)), self.result_length)
        except Exception as error:
            return Result(content=f"Error: {error}"[: self.result_length], error="raised")


def _taken(function: Callable[..., Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a `reset` takes; TRL gives all."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(row)
    return {parameter.name: row[parameter.name] for parameter in parameters if parameter.name in row}


def _finished(value: Any) -> Any:
    """The value of a method, async or not."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())
