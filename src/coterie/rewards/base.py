"""Protocols of reward functions and step rewards, and checks of their return values."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, Protocol

Values = Sequence[float | None]
Steps = Sequence[tuple[int, float]]
"""(end, value) of each step of a completion: `completion[:end]` ends with the step."""

LENGTH = "completion_length"
"""Column of the completions' token counts: the one fact of a rollout that its text does not tell."""

TURNS = "completion_turns"
"""Column of what the model said in each turn."""

MESSAGES = "completion_messages"
"""Column of the messages after the prompt: the model's turns with their `tool_calls`, and what it was shown between."""

EARNED = "environment_rewards"
"""Column of what the environment gave for each turn."""

OPENING = "completion_opening"
"""Column of what the chat template wrote of each completion, which begins with it."""

IDS = "completion_ids"
"""Column of the completions' token ids."""

OF_ROLLOUT = (LENGTH, TURNS, MESSAGES, EARNED, OPENING, IDS)
"""Columns that come from the rollout; a column of the data cannot have these names."""

STATE, EXTRA, METRIC = "trainer_state", "log_extra", "log_metric"
OF_TRAINER = (STATE, EXTRA, METRIC)
"""Arguments beside columns that a function gets if it names them."""

RESERVED = ("prompts", "completions", *OF_ROLLOUT, *OF_TRAINER)
"""Names of arguments that a column of the data cannot have."""

Form = Literal["text", "messages"]
"""Form of completions or prompts in a call: text, or a list of messages each."""

LIMIT = 1e12
"""Largest magnitude of a reward. Beyond it the spread of a group drowns in rounding: always a bug, never a signal."""

EXPECTED = "expected a finite number, or None where the reward does not apply"


class Reward(Protocol):
    """Judges a list of completions; sync or async. The signature is that of TRL's reward functions.

    Called with keyword arguments only, and only with those that its parameters name (all columns under `**columns`):

    - `completions`: list of n strings, the decoded text of the model, of several turns the last one's; or of n lists of
      one message, `[{"role": "assistant", "content": …}]`, for a function that is written for those.
    - `prompts`: list of n message lists, `[[{"role": …, "content": …}, …], …]`; or of n strings, the last message's
      text, for a function that is written for those.
    - `completion_ids`: list of n lists of token ids (over all turns, end-of-turn tokens included); None where text is
      scored that no model said.
    - `completion_length`: list of n token counts; None where unknown.
    - `completion_opening`: list of n strings: what the chat template opened of the model's turn, such as `<think>` and
      a new line, with which `completions` begin; empty where it opens nothing.
    - `completion_turns`, `environment_rewards`: lists of n lists, one item a turn: what the model said, and what the
      environment gave for it; None where there is no environment of several turns.
    - `completion_messages`: list of n lists of messages, the episode after its prompt, the model's with `tool_calls`
      where it called tools and the results with the role `tool`; None where there is no environment of several turns.
    - every column of the data: a list of n values, None where a row lacks it.
    - `answer`, `task`, where the data has no such column: lists of n gold answers (None where there is none) and task
      names.
    - the `params` of the configuration: as they stand, for all rows.
    - `trainer_state`: an object with `global_step`, the number of updates before, and `max_steps`.
    - `log_extra(column, values)`: stores n values with the rollouts. `log_metric(name, value)`: records a number as the
      metric `logged/<name>` of the step.

    The last three, and `completion_ids`, reach `**columns` only in a module whose source mentions them.

    Returns a list, tuple, array or tensor of exactly n values: a finite number, True or False (1 or 0), or None = not
    applicable to this row. Anything else is an error of the function, never a reward. It may be called with any part of
    a batch, with a single row, and twice with the same row, and it is started afresh after a time-out: it must not
    count on state.
    """

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> Values | Awaitable[Values]: ...


class StepReward(Protocol):
    """Judges the steps of completions; called as a `Reward` is, with the same columns, and under the same deadline.

    Returns a list of exactly n items: for each completion the list of its steps, in the order in which they end, or
    None = not applicable to this row. A step is a pair: the end, an offset in characters, 1 … len(completion), greater
    than that of the step before; and its value, a finite number, True or False.
    """

    def __call__(
        self, prompts: list[list[dict[str, str]]], completions: list[str], **columns: Any
    ) -> Sequence[Steps | None] | Awaitable[Sequence[Steps | None]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Score of a completion."""

    reward: float | None
    """Weighted sum of the parts that apply; None when there is an error."""
    parts: Mapping[str, float | None]
    """Unweighted value of each part by its label; None = not applicable, or failed."""
    error: str | None
    """Function, row and cause of each part that failed; None when all is well."""
    steps: Mapping[str, Steps] = field(default_factory=dict)
    """Unweighted steps by the step function's label; without those that do not apply. Empty when there is an error."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Values that functions logged with `log_extra` for this row, by column."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Values that functions logged with `log_metric` in the call of this row, by name."""


class ContractError(Exception):
    """A return value of a reward function that cannot be assigned to rows.

    Args:
        count: how many values it returned; None where it is no list.
    """

    def __init__(self, message: str, count: int | None = None) -> None:
        super().__init__(message)
        self.count = count


def check_values(returned: object, rows: int) -> tuple[list[float | None], dict[int, str]]:
    """Hold what a reward function returned against the contract.

    Returns:
        One value per row, and for each row whose value is unusable the cause.
    """
    shape: tuple[int, ...] = tuple(getattr(returned, "shape", ())) if _is_array(returned) else ()
    if len(shape) > 1 and shape[0] == rows:
        cause = (
            f"returned an array of shape {shape}; expected shape ({rows},), one number per completion: flatten it with "
            "values.squeeze(-1), or reduce the other dimensions"
        )
        return [None] * rows, dict.fromkeys(range(rows), cause)
    returned = _as_list(returned, rows)
    values: list[float | None] = []
    bad: dict[int, str] = {}
    for row, value in enumerate(map(_plain, returned)):
        cause = _value_error(value)
        if cause is not None:
            bad[row] = cause
        # Adding zero turns -0.0 into 0.0, so that equal rewards have equal bits.
        values.append(None if value is None or cause else float(value) + 0.0)
    return values, bad


def check_steps(
    returned: object, completions: Sequence[str]
) -> tuple[list[list[tuple[int, float]] | None], dict[int, str]]:
    """Hold what a step function returned against the contract.

    Returns:
        The steps of each row, and for each row whose steps are unusable the cause.
    """
    steps: list[list[tuple[int, float]] | None] = []
    bad: dict[int, str] = {}
    for row, (row_steps, completion) in enumerate(zip(_as_list(returned, len(completions)), completions, strict=True)):
        cause = None if row_steps is None else _step_error(row_steps, len(completion))
        if cause is not None:
            bad[row] = cause
        plain = [] if row_steps is None or cause else [(_plain(end), _plain(value)) for end, value in row_steps]
        steps.append(None if row_steps is None or cause else [(int(end), float(value) + 0.0) for end, value in plain])
    return steps, bad


def _step_error(row_steps: object, length: int) -> str | None:
    if not isinstance(row_steps, list | tuple):
        return f"returned {_describe(row_steps)} for a completion; expected its list of steps, or None"
    before = 0
    for step in row_steps:
        if not isinstance(step, list | tuple) or len(step) != 2:
            return f"returned {_describe(step)} as a step; expected (end, value)"
        end, value = map(_plain, step)
        if not isinstance(end, Integral) or isinstance(end, bool):
            return f"returned a step that ends at {_describe(end)}; expected an offset in characters, a whole number"
        if not before < end <= length:
            return (
                f"returned a step that ends at character {end}; expected {before + 1} … {length}: steps end one after "
                "the other, within the completion"
            )
        cause = "returned None for a step; leave the step out" if value is None else _value_error(value)
        if cause is not None:
            return cause
        before = int(end)
    return None


def _as_list(returned: Any, rows: int) -> Sequence[Any]:
    if _is_array(returned):
        returned = returned.tolist()  # of one value without a dimension, that value
    if not isinstance(returned, list | tuple):
        raise ContractError(
            f"returned {_describe(returned)}; expected a list of {rows} values: return one value per completion"
        )
    if len(returned) != rows:
        raise ContractError(
            f"returned {len(returned)} values for {rows} completions; expected exactly one each: "
            "return None for a row that it cannot judge",
            len(returned),
        )
    return returned


def _is_array(value: object) -> bool:
    """An array or tensor of numpy, torch or another library; a series of pandas."""
    return hasattr(value, "tolist") and hasattr(value, "shape")


def _plain(value: Any) -> Any:
    """A scalar of numpy or torch as Python's own; any other value as it is."""
    if _is_array(value) and math.prod(value.shape) == 1:
        return value.item()
    return value


def _value_error(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Real):
        return f"returned {_describe(value)}; {EXPECTED}: convert it with float(…)"
    try:
        size = float(value)
    except (OverflowError, ValueError):
        size = math.inf
    if not math.isfinite(size):
        return f"returned {size}; {EXPECTED}: check for division by zero and overflow"
    if abs(size) > LIMIT:
        return f"returned {size:g}, beyond ±{LIMIT:g}; {EXPECTED}: scale it down"
    return None


def _describe(value: object) -> str:
    if value is None:
        return "None"
    try:
        text = repr(value)
    except Exception:
        text = "…"
    return f"{text[:80]}{'…' if len(text) > 80 else ''} (a {type(value).__name__})"
