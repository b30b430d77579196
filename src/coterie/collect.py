"""Phase 1: prompts → rollouts, each stamped with its context."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coterie.engines.base import Engine, Request, Sampling
from coterie.engines.contract import check_turns
from coterie.envs.base import Environment, Episode
from coterie.errors import RewardError
from coterie.types import Context, Message, Outcome, Prompt, Rollout, SampleKey, StopReason, Turn


class Score(Protocol):
    """What the scorer says of one completion."""

    @property
    def reward(self) -> float | None: ...
    @property
    def parts(self) -> Mapping[str, float | None]: ...
    @property
    def error(self) -> str | None: ...


class Scorer(Protocol):
    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Sequence[Score]: ...


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

    def collect(self, prompts: Sequence[Prompt], *, samples: int, sampling: Sampling) -> Experience:
        """`samples` rollouts of each prompt; a prompt that was drawn twice gets twice as many, as one group.

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
        turns, episodes = self._sample(attempts, sampling)
        sampled = time.perf_counter()
        completions = [self.chat.decode(turn.tokens) for turn in turns]
        scores = self.scorer.score([prompt for prompt, _ in attempts], completions)
        rollouts = tuple(
            _rollout(prompt, sample, turn, completion, score, _ends(episode, completion))
            for (prompt, sample), turn, completion, score, episode in zip(
                attempts, turns, completions, scores, episodes, strict=True
            )
        )
        self._check(rollouts)
        return Experience(
            prompts=tuple(distinct.values()),
            rollouts=rollouts,
            generate_seconds=sampled - started,
            reward_seconds=time.perf_counter() - sampled,
        )

    def _sample(self, attempts: Sequence[tuple[Prompt, int]], sampling: Sampling) -> tuple[list[Turn], list[Episode]]:
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
        turns = self.engine.generate(requests, sampling)
        check_turns(requests, turns, vocabulary=self.engine.vocabulary)
        return turns, episodes

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


def _rollout(prompt: Prompt, sample: int, turn: Turn, completion: str, score: Score, env_error: str | None) -> Rollout:
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
        ),
    )
