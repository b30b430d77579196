"""The book-keeping of one call of the scorer: what is still to be asked, and what is known. No processes here."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.config.rewards import RewardConfig, StepRewardConfig
from coterie.rewards.base import EARNED, LENGTH, OF_ROLLOUT, OPENING, TURNS, Score
from coterie.types import Prompt

MAX_LOST = 3
"""Rows of one part that may hang or crash alone in one call of the scorer; the rest is given up unasked."""
MAX_ROWS = 256
"""Rows of one call of a reward function: the deadline is the call's, so it must not grow with the evaluation."""


@dataclass(frozen=True, slots=True)
class Job:
    """One call of one reward function."""

    part: int
    rows: tuple[int, ...]


class Round:
    """Every part on every row. A call that fails as a whole is repeated row by row, so that only the guilty pay.

    Args:
        shares: into how many calls the rows of each part are cut at least, one a worker; none has over `MAX_ROWS`.
        known: columns that other prompts have; the rows of this call hold None there.
        lengths: tokens of each completion.
        turns, earned: of each row, what the model said and what the environment gave, turn by turn.
        openings: of each row, what the chat template wrote of the completion.
    """

    def __init__(
        self,
        parts: Sequence[RewardConfig],
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        *,
        shares: int,
        known: Sequence[str] = (),
        lengths: Sequence[int] | None = None,
        turns: Sequence[Sequence[str]] | None = None,
        earned: Sequence[Sequence[float]] | None = None,
        openings: Sequence[str] | None = None,
    ) -> None:
        self.parts = parts
        self.prompts = prompts
        size = len(completions)
        self.own: dict[str, Sequence[Any]] = {LENGTH: [None] * size if lengths is None else lengths}
        self.own[OPENING] = [""] * size if openings is None else openings
        self.own |= {name: found for name, found in ((TURNS, turns), (EARNED, earned)) if found is not None}
        """Columns of the rollouts."""
        self.names = list(dict.fromkeys((*self.own, *known, *column_names(prompts))))
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

    @property
    def pending(self) -> bool:
        """Whether a call is still to be begun."""
        return bool(self._queue)

    def request(self, job: Job) -> str:
        """The line to send for a job."""
        rows = ",".join(self._encoded[row] for row in job.rows)
        return f'{{"part":{job.part},"names":{json.dumps(self.names)},"rows":[{rows}]}}'

    def answered(self, job: Job, reply: Mapping[str, Any]) -> None:
        """Enter what a worker said."""
        if "failed" in reply:
            if reply["again"] and len(job.rows) > 1:
                self._split(job)
            else:
                self._blame(job, reply["failed"])
            return
        for place, (row, value) in enumerate(zip(job.rows, reply["values"], strict=True)):
            cause = reply["bad"].get(str(place))
            if cause is None:
                self._values[job.part][row] = value
            else:
                self._errors[job.part][row] = self._told(job.part, row, cause)

    def lost(self, job: Job, cause: str) -> None:
        """Enter that the worker hung or died over a job."""
        if len(job.rows) > 1:
            self._split(job)
        else:
            self._lost[job.part] += 1
            self._blame(job, cause)

    def scores(self) -> list[Score]:
        """One per row, once nothing is left to do."""
        return [self._score(row) for row in range(len(self.prompts))]

    def _score(self, row: int) -> Score:
        values = [found.get(row) for found in self._values]
        judged = list(zip(self.parts, values, strict=True))
        steps = {part.key: value for part, value in judged if isinstance(part, StepRewardConfig) and value is not None}
        judged = [(part, value) for part, value in judged if not isinstance(part, StepRewardConfig)]
        parts = {part.key: value for part, value in judged}
        errors = list(dict.fromkeys(found[row] for found in self._errors if row in found))
        if errors:
            return Score(reward=None, parts=parts, error="; ".join(errors))
        applicable = [part.weight * value for part, value in judged if value is not None and part.weight != 0]
        if not applicable:
            return Score(reward=None, parts=parts, error=self._nothing_applies(row))
        reward = math.fsum(applicable)
        if not math.isfinite(reward):
            error = f"row {row}{self._prompt(row)}: the weighted sum of {parts} is {reward}; lower the weights"
            return Score(reward=None, parts=parts, error=error)
        return Score(reward=reward, parts=parts, error=None, steps=_ends(steps))

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
            self._errors[job.part][row] = self._told(job.part, row, cause)

    def _told(self, part: int, row: int, cause: str) -> str:
        return f"reward {self.parts[part].name!r}, row {row}{self._prompt(row)}: {cause}"

    def _prompt(self, row: int) -> str:
        return f" (prompt {self.prompts[row].id})"

    def _encode(self, completions: Sequence[str]) -> dict[int, str]:
        """Each row as JSON; the rows of a group share their prompt's part. What is no JSON is an error of the row."""
        known: dict[int, str | None] = {}
        encoded: dict[int, str] = {}
        for row, (prompt, completion) in enumerate(zip(self.prompts, completions, strict=True)):
            if id(prompt) not in known:
                known[id(prompt)] = _as_json(prompt)
            text = known[id(prompt)]
            if text is not None:
                own = json.dumps({name: values[row] for name, values in self.own.items()})
                encoded[row] = f'{{"completion":{json.dumps(completion)},"own":{own},{text}}}'
                continue
            where = f"row {row}{self._prompt(row)}"
            for part, errors in enumerate(self._errors):
                errors[row] = f"reward {self.parts[part].name!r}, {where}: {_not_json(prompt)}"
        return encoded


def column_names(prompts: Sequence[Prompt]) -> list[str]:
    """`answer`, `task` and every attribute that any of the prompts has."""
    names = {"answer": None, "task": None}
    for prompt in prompts:
        names |= dict.fromkeys(prompt.attributes)
    return [name for name in names if name not in ("prompts", "completions", *OF_ROLLOUT)]


def _ends(steps: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, tuple[tuple[int, float], ...]]:
    return {label: tuple((int(end), value) for end, value in found) for label, found in steps.items()}


def _as_json(prompt: Prompt) -> str | None:
    columns = {**prompt.attributes, "answer": prompt.answer, "task": prompt.task}
    try:
        return f'"prompt":{json.dumps(list(prompt.messages))},"columns":{json.dumps(columns)}'
    except (TypeError, ValueError, RecursionError):
        return None


def _not_json(prompt: Prompt) -> str:
    def faults() -> Iterator[str]:
        for name, value in prompt.attributes.items():
            try:
                json.dumps({name: value})
            except (TypeError, ValueError, RecursionError) as error:
                yield f"the column {name!r} is no JSON ({error}); convert it to text or numbers in the data source"

    return next(faults(), "its messages are no JSON; expected role and content as text")
