"""Packing of an optimizer step's rollouts into rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coterie.algo.aggregation import LossAggMode, token_weights
from coterie.batches.batch import Batch, Segment, shared_head
from coterie.rng import generator
from coterie.types import Credit, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Division of a step's rollouts into optimizer steps and packed rows; see `plan` for the fields named there."""

    loss_agg_mode: LossAggMode
    max_tokens_per_microbatch: int
    skip_zero: bool
    max_tokens: int = 0
    minibatches: int = 1
    """Optimizer steps per pass over the rollouts, which are split at random, as in DeepSeek-R1."""
    epochs: int = 1
    """Passes over the rollouts."""
    seed: int = 0
    """Of the split, with the step and the epoch."""


def pack(rollouts: Mapping[str, Rollout], credits: Sequence[Credit], packing: Packing, step: int) -> list[list[Batch]]:
    """Packed rows of each optimizer step, each over a global denominator of its own.

    Args:
        rollouts: by id; those without credit take no part.
        credits: one per rollout that is trained on.
        step: steps done before this one; it names the split.
    """
    credited, head = {credit.rollout_id for credit in credits}, step_head(rollouts.values())
    usable = [rollout for name, rollout in rollouts.items() if name in credited]
    plans = []
    for epoch in range(packing.epochs):
        if packing.minibatches == 1:
            parts = [usable]
        else:
            order = generator("minibatch", packing.seed, step, epoch).permutation(len(usable))
            parts = [[usable[k] for k in order[part :: packing.minibatches]] for part in range(packing.minibatches)]
        plans += [
            plan(
                part,
                credits,
                loss_agg_mode=packing.loss_agg_mode,
                max_tokens_per_microbatch=packing.max_tokens_per_microbatch,
                skip_zero=packing.skip_zero,
                max_tokens=packing.max_tokens,
                head=head,
            )
            for part in parts
        ]
    return plans


def without_truncated(credits: Sequence[Credit], rollouts: Mapping[str, Rollout]) -> list[Credit]:
    """Credits of the rollouts that ended by themselves: DAPO's overlong filtering."""
    return [credit for credit in credits if not rollouts[credit.rollout_id].stop_reason.truncated]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sequence:
    """A rollout as the learner sees it: the tokens after the shared prompt."""

    rollout_id: str
    prompt: tuple[int, ...]
    tokens: np.ndarray  # [C] own tokens, and those of later turns' prompts
    trained: np.ndarray  # [C] bool: sampled by the policy
    logprobs: np.ndarray  # [C] sampler's; 0 where not trained
    credit: Credit
    weight: float


def continuation(rollout: Rollout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens after the first prompt: ids [C], loss mask [C] bool, sampler log-probs [C] (0 where not trained)."""
    tokens: list[int] = []
    trained: list[bool] = []
    logprobs: list[float] = []
    for added, turn in rollout.continuations():
        tokens += [*added, *turn.tokens]
        trained += [False] * len(added) + [True] * len(turn.tokens)
        logprobs += [0.0] * len(added) + list(turn.sampler_logprobs)
    return (
        np.array(tokens, dtype=np.int64),
        np.array(trained, dtype=bool),
        np.array(logprobs, dtype=np.float64),
    )


def plan(
    rollouts: Sequence[Rollout],
    credits: Sequence[Credit],
    *,
    loss_agg_mode: LossAggMode,
    max_tokens_per_microbatch: int,
    skip_zero: bool,
    max_tokens: int = 0,
    head: int | None = None,
) -> list[Batch]:
    """Packed batches of one optimizer step.

    The head that all prompts share lies once in each row, even where a row has one prompt and nothing is saved: in
    few digits it matters that the sampler and every pass of the learner cut a prompt at the same place.

    Rollouts of earlier steps (`Credit.replayed`) count in the denominator like any other: with R fresh and K replayed
    ones under "seq-mean-token-mean", each weighs 1 / (R + K). So replay does not lengthen the step, it shares it.

    Args:
        rollouts: the step's rollouts; those without credit or without trained tokens take no part.
        credits: one per usable rollout.
        loss_agg_mode: which global denominator; see `ObjectiveConfig`.
        max_tokens_per_microbatch: most tokens in one packed row; a single rollout longer than this gets a row of its
            own, and a group is not cut below twice its prompt.
        skip_zero: leave out rollouts whose advantage is exactly zero. Exact when nothing but the advantage has a
            gradient (no KL, entropy or value term in the loss), because the denominator still counts them.
        max_tokens: the constant that `loss_agg_mode = "seq-mean-token-sum-norm"` divides by.
        head: with how many tokens all prompts start, where these rollouts are some of more; see `shared_head`.
    """
    if head is None:
        head = step_head(rollouts)
    by_id = {credit.rollout_id: credit for credit in credits}
    sequences = _sequences([rollout for rollout in rollouts if rollout.id in by_id], by_id, loss_agg_mode, max_tokens)
    kept = [item for item in sequences if not (skip_zero and item.credit.zero_advantage)]
    units = list(_units(kept, max_tokens_per_microbatch))
    starts = {unit[0].prompt[:head] for unit in units}
    if len(starts) > 1 or any(len(unit[0].prompt) <= head for unit in units):
        raise ValueError(f"the prompts do not all start with the same {head} tokens and one more of their own")
    return [_pack(row, head) for row in _fill(units, max_tokens_per_microbatch, head)]


def step_head(rollouts: Iterable[Rollout]) -> int:
    """Number of tokens that the prompts of all rollouts start with, if running them once saves enough; else 0."""
    return shared_head([rollout.turns[0].prompt_tokens for rollout in rollouts if rollout.turns])


def plan_scoring(rollouts: Sequence[Rollout], *, max_tokens_per_microbatch: int) -> list[Batch]:
    """Packed batches of every trained token for a scoring pass, whose advantages are zero."""
    zero_credits = [Credit(rollout_id=rollout.id, advantage=0.0, clip_low=0.0, clip_high=0.0) for rollout in rollouts]
    return plan(
        rollouts,
        zero_credits,
        loss_agg_mode="token-mean",
        max_tokens_per_microbatch=max_tokens_per_microbatch,
        skip_zero=False,
    )


def _sequences(
    rollouts: Sequence[Rollout], credits: Mapping[str, Credit], loss_agg_mode: LossAggMode, max_tokens: int
) -> list[_Sequence]:
    parts = [(rollout, *continuation(rollout)) for rollout in rollouts]
    parts = [part for part in parts if part[2].any()]
    lengths = np.array([trained.sum() for _, _, trained, _ in parts], dtype=np.int64)
    prompts: dict[tuple[str, int], int] = {}  # a prompt of an earlier step is another one: its group stays whole
    keys = [(rollout.context.prompt_id, rollout.context.version) for rollout, *_ in parts]
    groups = [prompts.setdefault(key, len(prompts)) for key in keys]
    weights = token_weights(lengths, groups, loss_agg_mode, max_tokens=max_tokens)
    return [
        _Sequence(
            rollout_id=rollout.id,
            prompt=rollout.turns[0].prompt_tokens,
            tokens=tokens,
            trained=trained,
            logprobs=logprobs,
            credit=_checked(credits[rollout.id], int(trained.sum())),
            weight=float(weight),
        )
        for (rollout, tokens, trained, logprobs), weight in zip(parts, weights, strict=True)
    ]


def _checked(credit: Credit, count: int) -> Credit:
    """The credit, checked to have one number for each trained token where it is per token."""
    for name in ("advantage", "values", "returns"):
        per_token = getattr(credit, name)
        if isinstance(per_token, tuple) and len(per_token) != count:
            raise ValueError(
                f"the credit of rollout {credit.rollout_id} has {len(per_token)} {name} for {count} trained tokens"
            )
    return credit


def _units(sequences: Sequence[_Sequence], budget: int) -> Iterator[list[_Sequence]]:
    """Sequences that share a prompt, cut where they exceed the budget (the prompt is then repeated).

    A long prompt raises the budget to twice its own length: it has to be run in any case, and running it again for
    every other rollout would cost far more than it saves.
    """
    by_prompt: dict[tuple[int, ...], list[_Sequence]] = {}
    for item in sequences:
        by_prompt.setdefault(item.prompt, []).append(item)
    for prompt, items in by_prompt.items():
        unit: list[_Sequence] = []
        size = len(prompt)
        limit = max(budget, 2 * size)
        for item in items:
            if unit and size + len(item.tokens) > limit:
                yield unit
                unit, size = [], len(prompt)
            unit.append(item)
            size += len(item.tokens)
        yield unit


def _size(unit: Sequence[_Sequence]) -> int:
    return len(unit[0].prompt) + sum(len(item.tokens) for item in unit)


def _fill(units: list[list[_Sequence]], budget: int, head: int = 0) -> Iterator[list[list[_Sequence]]]:
    row: list[list[_Sequence]] = []
    size = head
    for unit in units:
        unit_size = _size(unit) - head
        if row and size + unit_size > budget:
            yield row
            row, size = [], head
        row.append(unit)
        size += unit_size
    if row:
        yield row


def _pack(units: Sequence[Sequence[_Sequence]], head: int = 0) -> Batch:
    """Pack one row; `head` tokens, with which all its prompts start, lie at its start once."""
    tokens = [np.array(units[0][0].prompt[:head], dtype=np.int64)]
    positions = [np.arange(head)]
    segments: list[Segment] = []
    sources: list[np.ndarray] = []
    spans: dict[str, tuple[int, int]] = {}
    cursor, trained = head, 0
    for unit in units:
        prompt = np.array(unit[0].prompt[head:], dtype=np.int64)
        lengths = tuple(len(item.tokens) for item in unit)
        segments.append(Segment(start=cursor, prompt=len(prompt), lengths=lengths, head=head))
        tokens.append(prompt)
        positions.append(head + np.arange(len(prompt)))
        last = cursor + len(prompt) - 1  # the state that predicts every continuation's first token
        cursor += len(prompt)
        for item in unit:
            count = len(item.tokens)
            tokens.append(item.tokens)
            positions.append(head + len(prompt) + np.arange(count))
            predictors = np.concatenate([[last], cursor + np.arange(count - 1)])
            sources.append(predictors[item.trained])
            spans[item.rollout_id] = (trained, trained + len(sources[-1]))
            cursor, trained = cursor + count, trained + len(sources[-1])
    items = [item for unit in units for item in unit]

    def broadcast_to_tokens(value: str) -> np.ndarray:
        return np.concatenate([np.broadcast_to(getattr(item.credit, value), item.trained.sum()) for item in items])

    has_returns = all(item.credit.returns is not None for item in items)

    return Batch(
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions).astype(np.int64),
        segments=tuple(segments),
        sources=np.concatenate(sources).astype(np.int64),
        targets=np.concatenate([item.tokens[item.trained] for item in items]),
        sampler_logprobs=np.concatenate([item.logprobs[item.trained] for item in items]),
        advantages=broadcast_to_tokens("advantage"),
        clip_low=broadcast_to_tokens("clip_low"),
        clip_high=broadcast_to_tokens("clip_high"),
        weights=np.concatenate([np.full(item.trained.sum(), item.weight) for item in items]),
        replayed=broadcast_to_tokens("replayed"),
        rollout=np.repeat(np.arange(len(items)), [item.trained.sum() for item in items]),
        values=broadcast_to_tokens("values") if has_returns else None,
        returns=broadcast_to_tokens("returns") if has_returns else None,
        spans=spans,
    )


def largest(*, prompt: int, completion: int, prompts: int, group_size: int, max_tokens_per_microbatch: int) -> Batch:
    """The largest packed row that `plan` can make of a step's rollouts, with made-up tokens and credit.

    Args:
        prompt: tokens of the longest prompt.
        completion: tokens of the longest completion.
        prompts: groups of a step.
        group_size: rollouts of a group.
        max_tokens_per_microbatch: most tokens of a packed row.
    """
    count = prompts * group_size
    units: list[list[_Sequence]] = []
    for group in range(prompts):
        items = [
            _Sequence(
                rollout_id=f"{group}#{member}",
                prompt=(0,) * prompt,
                tokens=np.zeros(completion, dtype=np.int64),
                trained=np.ones(completion, dtype=bool),
                logprobs=np.zeros(completion),
                credit=Credit(
                    rollout_id=f"{group}#{member}", advantage=1.0 - 2 * (member % 2), clip_low=0.2, clip_high=0.2
                ),
                weight=1 / (count * completion),
            )
            for member in range(group_size)
        ]
        units += _units(items, max_tokens_per_microbatch)
    rows = list(_fill(units, max_tokens_per_microbatch))
    return _pack(max(rows, key=lambda row: sum(map(_size, row))))
