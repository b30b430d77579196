"""From rollouts and credit to packed batches: the prompt once, its continuations behind it, no padding.

    tokens     [ prompt A | A's rollout 1 | A's rollout 2 | prompt B | B's rollout 1 | … ]
    positions  [ 0 1 2 3  | 4 5 6         | 4 5 6 7       | 0 1 2    | 3 4           | … ]

Where all prompts start alike (a system message, the template), that head is there once too:

    tokens     [ head | rest of prompt A | A's rollout 1 | rest of prompt B | B's rollout 1 | … ]
    positions  [ 0 1  | 2 3              | 4 5 6         | 2                | 3 4           | … ]

Axis letters: T tokens of the packed row, N trained tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coterie.algo.normalizers import Normalize, token_weights
from coterie.types import Credit, Rollout

SAVING = 0.05
"""Share of the prompts' tokens that a shared head has to save at least."""
LONG = 7000
"""What follows a head attends by an explicit mask, and so to all of itself instead of the causal half. Beside a small
model's matrix products that costs one such share for each token of its length; beside a larger model's less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One prompt and its continuations inside a packed row."""

    start: int
    """First token of the prompt, or of what follows the head."""
    prompt: int
    """How many tokens of the prompt lie there, at least 1."""
    lengths: tuple[int, ...]
    """Length of each continuation, in the order in which they follow the prompt."""
    head: int = 0
    """How many tokens of the prompt lie at the start of the row instead, equal for all its segments."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """One packed row: what a forward and backward pass needs."""

    tokens: np.ndarray
    """[T] int64."""
    positions: np.ndarray
    """[T] int64, restarting after each prompt for each of its continuations."""
    segments: tuple[Segment, ...]
    sources: np.ndarray
    """[N] int64: index in the row of the state that predicts the trained token."""
    targets: np.ndarray
    """[N] int64: the trained token."""
    sampler_logprobs: np.ndarray
    """[N] float64."""
    advantages: np.ndarray
    """[N] float64."""
    clip_low: np.ndarray
    clip_high: np.ndarray
    weights: np.ndarray
    """[N] float64: share of the optimizer step's global denominator."""
    replayed: np.ndarray
    """[N] bool: of a rollout of an earlier step; its ratio is to the policy that sampled it."""
    rollout: np.ndarray
    """[N] int64: which of the row's rollouts the token is of, from 0."""
    values: np.ndarray | None = None
    """[N] float64: what the critic said before the update; None without one."""
    returns: np.ndarray | None = None
    """[N] float64: what it should have said."""
    spans: Mapping[str, tuple[int, int]]
    """rollout id → its trained tokens' half-open range in the [N] arrays."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sequence:
    """A rollout as the learner sees it: what follows the shared prompt."""

    rollout_id: str
    prompt: tuple[int, ...]
    tokens: np.ndarray  # [C] own tokens, and those of later turns' prompts
    trained: np.ndarray  # [C] bool: sampled by the policy
    logprobs: np.ndarray  # [C] sampler's; 0 where not trained
    credit: Credit
    weight: float


def continuation(rollout: Rollout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What follows the first prompt: tokens [C], loss mask [C] bool, sampler log-probs [C] (0 where not trained).

    Raises:
        ValueError: a later turn's prompt does not start with the exact tokens so far.
    """
    seen = rollout.turns[0].prompt_tokens
    tokens: list[int] = []
    trained: list[bool] = []
    logprobs: list[float] = []
    for number, turn in enumerate(rollout.turns):
        if turn.prompt_tokens[: len(seen)] != seen:
            raise ValueError(f"turn {number} of rollout {rollout.id} does not continue the tokens of the turn before")
        added = turn.prompt_tokens[len(seen) :]
        tokens += [*added, *turn.tokens]
        trained += [False] * len(added) + [True] * len(turn.tokens)
        logprobs += [0.0] * len(added) + list(turn.sampler_logprobs)
        seen = turn.prompt_tokens + turn.tokens
    return (
        np.array(tokens, dtype=np.int64),
        np.array(trained, dtype=bool),
        np.array(logprobs, dtype=np.float64),
    )


def plan(
    rollouts: Sequence[Rollout],
    credits: Sequence[Credit],
    *,
    normalize: Normalize,
    token_budget: int,
    skip_zero: bool,
    max_tokens: int = 0,
) -> list[Batch]:
    """Packed batches of one optimizer step.

    Rollouts of earlier steps (`Credit.replayed`) count in the denominator like any other: with R fresh and K replayed
    ones under "sequence", each weighs 1 / (R + K). So replay does not lengthen the step, it shares it.

    Args:
        rollouts: the step's rollouts; those without credit or without trained tokens take no part.
        credits: one per usable rollout.
        normalize: which global denominator; see `ObjectiveConfig`.
        token_budget: most tokens in one packed row; a single rollout longer than this gets a row of its own, and a
            group is not cut below twice its prompt.
        skip_zero: leave out rollouts whose advantage is exactly zero. Exact when nothing but the advantage has a
            gradient (no KL, entropy or value term in the loss), because the denominator still counts them.
        max_tokens: the constant that `normalize = "constant"` divides by.
    """
    by_id = {credit.rollout_id: credit for credit in credits}
    sequences = _sequences([rollout for rollout in rollouts if rollout.id in by_id], by_id, normalize, max_tokens)
    kept = [item for item in sequences if not (skip_zero and item.credit.silent)]
    units = list(_units(kept, token_budget))
    head = shared_head([unit[0].prompt for unit in units])
    return [_pack(row, head) for row in _fill(units, token_budget, head)]


def shared_head(prompts: Sequence[Sequence[int]]) -> int:
    """With how many tokens all prompts start that are worth running only once; 0 where that would save too little.

    Every prompt keeps a token of its own, whose state says what comes next.
    """
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # in the order of tuples, so all others start with what these share
    limit = min(map(len, prompts)) - 1
    head = next((index for index in range(limit) if first[index] != last[index]), limit)
    worth = SAVING + (max(map(len, prompts)) - head) / LONG
    return head if head * (len(prompts) - 1) >= worth * sum(map(len, prompts)) else 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptRow:
    """Prompts alone in a packed row."""

    tokens: np.ndarray
    """[T] int64."""
    positions: np.ndarray
    """[T] int64."""
    segments: tuple[Segment, ...]
    """One a prompt, in the order given, without continuations."""
    head: int
    """Tokens at the start that belong to every prompt."""


def pack_prompts(prompts: Sequence[Sequence[int]]) -> PromptRow:
    """What all of them start with once, and the rest of each behind it."""
    head = shared_head(prompts)
    rests = [np.array(prompt[head:], dtype=np.int64) for prompt in prompts]
    starts = head + np.cumsum([0, *map(len, rests)])
    segments = [
        Segment(start=int(start), prompt=len(rest), lengths=(), head=head)
        for start, rest in zip(starts, rests, strict=False)
    ]
    return PromptRow(
        tokens=np.concatenate([np.array(prompts[0][:head], dtype=np.int64), *rests]),
        positions=np.concatenate([np.arange(head), *(head + np.arange(len(rest)) for rest in rests)]),
        segments=tuple(segments),
        head=head,
    )


def plan_scoring(rollouts: Sequence[Rollout], *, token_budget: int) -> list[Batch]:
    """Packed batches of every trained token, for a pass that only asks what is said of them: nobody earns anything."""
    nothing = [Credit(rollout_id=one.id, advantage=0.0, clip_low=0.0, clip_high=0.0) for one in rollouts]
    return plan(rollouts, nothing, normalize="token", token_budget=token_budget, skip_zero=False)


def _sequences(
    rollouts: Sequence[Rollout], credits: Mapping[str, Credit], normalize: Normalize, max_tokens: int
) -> list[_Sequence]:
    parts = [(rollout, *continuation(rollout)) for rollout in rollouts]
    parts = [part for part in parts if part[2].any()]
    lengths = np.array([trained.sum() for _, _, trained, _ in parts], dtype=np.int64)
    prompts: dict[tuple[str, int], int] = {}  # a prompt of an earlier step is another one: its group stays whole
    keys = [(rollout.context.prompt_id, rollout.context.version) for rollout, *_ in parts]
    groups = [prompts.setdefault(key, len(prompts)) for key in keys]
    weights = token_weights(lengths, groups, normalize, max_tokens=max_tokens)
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
    """Credit per token has one number for each trained token."""
    for name in ("advantage", "values", "returns"):
        found = getattr(credit, name)
        if isinstance(found, tuple) and len(found) != count:
            raise ValueError(
                f"the credit of rollout {credit.rollout_id} has {len(found)} {name} for {count} trained tokens"
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
        own = _size(unit) - head
        if row and size + own > budget:
            yield row
            row, size = [], head
        row.append(unit)
        size += own
    if row:
        yield row


def _pack(units: Sequence[Sequence[_Sequence]], head: int = 0) -> Batch:
    """One row; `head` tokens, with which all its prompts start, lie at its start once."""
    head = head if len(units) > 1 else 0
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

    def spread(value: str) -> np.ndarray:
        return np.concatenate([np.broadcast_to(getattr(item.credit, value), item.trained.sum()) for item in items])

    judged = all(item.credit.returns is not None for item in items)

    return Batch(
        tokens=np.concatenate(tokens),
        positions=np.concatenate(positions).astype(np.int64),
        segments=tuple(segments),
        sources=np.concatenate(sources).astype(np.int64),
        targets=np.concatenate([item.tokens[item.trained] for item in items]),
        sampler_logprobs=np.concatenate([item.logprobs[item.trained] for item in items]),
        advantages=spread("advantage"),
        clip_low=spread("clip_low"),
        clip_high=spread("clip_high"),
        weights=np.concatenate([np.full(item.trained.sum(), item.weight) for item in items]),
        replayed=spread("replayed"),
        rollout=np.repeat(np.arange(len(items)), [item.trained.sum() for item in items]),
        values=spread("values") if judged else None,
        returns=spread("returns") if judged else None,
        spans=spans,
    )


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Cut a packed row in two where the parts come closest to the same length; a prompt cut through is in both.

    Weights stay as they are, so the parts' losses and gradients add up to the whole's.

    Raises:
        ValueError: a single rollout cannot be cut.
    """
    if len(batch.spans) < 2:
        raise ValueError(f"a packed row of {len(batch.spans)} rollouts cannot be cut in two; expected at least 2")
    ends = np.concatenate([segment.start + segment.prompt + np.cumsum(segment.lengths) for segment in batch.segments])
    cut = 1 + int(np.argmin(np.abs(ends[:-1] - len(batch.tokens) / 2)))
    return _select(batch, 0, cut), _select(batch, cut, len(batch.spans))


def _select(batch: Batch, first: int, last: int) -> Batch:
    """The rollouts first..last-1 of a packed row, in its order."""
    head = batch.segments[0].head
    pieces = [np.arange(head)]  # where in the old row the new row's tokens are
    segments: list[Segment] = []
    seen, cursor = 0, head
    for segment in batch.segments:
        here = range(max(first - seen, 0), min(last - seen, len(segment.lengths)))
        seen += len(segment.lengths)
        if not here:
            continue
        lengths = tuple(segment.lengths[k] for k in here)
        begin = segment.start + segment.prompt + sum(segment.lengths[: here.start])
        pieces.append(np.arange(segment.start, segment.start + segment.prompt))
        pieces.append(np.arange(begin, begin + sum(lengths)))
        segments.append(Segment(start=cursor, prompt=segment.prompt, lengths=lengths, head=head))
        cursor += segment.prompt + sum(lengths)
    where = np.concatenate(pieces)
    names = list(batch.spans)[first:last]
    low, high = batch.spans[names[0]][0], batch.spans[names[-1]][1]
    part = slice(low, high)
    return replace(
        batch,
        tokens=batch.tokens[where],
        positions=batch.positions[where],
        segments=tuple(segments),
        sources=np.searchsorted(where, batch.sources[part]),
        targets=batch.targets[part],
        sampler_logprobs=batch.sampler_logprobs[part],
        advantages=batch.advantages[part],
        clip_low=batch.clip_low[part],
        clip_high=batch.clip_high[part],
        weights=batch.weights[part],
        replayed=batch.replayed[part],
        rollout=batch.rollout[part] - first,
        values=None if batch.values is None else batch.values[part],
        returns=None if batch.returns is None else batch.returns[part],
        spans={name: (batch.spans[name][0] - low, batch.spans[name][1] - low) for name in names},
    )


def largest(*, prompt: int, completion: int, prompts: int, group_size: int, token_budget: int) -> Batch:
    """The largest packed row that `plan` can make of a step's rollouts, with made-up tokens and credit.

    Args:
        prompt: tokens of the longest prompt.
        completion: tokens of the longest completion.
        prompts: groups of a step.
        group_size: rollouts of a group.
        token_budget: most tokens of a packed row.
    """
    everyone = prompts * group_size
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
                weight=1 / (everyone * completion),
            )
            for member in range(group_size)
        ]
        units += _units(items, token_budget)
    rows = list(_fill(units, token_budget))
    return _pack(max(rows, key=lambda row: sum(map(_size, row))))
