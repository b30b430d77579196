"""Scoring in worker processes that can be killed: a reward that hangs or crashes costs its own rows, no more."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from coterie.callbacks import printed
from coterie.config.rewards import RewardsConfig, StepRewardConfig
from coterie.config.user_functions import search_path
from coterie.errors import ConfigError, RewardError
from coterie.rewards import by_value
from coterie.rewards.base import Score
from coterie.rewards.forms import Forms
from coterie.rewards.process import Worker, WorkerDiedError, wait_for_any
from coterie.rewards.registry import target
from coterie.rewards.round import Job, Rollouts, ScoringBatch, column_names
from coterie.types import Message, Prompt

LOAD_TIMEOUT_S = 120.0
"""Wall-clock limit of importing the reward functions, which may load a model; the deadline of a call begins after."""


class Scorer:
    """Scores completions with the configured reward parts.

    Workers start with the first call, are replaced when they hang or die, and end with `close`, or by themselves when
    this process ends. Not thread-safe.

    Args:
        config: parts with weights, the deadline of one call, the number of workers.
        load_timeout_s: limit of importing the functions in a new worker.
        max_steps: steps of the run, for functions that ask for `trainer_state`; 0 where nothing is trained.
    """

    def __init__(self, config: RewardsConfig, *, load_timeout_s: float = LOAD_TIMEOUT_S, max_steps: int = 0) -> None:
        self.config = config
        self.load_timeout_s = load_timeout_s
        self.max_steps = max_steps
        self._parts = (*config.functions, *config.steps)
        for part in self._parts:
            target(part.name, steps=isinstance(part, StepRewardConfig))
            try:
                json.dumps(part.params)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"the params of reward {part.name!r} are not valid JSON ({error}); use text, numbers, lists "
                    "and tables"
                ) from error
        self._folder, self._folders = os.getcwd(), search_path()
        self._forms = Forms(self._parts)
        self._columns: dict[str, None] = {}
        """Columns of all prompts that `start` was told of."""
        self._workers: list[Worker] = []
        self._jobs: dict[Worker, Job | None] = {}
        """Job of each busy worker; None = it imports the functions."""

    @property
    def notes(self) -> list[str]:
        """Notes on how the functions are called, for the user."""
        return self._forms.notes

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        *,
        lengths: Sequence[int] | None = None,
        turns: Sequence[Sequence[str]] | None = None,
        messages: Sequence[Sequence[Message]] | None = None,
        earned: Sequence[Sequence[float]] | None = None,
        openings: Sequence[str] | None = None,
        tokens: Sequence[Sequence[int]] | None = None,
        version: int = 0,
    ) -> list[Score]:
        """Score completion i as an answer to prompt i.

        The parts see the rows in `workers` pieces, or more where one would have over 256 rows. A piece that fails is
        scored again row by row, and after three rows that hang alone, all others like them are given up unasked: a
        function that always hangs costs about `timeout_s` × (1 + 3) in all.

        Args:
            lengths: tokens of each completion, the column `completion_length`; None where they are not known.
            turns: text of the model's turns, the column `completion_turns`.
            messages: of each episode after its prompt, the column `completion_messages`.
            earned: the environment's reward of each turn, the column `environment_rewards`.
            openings: text of each completion that the chat template wrote, the column `completion_opening`; empty
                when left out.
            tokens: token ids of each completion, the column `completion_ids`.
            version: of the policy that sampled them, `trainer_state.global_step`.

        The columns are those of these prompts and of all that `start` was told of; a row without one has None there.

        Returns:
            One score per row, in order; a row that could not be scored carries an error and no reward.

        Raises:
            RewardError: a reward function cannot be imported, or does not take its params.
        """
        if not completions and not prompts:
            return []
        rollouts = Rollouts(
            lengths=lengths,
            tokens=tokens,
            turns=turns,
            messages=messages,
            earned=earned,
            openings=openings,
            state=self._state(version),
        )
        self._resolve_forms(prompts)
        scoring = ScoringBatch(
            self._parts,
            prompts,
            completions,
            shares=self.config.workers,
            columns=list(self._columns),
            rollouts=rollouts,
            manners=self._forms.manners,
        )
        self._run(scoring)
        return scoring.scores()

    def _state(self, version: int) -> dict[str, int]:
        return {"global_step": version, "max_steps": self.max_steps}

    def _run(self, scoring: ScoringBatch) -> None:
        """Run jobs until every row of every part has a value or an error."""
        names = scoring.names
        try:
            self._fill(names)
            while True:
                self._dispatch(scoring)
                if not any(job is not None for job in self._jobs.values()) and not scoring.pending:
                    return
                self._collect_replies(scoring, names)
        except BaseException:
            self.close()  # late replies would be taken for those of the next request
            raise

    def _resolve_forms(self, prompts: Sequence[Prompt]) -> None:
        """Resolve the argument forms of all functions, by a trial call where nothing else decides."""
        if not prompts or self._forms.resolved:
            return
        self.load(column_names(prompts))
        names = list(dict.fromkeys((*self._columns, *column_names(prompts))))
        for trial in self._forms.trials(prompts[0], names, self._state(0)):
            self._run(trial)

    def start(self, prompts: Sequence[Prompt] = ()) -> None:
        """Start the workers and wait until the functions are imported; `score` does the same when it is first called.

        Args:
            prompts: all that may be scored. Their columns are remembered, so that a function that requires a column
                gets it also in a call whose prompts happen to lack it.

        Raises:
            RewardError: a reward function cannot be imported, or does not take its params.
        """
        self._columns |= dict.fromkeys(column_names(prompts))
        self.load(list(self._columns))
        self._resolve_forms(prompts)

    def load(self, names: Sequence[str] = ()) -> None:
        """Start the workers and wait until the functions are imported.

        Args:
            names: of columns, for built-in functions that prepare for them.

        Raises:
            RewardError: a reward function cannot be imported, or does not take its params.
        """
        try:
            self._fill(names)
            while self._jobs:
                self._collect_replies(None, names)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every worker and all processes that reward functions started."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self._jobs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self, names: Sequence[str]) -> None:
        """Start workers up to the configured number; those that exited since the last call are restarted."""
        for worker in [worker for worker in self._workers if worker.idle]:
            try:
                worker.advance()
            except WorkerDiedError:
                self._workers.remove(worker)
                worker.kill()
        while len(self._workers) < self.config.workers:
            worker = Worker(self._folder)
            self._workers.append(worker)
            parts = [
                {"name": part.name, "params": part.params, "steps": isinstance(part, StepRewardConfig)}
                | ({"value": by_value.payload(part.name)} if by_value.is_by_value(part.name) else {})
                for part in self._parts
            ]
            request = {"load": parts, "names": list(names), "folders": self._folders}
            request |= {"path": [os.path.abspath(p) for p in sys.path if p]}
            worker.send_request(json.dumps(request), seconds=self.load_timeout_s)
            self._jobs[worker] = None

    def _dispatch(self, scoring: ScoringBatch) -> None:
        for worker in self._workers:
            job = scoring.take() if worker.idle else None
            if job is not None:
                worker.send_request(scoring.request(job), seconds=self.config.timeout_s)
                self._jobs[worker] = job

    def _collect_replies(self, scoring: ScoringBatch | None, names: Sequence[str]) -> None:
        """Wait for a worker or the nearest deadline, and record replies and losses."""
        wait_for_any(self._workers, min(worker.deadline for worker in self._workers) - time.monotonic())
        for worker in list(self._workers):
            try:
                reply = worker.advance()
            except WorkerDiedError as error:
                self._replace(worker, str(error), scoring, names)
                continue
            if reply is None:
                continue
            job = self._jobs.pop(worker)
            self._log_output(worker, job)
            if job is None and "failed" in reply:
                raise RewardError(reply["failed"], function=reply["function"])
            if job is None:
                self._forms.add_facts(reply["loaded"])
            if job is not None and scoring is not None:
                scoring.add_reply(job, reply)

    def _replace(self, worker: Worker, cause: str, scoring: ScoringBatch | None, names: Sequence[str]) -> None:
        busy = worker in self._jobs
        job = self._jobs.pop(worker, None)
        self._log_output(worker, job)
        self._workers.remove(worker)
        worker.kill()
        if busy and job is None:
            functions = ", ".join(part.name for part in self._parts)
            raise RewardError(
                f"importing the rewards ({functions}) {cause}; look at what their modules do when they are imported",
                function=functions,
            )
        if job is not None and scoring is not None:
            scoring.add_loss(job, cause)
        self._fill(names)

    def _log_output(self, worker: Worker, job: Job | None) -> None:
        text = worker.printed()
        if text:
            names = [part.name for part in self._parts if ":" in part.name] or [self._parts[0].name]
            printed(self._parts[job.part].name if job is not None else f"importing {', '.join(names)}", text)
