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
        kinds = {type(task): task for task in self.tasks}
        problem = next(filter(None, [*map(_without, kinds.values()), *map(_unshown, self.tasks)]), "")
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
    tasks = kind(settings(**config))
    if type(tasks).toolsets(tasks.config):
        raise ConfigError(f"environment.params.taskset = {taskset!r} has tools for its tasks, which are not supported")
    return iter(tasks)


def _unshown(task: Any) -> str:
    """What keeps a task's data from being shown or scored here; empty where nothing does."""
    if task.data.prompt is None:
        return "have no prompt"
    return "need a runtime of their own" if task.data.image is not None else ""


def _without(task: Any) -> str:
    """What a task of this class needs beside an answer; empty where nothing."""
    from verifiers.v1 import Task  # ty: ignore[import-not-found]

    kind = type(task)
    if any(getattr(kind, stage) is not getattr(Task, stage) for stage in ("setup", "finalize", "stage_verifier")):
        return "need a runtime of their own"
    if kind.toolsets(task.config):
        return "have tools"
    rewards = {hook.__name__: hook for hook in task.hooks("reward")}
    rewards |= {judge.reward_name: judge.score for judge in task.plugged_judges()}
    for name, reward in rewards.items():
        parameter = inspect.signature(reward).parameters.get("runtime")
        if parameter is not None and parameter.default is parameter.empty:
            return f"have the reward {name}, which needs a runtime"
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
