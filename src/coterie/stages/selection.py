"""Selection of rollouts worth imitating: by outcome, reward, length and diversity, balanced over groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from coterie.config.imitation import RejectionConfig
from coterie.runs.rollouts import RolloutRecord
from coterie.text import conversation
from coterie.types import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A rollout that may be kept."""

    record: RolloutRecord
    run: str
    """Run that sampled it."""
    step: int
    correct: bool
    """By the evaluation's criterion."""

    @property
    def prompt(self) -> str:
        return self.record.prompt.id

    @property
    def tokens(self) -> int:
        """Of the model, over all turns."""
        return self.record.rollout.context.completion_length

    @property
    def reward(self) -> float:
        reward = self.record.rollout.reward
        return float("-inf") if reward is None else reward

    @property
    def text(self) -> str:
        """What the model said, over all turns."""
        rollout = self.record.rollout
        if not rollout.messages:
            return rollout.completion
        return conversation([message for message in rollout.messages if message["role"] == "assistant"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """Rollouts kept, and why the others are not."""

    kept: tuple[Candidate, ...]
    """In the order of their prompts' first appearance."""
    reasons: Mapping[str, int]
    """Number of candidates by the first rule that left them out."""
    candidates: int
    prompts: int
    """Distinct prompts among the candidates."""
    solved: int
    """Of these, the ones with a correct rollout."""


def select(candidates: Sequence[Candidate], settings: RejectionConfig) -> Selected:
    """Apply the rules in their order: outcome, reward, step rewards, length; then likeness and number within a prompt;
    then the balance over groups. A function of its arguments alone."""
    reasons: Counter[str] = Counter()
    by_prompt: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        reason = refusal(candidate, settings)
        if reason:
            reasons[reason] += 1
        else:
            by_prompt.setdefault(candidate.prompt, []).append(candidate)
    kept: list[Candidate] = []
    for group in by_prompt.values():
        kept += _of_prompt(group, settings, reasons)
    if settings.rows is not None and len(kept) > settings.rows:
        chosen = balanced(kept, settings.rows, GROUPS[settings.balance])
        reasons["beyond the number of rows"] += len(kept) - len(chosen)
        kept = chosen
    return Selected(
        kept=tuple(kept),
        reasons=dict(reasons),
        candidates=len(candidates),
        prompts=len({candidate.prompt for candidate in candidates}),
        solved=len({candidate.prompt for candidate in candidates if candidate.correct}),
    )


def refusal(candidate: Candidate, settings: RejectionConfig) -> str:
    """The first rule by which a rollout is not kept, whatever the others are; empty where there is none."""
    rollout = candidate.record.rollout
    if not rollout.outcome.usable:
        return "ended in an error"
    if rollout.outcome is Outcome.TRUNCATED:
        return "cut by a limit"
    if settings.min_reward is None and not candidate.correct:
        return "not correct"
    if settings.min_reward is not None and candidate.reward < settings.min_reward - 1e-9:
        return "reward too small"
    limit = settings.min_step_reward
    if limit is not None and any(step.value < limit - 1e-9 for step in rollout.step_rewards):
        return "a step's reward too small"
    if candidate.tokens < settings.min_tokens:
        return "too short"
    if settings.max_tokens is not None and candidate.tokens > settings.max_tokens:
        return "too long"
    return ""


PREFERENCES: Mapping[str, Callable[[Candidate], tuple[float, ...]]] = {
    "reward": lambda candidate: (-candidate.reward, candidate.tokens),
    "short": lambda candidate: (candidate.tokens, -candidate.reward),
    "first": lambda candidate: (),
}
"""`prefer` → sort key; equal ones stay in the order in which they were sampled."""

GROUPS: Mapping[str, Callable[[Candidate], str]] = {
    "none": lambda candidate: "",
    "task": lambda candidate: candidate.record.prompt.task,
    "difficulty": lambda candidate: str(candidate.record.rollout.context.difficulty),
    "region": lambda candidate: str(getattr(candidate.record.rollout.context.dispatch, "region", None)),
}
"""`balance` → name of a rollout's group."""


def _of_prompt(group: Sequence[Candidate], settings: RejectionConfig, reasons: Counter[str]) -> list[Candidate]:
    """The rollouts of one prompt that are kept, the preferred ones first."""
    kept: list[Candidate] = []
    likeness: list[frozenset[tuple[str, str]]] = []
    texts: set[str] = set()
    for candidate in sorted(group, key=PREFERENCES[settings.prefer]):
        words = candidate.text.split()
        text, pairs = " ".join(words), frozenset(pairwise(words))
        if text in texts:
            reasons["repeats a kept text"] += 1
        elif any(similarity(pairs, other) > settings.max_similarity for other in likeness):
            reasons["too similar to a kept text"] += 1
        elif len(kept) == settings.per_prompt:
            reasons["beyond the number per prompt"] += 1
        else:
            kept.append(candidate)
            likeness.append(pairs)
            texts.add(text)
    return kept


def similarity(first: frozenset[tuple[str, str]], second: frozenset[tuple[str, str]]) -> float:
    """Share of word pairs that two texts have in common (Jaccard index); 0 where there are none.

    >>> similarity(frozenset({("a", "b"), ("b", "c")}), frozenset({("a", "b")}))
    0.5
    """
    union = len(first | second)
    return len(first & second) / union if union else 0.0


def balanced(candidates: Sequence[Candidate], count: int, group_of: Callable[[Candidate], str]) -> list[Candidate]:
    """`count` candidates, taken in turn from each group from its first on; in the order given."""
    groups: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        groups.setdefault(group_of(candidate), []).append(index)
    chosen: list[int] = []
    for place in range(max(map(len, groups.values()), default=0)):
        for members in groups.values():
            if place < len(members) and len(chosen) < count:
                chosen.append(members[place])
    return [candidates[index] for index in sorted(chosen)]
