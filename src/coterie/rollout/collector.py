"""Phase 1: prompts → rollouts, each stamped with its context."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from coterie.data.complexity import facts_of
from coterie.engines.base import Engine, Quorum, Sampling
from coterie.envs.base import Environment, Limits
from coterie.errors import RewardError
from coterie.phases import PHASES
from coterie.rewards.steps import token_ends
from coterie.rollout.episodes import Attempt, ChatTemplate, Episodes
from coterie.types import Context, Message, Outcome, Prompt, Rollout, StepReward, StopReason

LOGGED, LOGGED_METRICS = "logged", "logged_metrics"
"""Attributes of a rollout's context: what reward functions gave to `log_extra` for it, and to `log_metric` in the call
that judged it."""


class Score(Protocol):
    """Scores of one completion."""

    @property
    def reward(self) -> float | None: ...
    @property
    def parts(self) -> Mapping[str, float | None]: ...
    @property
    def error(self) -> str | None: ...
    @property
    def steps(self) -> Mapping[str, Sequence[tuple[int, float]]]: ...
    @property
    def extra(self) -> Mapping[str, Any]: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


class Scorer(Protocol):
    """Scores of completions; `turns`, `messages` and `earned` come where the environment may have several turns,
    `openings` where the chat template opens the model's turn."""

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
    ) -> Sequence[Score]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """Rollouts that one step collected."""

    prompts: tuple[Prompt, ...]
    """The distinct prompts drawn."""
    rollouts: tuple[Rollout, ...]
    """By prompt, then by sample."""
    generate_seconds: float
    reward_seconds: float
    abandoned: tuple[Prompt, ...] = ()
    """Prompts whose attempts were not waited for; they have no rollouts here."""
    abandoned_tokens: int = 0
    """Tokens that had been generated for those."""
    environment_seconds: float = 0.0
    """That environments worked, in threads beside the sampling or not."""
    waited_seconds: float = 0.0
    """Part of `generate_seconds` in which sampling waited for them."""

    def prompt_of(self, rollout: Rollout) -> Prompt:
        return next(prompt for prompt in self.prompts if prompt.id == rollout.context.prompt_id)

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        return sum(rollout.context.completion_length for rollout in self.rollouts)

    @property
    def timed_out(self) -> int:
        """Completions that the deadline cut: they would end otherwise on a faster machine."""
        return sum(rollout.stop_reason is StopReason.DEADLINE for rollout in self.rollouts)

    @property
    def errors(self) -> list[Rollout]:
        """Rollouts that ended in an error."""
        return [rollout for rollout in self.rollouts if not rollout.outcome.usable]


class Collector:
    """Collector of rollouts: samples, scores and stamps them with their context.

    Args:
        seed: of the run; every draw derives from it and from (version, prompt, sample, turn).
        max_error_share: a larger share of errors in one call ends the run with the first error's text.
        limits: of episodes of several turns; an environment that would go on beyond them ends in a truncated rollout.
            None: one turn, of which the scorer is told no more than its text.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        environment: Environment,
        chat: ChatTemplate,
        scorer: Scorer,
        seed: int,
        max_error_share: float,
        limits: Limits | None = None,
    ) -> None:
        self.engine = engine
        self.environment = environment
        self.chat = chat
        self.scorer = scorer
        self.seed = seed
        self.max_error_share = max_error_share
        self.opening = getattr(chat, "opening", "")
        self.limits = limits

    def collect(
        self,
        prompts: Sequence[Prompt],
        *,
        samples: int,
        sampling: Sampling,
        quorum: Quorum | None = None,
        first_sample: int = 0,
    ) -> Experience:
        """`samples` rollouts of each prompt; a prompt that was drawn twice gets twice as many, as one group.

        With a quorum, sampling stops as soon as enough prompts are whole; the others are given back unjudged.

        Args:
            first_sample: number of each prompt's first rollout, where this policy version has sampled others before:
                its random draws are named by it.

        Raises:
            EngineError: sampling failed; nothing is scored then.
            RewardError: more than `max_error_share` of the rollouts could not be scored.
        """
        counts: dict[str, int] = {}
        distinct = {prompt.id: prompt for prompt in prompts}
        for prompt in prompts:
            counts[prompt.id] = counts.get(prompt.id, 0) + samples
        pairs = [(distinct[name], first_sample + k) for name, count in counts.items() for k in range(count)]
        started = time.perf_counter()
        episodes = Episodes(self.engine, self.environment, self.chat, seed=self.seed, limits=self.limits or Limits())
        with PHASES.measure("generate"):
            attempts = episodes.run(pairs, sampling, quorum)
        sampled = time.perf_counter()
        left = {attempt.prompt.id for attempt in attempts if attempt.turns[-1].stop_reason is StopReason.ABANDONED}
        kept = [attempt for attempt in attempts if attempt.prompt.id not in left]
        wasted = sum(map(_length, attempts)) - sum(map(_length, kept))
        with PHASES.measure("reward"):
            scores = self._scores(kept)
        facts = {prompt.id: facts_of(prompt) for prompt in distinct.values()}
        rollouts = tuple(
            _rollout(attempt, facts[attempt.prompt.id], score, self._steps(attempt, score))
            for attempt, score in zip(kept, scores, strict=True)
        )
        self._check(rollouts)
        return Experience(
            prompts=tuple(prompt for prompt in distinct.values() if prompt.id not in left),
            rollouts=rollouts,
            generate_seconds=sampled - started,
            reward_seconds=time.perf_counter() - sampled,
            abandoned=tuple(prompt for prompt in distinct.values() if prompt.id in left),
            abandoned_tokens=wasted,
            environment_seconds=episodes.busy_seconds,
            waited_seconds=episodes.waited_seconds,
        )

    def _scores(self, attempts: Sequence[Attempt]) -> Sequence[Score]:
        """Scores of each attempt's last turn; the scorer gets the other turns too where there may be several.

        A text begins with what the chat template opened in the prompt, `<think>` for some: that belongs to the layout.
        """
        opening = self.opening
        prompts = [attempt.prompt for attempt in attempts]
        completions = [opening + attempt.texts[-1] for attempt in attempts]
        facts: dict[str, Any] = {
            "lengths": [_length(attempt) for attempt in attempts],
            "tokens": [[token for turn in attempt.turns for token in turn.tokens] for attempt in attempts],
            "version": attempts[0].turns[0].version if attempts else 0,
        }
        if opening:
            facts["openings"] = [opening] * len(attempts)
        if self.limits is not None:
            facts["earned"] = [[turn.reward for turn in attempt.turns] for attempt in attempts]
            facts["turns"] = [[opening + text for text in attempt.texts] for attempt in attempts]
            facts["messages"] = [attempt.messages[attempt.shown[0] :] if attempt.shown else [] for attempt in attempts]
        return self.scorer.score(prompts, completions, **facts)

    def _steps(self, attempt: Attempt, score: Score) -> tuple[StepReward, ...]:
        """The steps' ends in tokens of all turns instead of characters of the last one."""
        if not any(score.steps.values()):
            return ()
        ends = sorted({end for steps in score.steps.values() for end, _ in steps})
        last = attempt.turns[-1].tokens
        before = _length(attempt) - len(last)
        # A step that ends within what the template opened ends with the first token that the model said.
        places = [max(end - len(self.opening), 1) for end in ends] if attempt.texts[-1] else []
        tokens = dict(zip(ends, token_ends([last], places, self.chat.decode), strict=True)) if places else {}
        rewards = [
            StepReward(end=before + tokens[end], value=value, label=label)
            for label, steps in score.steps.items()
            for end, value in steps
            if end in tokens
        ]
        return tuple(sorted(rewards, key=lambda step: step.end))

    def _check(self, rollouts: Sequence[Rollout]) -> None:
        failed = [rollout for rollout in rollouts if not rollout.outcome.usable]
        if len(failed) > self.max_error_share * len(rollouts):
            raise RewardError(
                f"{len(failed)} of {len(rollouts)} rollouts ended in an error (allowed: collect.max_error_share = "
                f"{self.max_error_share}); the first, {failed[0].id}: {failed[0].error}",
                function="rewards",
            )


def _length(attempt: Attempt) -> int:
    """Tokens that the model sampled, over all turns."""
    return sum(len(turn.tokens) for turn in attempt.turns)


def _rollout(attempt: Attempt, facts: Mapping[str, Any], score: Score, steps: tuple[StepReward, ...]) -> Rollout:
    prompt, first, last = attempt.prompt, attempt.turns[0], attempt.turns[-1]
    outcome = Outcome.TRUNCATED if last.stop_reason.truncated else Outcome.OK
    error = attempt.error or score.error
    if score.error is not None:
        outcome = Outcome.REWARD_ERROR
    if last.stop_reason is StopReason.DEADLINE and not last.tokens:
        outcome, error = Outcome.ENGINE_ERROR, "sampling.timeout_s passed before its first token"
    if attempt.error is not None:
        outcome, error = Outcome.ENV_ERROR, attempt.error
    difficulty = prompt.attributes.get("difficulty")
    return Rollout(
        id=f"{prompt.id}#{attempt.sample}@{first.version}",
        sample=attempt.sample,
        turns=tuple(attempt.turns),
        completion=attempt.texts[-1],
        messages=attempt.transcript,
        reward=score.reward if outcome.usable else None,
        reward_parts=dict(score.parts),
        step_rewards=steps if outcome.usable else (),
        outcome=outcome,
        error=error,
        context=Context(
            prompt_id=prompt.id,
            task=prompt.task,
            difficulty=float(difficulty) if isinstance(difficulty, int | float) else None,
            version=first.version,
            prompt_length=len(first.prompt_tokens),
            completion_length=_length(attempt),
            stop_reason=last.stop_reason,
            attributes={**prompt.attributes, **_logged(score)},
            **facts,
        ),
    )


def _logged(score: Score) -> dict[str, Any]:
    """Attributes of a rollout that reward functions logged."""
    attributes = {LOGGED: dict(score.extra), LOGGED_METRICS: dict(score.metrics)}
    return {name: values for name, values in attributes.items() if values}
