"""Bookkeeping of a call of the scorer: pending jobs, values and errors. No processes here."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.config.rewards import RewardConfig, StepRewardConfig
from coterie.rewards.base import EARNED, LENGTH, MESSAGES, OPENING, RESERVED, TURNS, Form, Score
from coterie.types import Message, Prompt

MAX_LOST = 3
"""Rows of one part that may hang or crash alone in one call of the scorer; the rest is given up unasked."""
MAX_ROWS = 256
"""Rows of one call of a reward function: the deadline is the call's, so it must not grow with the evaluation."""


@dataclass(frozen=True, slots=True)
class Job:
    """One call of one reward function."""

    part: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """Call form of a part."""

    completions: Form = "text"
    prompts: Form = "messages"
    ids: bool = False
    """The function takes token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """Columns of the completions besides their text; each a list of one item a row, or None."""

    lengths: Sequence[int] | None = None
    """Tokens."""
    tokens: Sequence[Sequence[int]] | None = None
    """Token ids."""
    turns: Sequence[Sequence[str]] | None = None
    """Text of the model's turns."""
    messages: Sequence[Sequence[Message]] | None = None
    """Messages of each episode after its prompt."""
    earned: Sequence[Sequence[float]] | None = None
    """The environment's reward of each turn."""
    openings: Sequence[str] | None = None
    """Text of each completion that the chat template wrote."""
    state: Mapping[str, int] = field(default_factory=lambda: {"global_step": 0, "max_steps": 0})
    """Of the trainer."""


class ScoringBatch:
    """Scores of every part on every row. A call that fails as a whole is repeated row by row, to isolate bad rows.

    Args:
        shares: least number of calls for the rows of each part, one a worker; none has over `MAX_ROWS`.
        columns: those that other prompts have; the rows of this call hold None there.
        rollouts: further columns of the completions.
        manners: call form of each part.
    """

    def __init__(
        self,
        parts: Sequence[RewardConfig],
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        *,
        shares: int,
        columns: Sequence[str] = (),
        rollouts: Rollouts | None = None,
        manners: Sequence[Manner] = (),
    ) -> None:
        self.parts = parts
        self.prompts = prompts
        self.manners = manners or [Manner()] * len(parts)
        self.rollouts = rollouts or Rollouts()
        size = len(completions)
        lengths, tokens = self.rollouts.lengths, self.rollouts.tokens
        turn_columns = (
            (TURNS, self.rollouts.turns),
            (MESSAGES, self.rollouts.messages),
            (EARNED, self.rollouts.earned),
        )
        self.rollout_columns: dict[str, Sequence[Any]] = {LENGTH: [None] * size if lengths is None else lengths}
        self.rollout_columns[OPENING] = [""] * size if self.rollouts.openings is None else self.rollouts.openings
        self.rollout_columns |= {name: values for name, values in turn_columns if values is not None}
        """Columns of the rollouts."""
        self.names = list(dict.fromkeys((*columns, *column_names(prompts))))
        self._extra: list[dict[str, Any]] = [{} for _ in range(size)]
        self._metrics: list[dict[str, float]] = [{} for _ in range(size)]
        asked = tokens is not None and any(manner.ids for manner in self.manners)
        self._ids = [json.dumps(list(ids)) for ids in tokens] if asked and tokens is not None else None
        self._values: list[dict[int, Any]] = [{} for _ in parts]
        self._errors: list[dict[int, str]] = [{} for _ in parts]
        self._lost = [0] * len(parts)
        self._encoded = self._encode(completions)
        sound = [row for row in range(size) if row in self._encoded]
        shares = max(shares, math.ceil(len(sound) / MAX_ROWS))
        chunks = [tuple(sound[k * len(sound) // shares : (k + 1) * len(sound) // shares]) for k in range(shares)]
        self._queue = deque(Job(part, rows) for part in range(len(parts)) for rows in chunks if rows)

    def take(self) -> Job | None:
        """The next call to make; None when nothing is left to begin."""
        while self._queue:
            job = self._queue.popleft()
            whole = len(job.rows) > 1 and bool(self._values[job.part])
            if whole or self._lost[job.part] < MAX_LOST:
                return job
            self._blame(job, f"was not asked: {MAX_LOST} rows before this one hung or crashed it")
        return None

    def restrict(self, part: int) -> None:
        """Keep the jobs of this part only."""
        self._queue = deque(job for job in self._queue if job.part == part)

    @property
    def pending(self) -> bool:
        """True if calls are left to begin."""
        return bool(self._queue)

    def request(self, job: Job) -> str:
        """Request line of a job."""
        manner = self.manners[job.part]
        ids = self._ids if manner.ids else None
        extra = ["" if ids is None else f'"ids":{ids[row]},' for row in job.rows]
        rows = ",".join(f"{{{more}{self._encoded[row]}}}" for more, row in zip(extra, job.rows, strict=True))
        head: dict[str, Any] = {"part": job.part, "names": self.names, "state": dict(self.rollouts.state)}
        head |= {"completions": manner.completions, "prompts": manner.prompts}
        return f'{json.dumps(head)[:-1]},"rows":[{rows}]}}'

    def add_reply(self, job: Job, reply: Mapping[str, Any]) -> None:
        """Record a worker's reply."""
        if "failed" in reply:
            if reply["again"] and len(job.rows) > 1:
                self._split(job)
            else:
                self._blame(job, reply["failed"])
            return
        for place, (row, value) in enumerate(zip(job.rows, reply["values"], strict=True)):
            self._extra[row] |= {column: values[place] for column, values in reply["extra"].items()}
            self._metrics[row] |= reply["metrics"]
            cause = reply["bad"].get(str(place))
            if cause is None:
                self._values[job.part][row] = value
            else:
                self._errors[job.part][row] = self._located(job.part, row, cause)

    def add_loss(self, job: Job, cause: str) -> None:
        """Record that the worker hung or died in a job."""
        if len(job.rows) > 1:
            self._split(job)
        else:
            self._lost[job.part] += 1
            self._blame(job, cause)

    def first_error(self) -> str | None:
        """First error of any row."""
        return next((cause for errors in self._errors for cause in errors.values()), None)

    def scores(self) -> list[Score]:
        """Scores of all rows, once no job is left."""
        return [self._score(row) for row in range(len(self.prompts))]

    def _score(self, row: int) -> Score:
        values = [part_values.get(row) for part_values in self._values]
        judged = list(zip(self.parts, values, strict=True))
        steps = {part.key: value for part, value in judged if isinstance(part, StepRewardConfig) and value is not None}
        judged = [(part, value) for part, value in judged if not isinstance(part, StepRewardConfig)]
        parts = {part.key: value for part, value in judged}
        errors = list(dict.fromkeys(part_errors[row] for part_errors in self._errors if row in part_errors))
        if errors:
            return Score(reward=None, parts=parts, error="; ".join(errors))
        outside = [f"{part.key} = {value:g}" for part, value in judged if part.gate and not 0 <= (value or 0) <= 1]
        if outside:
            error = f"row {row}{self._prompt(row)}: the gate {outside[0]} lies outside 0 to 1; scale it"
            return Score(reward=None, parts=parts, error=error)
        terms = [(part, value) for part, value in judged if value is not None and not part.gate]
        applicable = [part.weight * value for part, value in terms if part.weight != 0]
        if not applicable:
            return Score(reward=None, parts=parts, error=self._nothing_applies(row))
        reward = math.fsum(gated(applicable, [value for part, value in judged if part.gate and value is not None]))
        if not math.isfinite(reward):
            error = f"row {row}{self._prompt(row)}: the weighted sum of {parts} is {reward}; lower the weights"
            return Score(reward=None, parts=parts, error=error)
        return Score(
            reward=reward,
            parts=parts,
            error=None,
            steps=_ends(steps),
            extra=self._extra[row],
            metrics=self._metrics[row],
        )

    def _nothing_applies(self, row: int) -> str:
        names = ", ".join(part.key for part in self.parts if not isinstance(part, StepRewardConfig))
        return (
            f"row {row}{self._prompt(row)}: no reward part applies (of {names}): every one with a weight returned "
            "None; give the row a gold answer, or add a part that can judge it"
        )

    def _split(self, job: Job) -> None:
        # First in the queue: a function that always hangs is given up before every piece has met its deadline.
        self._queue.extendleft(Job(job.part, (row,)) for row in reversed(job.rows))

    def _blame(self, job: Job, cause: str) -> None:
        for row in job.rows:
            self._errors[job.part][row] = self._located(job.part, row, cause)

    def _located(self, part: int, row: int, cause: str) -> str:
        return f"reward {self.parts[part].name!r}, row {row}{self._prompt(row)}: {cause}"

    def _prompt(self, row: int) -> str:
        return f" (prompt {self.prompts[row].id})"

    def _encode(self, completions: Sequence[str]) -> dict[int, str]:
        """Each row as JSON; the rows of a group share their prompt's part. What is no JSON is an error of the row."""
        prompt_json: dict[int, str | None] = {}
        encoded: dict[int, str] = {}
        for row, (prompt, completion) in enumerate(zip(self.prompts, completions, strict=True)):
            if id(prompt) not in prompt_json:
                prompt_json[id(prompt)] = _as_json(prompt)
            text = prompt_json[id(prompt)]
            if text is not None:
                rollout_json = json.dumps({name: values[row] for name, values in self.rollout_columns.items()})
                encoded[row] = f'"completion":{json.dumps(completion)},"own":{rollout_json},{text}'
                continue
            where = f"row {row}{self._prompt(row)}"
            for part, errors in enumerate(self._errors):
                errors[row] = f"reward {self.parts[part].name!r}, {where}: {_not_json(prompt)}"
        return encoded


def gated(terms: Sequence[float], gates: Sequence[float]) -> list[float]:
    """Weighted parts, of which gates multiply what is earned, and no penalty: else a closed gate would be a way out.

    >>> gated([1.0, 0.5, -0.2], [0.5, 1.0])
    [0.5, 0.25, -0.2]
    """
    factor = math.prod(gates)
    return [term * factor if term > 0 else term for term in terms]


def column_names(prompts: Sequence[Prompt]) -> list[str]:
    """`answer`, `task` and every attribute that any of the prompts has."""
    names = {"answer": None, "task": None}
    for prompt in prompts:
        names |= dict.fromkeys(prompt.attributes)
    return [name for name in names if name not in RESERVED]


def _ends(steps: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, tuple[tuple[int, float], ...]]:
    return {label: tuple((int(end), value) for end, value in label_steps) for label, label_steps in steps.items()}


def _as_json(prompt: Prompt) -> str | None:
    gold = {"answer": prompt.answer, "task": prompt.task}
    columns = {name: value for name, value in prompt.attributes.items() if name not in RESERVED}
    try:
        messages = json.dumps(list(prompt.messages))
        return f'"prompt":{messages},"columns":{json.dumps(columns)},"gold":{json.dumps(gold)}'
    except (TypeError, ValueError, RecursionError):
        return None


def _not_json(prompt: Prompt) -> str:
    def faults() -> Iterator[str]:
        for name, value in prompt.attributes.items():
            try:
                json.dumps({name: value})
            except (TypeError, ValueError, RecursionError) as error:
                remedy = "convert it to text or numbers in the data source"
                yield f"the column {name!r} is not valid JSON ({error}); {remedy}"

    return next(faults(), "its messages are not valid JSON; expected role and content as text")
