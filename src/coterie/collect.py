"""Phase 1: prompts → rollouts, each stamped with its context."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from coterie.algo.grouping.facts import facts_of
from coterie.engines.base import Engine, Quorum, Request, Sampling
from coterie.engines.contract import check_turns
from coterie.envs.base import Environment, Episode
from coterie.errors import RewardError
from coterie.rewards.boundaries import token_ends
from coterie.types import Context, Message, Outcome, Prompt, Rollout, SampleKey, StepReward, StopReason, Turn


class Score(Protocol):
    """What the scorer says of one completion."""

    @property
    def reward(self) -> float | None: ...
    @property
    def parts(self) -> Mapping[str, float | None]: ...
    @property
    def error(self) -> str | None: ...
    @property
    def steps(self) -> Mapping[str, Sequence[tuple[int, float]]]: ...


class Scorer(Protocol):
    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], *, lengths: Sequence[int] | None = None
    ) -> Sequence[Score]: ...


class Renderer(Protocol):
    """The part of the chat that collecting needs: tokens in, text out for the rewards."""

    def render(self, messages: Sequence[Message]) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What one step collected."""

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

    def prompt_of(self, rollout: Rollout) -> Prompt:
        return next(prompt for prompt in self.prompts if prompt.id == rollout.context.prompt_id)

    @property
    def tokens(self) -> int:
        """Generated tokens."""
        return sum(rollout.context.completion_length for rollout in self.rollouts)

    @property
    def late(self) -> int:
        """Completions that the deadline cut: they would end otherwise on a faster machine."""
        return sum(rollout.stop_reason is StopReason.DEADLINE for rollout in self.rollouts)

    @property
    def errors(self) -> list[Rollout]:
        return [rollout for rollout in self.rollouts if not rollout.outcome.usable]


class Collector:
    """Samples and scores rollouts.

    Args:
        seed: of the run; every draw derives from it and from (version, prompt, sample, turn).
        max_error_share: a larger share of errors in one call ends the run with the first error's text.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        environment: Environment,
        chat: Renderer,
        scorer: Scorer,
        seed: int,
        max_error_share: float,
    ) -> None:
        self.engine = engine
        self.environment = environment
        self.chat = chat
        self.scorer = scorer
        self.seed = seed
        self.max_error_share = max_error_share

    def collect(
        self, prompts: Sequence[Prompt], *, samples: int, sampling: Sampling, quorum: Quorum | None = None
    ) -> Experience:
        """`samples` rollouts of each prompt; a prompt that was drawn twice gets twice as many, as one group.

        With a quorum, sampling stops as soon as enough prompts are whole; the others are given back unjudged.

        Raises:
            EngineError: sampling failed; nothing is scored then.
            RewardError: more than `max_error_share` of the rollouts could not be scored.
        """
        counts: dict[str, int] = {}
        distinct = {prompt.id: prompt for prompt in prompts}
        for prompt in prompts:
            counts[prompt.id] = counts.get(prompt.id, 0) + samples
        attempts = [(distinct[name], sample) for name, count in counts.items() for sample in range(count)]
        started = time.perf_counter()
        turns, episodes = self._sample(attempts, sampling, quorum)
        sampled = time.perf_counter()
        left = {
            prompt.id
            for (prompt, _), turn in zip(attempts, turns, strict=True)
            if turn.stop_reason is StopReason.ABANDONED
        }
        kept = [k for k, (prompt, _) in enumerate(attempts) if prompt.id not in left]
        wasted = sum(len(turn.tokens) for turn in turns) - sum(len(turns[k].tokens) for k in kept)
        attempts, turns = [attempts[k] for k in kept], [turns[k] for k in kept]
        episodes = [episodes[k] for k in kept]
        completions = [self.chat.decode(turn.tokens) for turn in turns]
        lengths = [len(turn.tokens) for turn in turns]
        scores = self.scorer.score([prompt for prompt, _ in attempts], completions, lengths=lengths)
        facts = {prompt.id: facts_of(prompt) for prompt in distinct.values()}
        rollouts = tuple(
            _rollout(
                prompt,
                facts[prompt.id],
                sample,
                turn,
                completion,
                score,
                _ends(episode, completion),
                self._steps(turn, completion, score),
            )
            for (prompt, sample), turn, completion, score, episode in zip(
                attempts, turns, completions, scores, episodes, strict=True
            )
        )
        self._check(rollouts)
        return Experience(
            prompts=tuple(prompt for prompt in distinct.values() if prompt.id not in left),
            rollouts=rollouts,
            generate_seconds=sampled - started,
            reward_seconds=time.perf_counter() - sampled,
            abandoned=tuple(prompt for prompt in distinct.values() if prompt.id in left),
            abandoned_tokens=wasted,
        )

    def _sample(
        self, attempts: Sequence[tuple[Prompt, int]], sampling: Sampling, quorum: Quorum | None
    ) -> tuple[list[Turn], list[Episode]]:
        rendered: dict[str, tuple[int, ...]] = {}
        requests, episodes = [], []
        for prompt, sample in attempts:
            episode = self.environment.episode(prompt)
            opening = next(episode)
            if prompt.id not in rendered:
                rendered[prompt.id] = tuple(self.chat.render(opening))
            key = SampleKey(seed=self.seed, version=self.engine.version, prompt=prompt.id, sample=sample)
            requests.append(Request(key=key, prompt_tokens=rendered[prompt.id]))
            episodes.append(episode)
        turns = self.engine.generate(requests, sampling, quorum)
        check_turns(requests, turns, vocabulary=self.engine.vocabulary, sampling=sampling, quorum=quorum)
        return turns, episodes

    def _steps(self, turn: Turn, completion: str, score: Score) -> tuple[StepReward, ...]:
        """The steps' ends in tokens instead of characters."""
        if not any(score.steps.values()):
            return ()
        ends = sorted({end for steps in score.steps.values() for end, _ in steps})
        tokens = dict(zip(ends, token_ends([turn.tokens], ends, self.chat.decode), strict=True))
        found = [
            StepReward(end=tokens[end], value=value, label=label)
            for label, steps in score.steps.items()
            for end, value in steps
        ]
        return tuple(sorted(found, key=lambda step: step.end))

    def _check(self, rollouts: Sequence[Rollout]) -> None:
        failed = [rollout for rollout in rollouts if not rollout.outcome.usable]
        if len(failed) > self.max_error_share * len(rollouts):
            raise RewardError(
                f"{len(failed)} of {len(rollouts)} rollouts ended in an error (allowed: collect.max_error_share = "
                f"{self.max_error_share}); the first, {failed[0].id}: {failed[0].error}",
                function="rewards",
            )


def _ends(episode: Episode, completion: str) -> str | None:
    """None when the episode is over after this completion, else why it cannot be used."""
    try:
        episode.send(completion)
    except StopIteration:
        return None
    except Exception as error:
        return f"the environment raised {type(error).__name__}: {error}"
    return "the environment asked for another turn, but only single-turn episodes are collected"


def _rollout(
    prompt: Prompt,
    facts: Mapping[str, Any],
    sample: int,
    turn: Turn,
    completion: str,
    score: Score,
    env_error: str | None,
    steps: tuple[StepReward, ...],
) -> Rollout:
    outcome = Outcome.TRUNCATED if turn.stop_reason.truncated else Outcome.OK
    error = env_error or score.error
    if score.error is not None:
        outcome = Outcome.REWARD_ERROR
    if turn.stop_reason is StopReason.DEADLINE and not turn.tokens:
        outcome, error = Outcome.ENGINE_ERROR, "sampling.deadline_s passed before its first token"
    if env_error is not None:
        outcome = Outcome.ENV_ERROR
    difficulty = prompt.attributes.get("difficulty")
    return Rollout(
        id=f"{prompt.id}#{sample}@{turn.version}",
        sample=sample,
        turns=(turn,),
        completion=completion,
        reward=score.reward if outcome.usable else None,
        reward_parts=dict(score.parts),
        step_rewards=steps if outcome.usable else (),
        outcome=outcome,
        error=error,
        context=Context(
            prompt_id=prompt.id,
            task=prompt.task,
            difficulty=float(difficulty) if isinstance(difficulty, int | float) else None,
            version=turn.version,
            prompt_length=len(turn.prompt_tokens),
            completion_length=len(turn.tokens),
            stop_reason=turn.stop_reason,
            attributes=prompt.attributes,
            **facts,
        ),
    )
