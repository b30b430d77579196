"""The records that flow through the four phases: collect → group → credit → update.

One frozen record per stage; the name of the type tells where you are. No torch here.
Axis letters in comments: P prompt tokens, C completion tokens, G members of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    import numpy as np


class Message(TypedDict):
    """One chat message, in the form every tokenizer's template takes."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    """Of an assistant, as transformers, TRL and vLLM have them; one with `text` stands in the content too."""
    tool_call_id: NotRequired[str]
    """Of a result: the call that it answers."""
    name: NotRequired[str]
    """Of a result: the tool."""
    error: NotRequired[str]
    """Of a result: kind of the failure, for records and rewards; no template is shown it."""


class StopReason(StrEnum):
    """Reason for which the engine stopped sampling a turn."""

    STOP = "stop"  # an end-of-turn token, or a stop string
    LENGTH = "length"  # the token limit
    DEADLINE = "deadline"  # the wall-clock limit
    ABANDONED = "abandoned"  # enough other prompts were whole
    EPISODE = "episode"  # a limit of the episode: its environment would have gone on

    @property
    def truncated(self) -> bool:
        return self is not StopReason.STOP


class Outcome(StrEnum):
    """End of a rollout. An infrastructure error is never a reward."""

    OK = "ok"
    TRUNCATED = "truncated"
    ENV_ERROR = "env_error"
    REWARD_ERROR = "reward_error"
    ENGINE_ERROR = "engine_error"

    @property
    def usable(self) -> bool:
        """True for outcomes that may enter a group."""
        return self in (Outcome.OK, Outcome.TRUNCATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt with its gold answer and the facts of its data row."""

    id: str
    """Unique within the run, stable across runs with the same data, e.g. `leg_counting/17`."""
    messages: tuple[Message, ...]
    """The chat so far; the last message is the user's."""
    answer: str | None
    """Gold answer, as text; None where only a reward function can judge."""
    task: str
    """Name of the task family, e.g. `leg_counting`."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able facts of the row: its other columns, the generator's parameters, `difficulty`."""
    source: str = ""
    """Kind and name of the data source, e.g. `file:words.jsonl`; empty when it came from none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleKey:
    """Names one random stream. Every draw of a turn is a function of these five counters and the token's index."""

    seed: int
    """The run's seed."""
    version: int
    """Policy version that samples."""
    prompt: str
    """Prompt id."""
    sample: int
    """Index of the attempt within its prompt."""
    turn: int = 0
    """Index of the model call within the attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One model call: tokens in, tokens out."""

    prompt_tokens: tuple[int, ...]
    """[P] the exact tokens of the model's input."""
    tokens: tuple[int, ...]
    """[C] the exact tokens that the model sampled, up to and including the end-of-turn token if it sampled one."""
    sampler_logprobs: tuple[float, ...]
    """[C] natural log-probability of each token under the distribution that was sampled from."""
    temperature: float
    stop_reason: StopReason
    version: int
    """Policy version that sampled every token of this turn."""
    sampler_entropies: tuple[float, ...] | None = None
    """[C] entropy of the distribution that each token was sampled from, nats; None where the engine does not tell."""
    state: str | None = None
    """Name of the environment's state before this turn; None where it allows one turn only."""
    reward: float = 0.0
    """The environment's reward for this turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSnapshot:
    """Statistics of a rollout's prompt and task when it was sampled: of earlier steps alone, never of its own."""

    time: float
    """Steps that the estimator has learned from where it remembers any, else the policy version."""
    attempts: int
    """Usable rollouts of the prompt before."""
    pass_rate: float | None
    """Share of correct ones; None before the first. This and the next two decay: `train/prompt_stats.py`."""
    reward: float | None
    """Their mean reward."""
    length: float | None
    """Their mean length, tokens."""
    task_attempts: int
    """The same of all prompts of the task."""
    task_pass_rate: float | None
    task_reward: float | None
    expected: float | None = None
    """Reward predicted by a group-aware estimator; None without one."""
    expected_std: float | None = None
    """Standard deviation of that prediction, reward units."""
    region: str | None = None
    """Leaf of its tree in which the prompt lay, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Facts of a rollout that a group key may read."""

    prompt_id: str
    task: str
    difficulty: float | None
    """From the data, higher is harder; None when unknown."""
    embedding: str | None = None
    """Reference of the stored prompt embedding, `step_000012#<prompt id>`: a row of that file under `prompts/`."""
    source: str = ""
    """Of the prompt."""
    domain: str | None = None
    """Subject that the row names; None when it names none."""
    complexity: Mapping[str, int] = field(default_factory=dict)
    """Length in characters, digits, operators, numbers, steps and tools of the prompt."""
    dispatch: SamplingSnapshot | None = None
    """None where nothing is remembered: held-out prompts, and rollouts stored before this was kept."""
    version: int
    """Policy version at dispatch: the run's clock."""
    prompt_length: int
    """Tokens."""
    completion_length: int
    """Tokens, over all turns."""
    stop_reason: StopReason
    """Of the last turn."""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReward:
    """Reward of one reasoning step."""

    end: int
    """Index of the step's last token among the rollout's own tokens, all turns laid end to end."""
    value: float
    """Unweighted."""
    label: str = ""
    """Of the step function that gave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One attempt at a prompt."""

    id: str
    """`<prompt id>#<sample>@<version>`."""
    sample: int
    turns: tuple[Turn, ...]
    completion: str
    """Decoded text of the model's last turn, for rewards and readers; the token ids stay the truth."""
    messages: tuple[Message, ...] = ()
    """The whole episode, the model's turns among it, for readers; empty where the model answered its prompt once."""
    reward: float | None
    """Weighted sum of the applicable parts; None when the outcome is an error."""
    reward_parts: Mapping[str, float | None]
    """Unweighted value of each named part; None = not applicable to this row."""
    step_rewards: tuple[StepReward, ...] = ()
    """By the token at which they end; several may end at the same."""
    outcome: Outcome
    error: str | None = None
    context: Context

    @property
    def stop_reason(self) -> StopReason:
        return self.turns[-1].stop_reason

    def continuations(self) -> Iterator[tuple[tuple[int, ...], Turn]]:
        """Each turn with the tokens of its prompt that follow the turn before: none for the first.

        Raises:
            ValueError: a later turn's prompt does not start with the exact tokens so far.
        """
        prefix = self.turns[0].prompt_tokens if self.turns else ()
        for number, turn in enumerate(self.turns):
            if turn.prompt_tokens[: len(prefix)] != prefix:
                raise ValueError(f"turn {number} of rollout {self.id} does not continue the tokens of the turn before")
            yield turn.prompt_tokens[len(prefix) :], turn
            prefix = turn.prompt_tokens + turn.tokens

    @property
    def trained_tokens(self) -> int:
        """Tokens that the policy sampled, over all turns."""
        return sum(len(turn.tokens) for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rollouts compared with each other at one scale."""

    scale: str
    """Name of the scale: `prompt` in plain GRPO."""
    key: str
    members: tuple[str, ...]
    """[G] rollout ids."""
    rewards: tuple[float, ...]
    """[G]"""
    weight: float = 1.0
    """Importance weight on its members' advantages, where its prompt was not drawn uniformly."""

    @property
    def zero_variance(self) -> bool:
        """All rewards equal: the group says nothing about which attempt was better."""
        return max(self.rewards) - min(self.rewards) < 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Advantage of one rollout relative to its groups."""

    rollout_id: str
    advantage: float | tuple[float, ...]
    """One number for all trained tokens of the rollout, or one for each of them, [C]."""
    clip_low: float
    """Offset below 1 of the ratio's trust interval."""
    clip_high: float
    """Offset above 1."""
    values: tuple[float, ...] | None = None
    """[C] the critic's values before the update; None without one."""
    returns: tuple[float, ...] | None = None
    """[C] the critic's targets; None without one."""
    replayed: bool = False
    """Of an earlier step, so the policy that sampled the rollout is the old one of its ratio."""
    contributions: Mapping[str, float] = field(default_factory=dict)
    """Share of the advantage by scale name (mean over the tokens), `steps` for that of the step rewards, and `state`
    for that of the comparison with other attempts at the same states."""

    @property
    def zero_advantage(self) -> bool:
        """The advantage is exactly zero, so the policy's gradient is."""
        return not (any(self.advantage) if isinstance(self.advantage, tuple) else self.advantage)

    def scaled(self, weight: float) -> Credit:
        """The credit with its advantage, or those of its tokens, times `weight`."""
        if weight == 1:
            return self
        advantage = self.advantage
        return replace(
            self, advantage=tuple(weight * x for x in advantage) if isinstance(advantage, tuple) else weight * advantage
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutScores:
    """Scores of one rollout's trained tokens before the update; all [C] float64."""

    logprobs: np.ndarray
    reference: np.ndarray | None = None
    """log π_ref; None without a KL."""
    entropy: np.ndarray | None = None
    values: np.ndarray | None = None
    """The critic's; None without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


PASS, REWARD = "pass@1", "reward"
"""Metrics by which evaluations are compared: share of correct attempts, and mean reward (TRL's `eval/reward`)."""

POOLED = "all"
"""Task name of an evaluation's result over all tasks, which therefore no source may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One held-out evaluation of one task, or of `POOLED`."""

    step: int
    task: str
    prompts: int
    samples: int
    """Attempts per prompt."""
    k: int
    pass_at_1: Interval | None
    """Share of correct attempts; without `eval.correct_threshold`, None where the evaluated reward is graded, or has
    been 0 in the whole run and is not known to be binary."""
    pass_at_k: Interval | None
    """None where `pass_at_1` is."""
    mean_length: float
    """Tokens per completion."""
    truncated: float
    """Share of completions cut by the token limit."""
    reward: Interval | None = None
    """Mean reward, the weighted sum of the parts, over prompts; None in runs of before it was recorded."""
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    """Unweighted mean of each reward part over the attempts to which it applies."""

    @property
    def is_zero(self) -> bool:
        """True if every prompt has a mean reward of 0, which is 0 % correct once the reward turns out to be binary."""
        return self.reward is not None and self.reward.value == self.reward.low == self.reward.high == 0

    def metric(self, name: str) -> Interval | None:
        """The value of `PASS` or `REWARD`; None where this evaluation does not have it."""
        if name == PASS and self.pass_at_1 is None and self.is_zero:
            return self.reward
        return self.pass_at_1 if name == PASS else self.reward


def metric_of(results: Iterable[EvalResult]) -> str:
    """The metric by which these evaluations are compared with each other: `PASS` where the evaluated reward is binary
    in them, `REWARD` where it is graded in any, or 0 in all, which may be a graded reward that has not risen yet."""
    results = list(results)
    lacking = [result for result in results if result.pass_at_1 is None]
    graded = any(not result.is_zero for result in lacking)
    return REWARD if graded or len(lacking) == len(results) > 0 else PASS


def overall(results: Sequence[EvalResult]) -> list[EvalResult]:
    """The pooled evaluations, or those of the only task; empty where several tasks were not pooled."""
    pooled = [result for result in results if result.task == POOLED]
    tasks = {result.task for result in results}
    return pooled or (list(results) if len(tasks) == 1 else [])
