"""Tasks of a taskset of verifiers 0.4 that are answered in one message and scored without a runtime.

[environment]
name = "verifiers"
params = { taskset = "my_tasks:Sums" }

[[data.train]]
type = "python"
target = "my_tasks:rows"           # def rows(): return coterie.envs.verifiers_taskset.rows("my_tasks:Sums")
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from coterie.config.user_functions import user_function
from coterie.envs.base import Episode, EpisodeError, Observation
from coterie.errors import ConfigError
from coterie.types import Message, Prompt

COLUMN = "verifiers_index"
"""Of a row: the task's place in its taskset."""
MOST = 100_000
"""Tasks that are read of a taskset; it may be endless."""


class VerifiersTaskset:
    """Shows a task's prompt, and scores the answer as the task's own rewards and judges do.

    Args:
        taskset: a subclass of `verifiers.v1.Taskset`, `module:Class`.
        config: of the taskset.
        limit: tasks that are read; the rest does not exist.
    """

    def __init__(self, taskset: str, config: Mapping[str, Any] | None = None, limit: int = MOST) -> None:
        self.taskset = taskset
        self.tasks: Sequence[Any] = list(islice(_loaded(taskset, config or {}), limit))
        if not self.tasks:
            raise ConfigError(f"environment.params.taskset = {taskset!r} has no tasks")
        problem = _unsupported(self.tasks[0])
        if problem:
            raise ConfigError(
                f"environment.params.taskset = {taskset!r}: tasks that {problem} are not supported; expected some "
                "that are answered in one message and scored without a runtime"
            )

    def episode(self, prompt: Prompt) -> Episode:
        index = prompt.attributes.get(COLUMN)
        if not isinstance(index, int) or not 0 <= index < len(self.tasks):
            raise EpisodeError(
                f"the row has {COLUMN} = {index!r}; expected the place of one of the {len(self.tasks)} tasks: the rows "
                "come from coterie.envs.verifiers_taskset.rows"
            )
        task = self.tasks[index]
        answer = yield Observation(messages=tuple(messages_of(task)))
        trace = _trace(task, answer)
        asyncio.run(task.score(trace))
        return float(trace.reward)


def rows(taskset: str, config: Mapping[str, Any] | None = None, limit: int = MOST) -> Iterator[dict[str, Any]]:
    """The tasks as rows of a data source: `prompt` and the task's place."""
    for index, task in enumerate(islice(_loaded(taskset, config or {}), limit)):
        yield {"prompt": messages_of(task), COLUMN: index}


def messages_of(task: Any) -> list[Message]:
    """What a model is shown of a task: its system prompt, and its prompt, a text or messages."""
    data = task.data
    messages = [Message(role="system", content=data.system_prompt)] if data.system_prompt else []
    if isinstance(data.prompt, str):
        return [*messages, Message(role="user", content=data.prompt)]
    for message in data.prompt or ():
        if not isinstance(message.content, str):
            raise ConfigError(f"a task's prompt holds {message.content!r:.80}; expected text")
        messages.append(Message(role=message.role, content=message.content))
    return messages


def _loaded(taskset: str, config: Mapping[str, Any]) -> Iterator[Any]:
    kind: Callable[..., Any] = user_function(taskset)
    import verifiers.v1  # ty: ignore[import-not-found]
    from verifiers.v1.utils.generic import concrete_type  # ty: ignore[import-not-found]

    settings = concrete_type(kind, verifiers.v1.TasksetConfig) or verifiers.v1.TasksetConfig
    return iter(kind(settings(**config)))


def _unsupported(task: Any) -> str:
    """What keeps a task from being scored here; empty where nothing does."""
    import verifiers.v1  # ty: ignore[import-not-found]

    if task.data.prompt is None:
        return "have no prompt"
    if task.data.image is not None or type(task).setup is not verifiers.v1.Task.setup:
        return "need a runtime of their own"
    if type(task).toolsets(task.config):
        return "have tools"
    for hook in task.hooks("reward"):
        parameter = inspect.signature(hook).parameters.get("runtime")
        if parameter is not None and parameter.default is parameter.empty:
            return f"have the reward {hook.__name__}, which needs a runtime"
    return ""


def _trace(task: Any, answer: str) -> Any:
    """The record of one answer, as the rewards read it."""
    from verifiers.v1.configs.agent import AgentConfig  # ty: ignore[import-not-found]
    from verifiers.v1.graph import MessageNode  # ty: ignore[import-not-found]
    from verifiers.v1.trace import AgentInfo, Trace, TraceTask  # ty: ignore[import-not-found]
    from verifiers.v1.types import AssistantMessage, SystemMessage, UserMessage  # ty: ignore[import-not-found]

    kinds = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
    shown = [kinds[message["role"]](content=message["content"]) for message in messages_of(task)]
    nodes = [
        MessageNode(parent=place - 1 if place else None, message=message, sampled=place == len(shown))
        for place, message in enumerate([*shown, AssistantMessage(content=answer)])
    ]
    about = TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    return Trace(task=about, agent=AgentInfo(config=AgentConfig()), nodes=nodes, is_completed=True, ok=True)
