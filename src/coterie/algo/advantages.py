"""Advantages of the members of groups, and the groups themselves.

rewards - baseline  →  / scale  →  (to every token, with token rewards)  →  whiten  →  + step rewards, + states
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from coterie.algo.baselines import BASELINES, Baseline, Scored
from coterie.algo.returns import returns_to_go, step_advantages, whiten
from coterie.algo.scales import SCALES
from coterie.algo.token_baseline import OPTIMAL_TOKEN, token_advantages
from coterie.algo.turns import anchor_advantages, broadcast_to_tokens, episode_of, given_by_environment, has_states
from coterie.config.objective import AdvantageConfig
from coterie.types import Context, Credit, Group, Rollout

BATCH_BASELINES = ("batch_mean", "none")
"""Baselines that are defined for a single member of a group."""


def credit(
    groups: Sequence[Group],
    rollouts: Mapping[str, Rollout],
    config: AdvantageConfig,
    *,
    clip_low: float,
    clip_high: float,
    baseline: Baseline | None = None,
    part_weights: Mapping[str, float] | None = None,
    step_weights: Mapping[str, float] | None = None,
    token_rewards: Mapping[str, np.ndarray] | None = None,
    environment: Mapping[str, float] | None = None,
) -> list[Credit]:
    """One credit per member of each group, in their order; the clip bounds travel with it as data.

    Args:
        groups: of the whole collected batch: baselines, scales and whitening over the batch mean all of it.
        rollouts: by id; parts, steps and token counts are read from here.
        baseline: the user's own, where `config.baseline` names one.
        part_weights: weight of each reward part by its label, for `per_reward`.
        step_weights: weight of each step function by its label; 1 for those not named.
        token_rewards: [C] per rollout id, rewards of single tokens beside the outcome's, such as `kl_in_reward`; a
            token's advantage then is the sum of what follows, as in REINFORCE++.
        environment: weight of the reward part that was earned turn by turn, by label, for `gigpo_weight`.

    Raises:
        ValueError: the baseline or scale is not defined for these groups, or token rewards do not fit the tokens.
    """
    members = [rollouts[name] for group in groups for name in group.members]
    if not members:
        return []
    scales = [group.scale for group in groups for _ in group.members]
    steps = _step_advantages(groups, rollouts, config, step_weights)
    states = _state_advantages(groups, rollouts, config, environment or {})
    if config.baseline == OPTIMAL_TOKEN:
        pieces = token_advantages(groups, rollouts, config.scale)
    else:
        outcome = outcome_advantages(groups, rollouts, config, baseline=baseline, part_weights=part_weights)
        pieces = _per_token(members, outcome, config, token_rewards)
    return [
        _credit(rollout, piece, {"steps": step, "state": state}, scale, clip_low, clip_high)
        for rollout, piece, step, state, scale in zip(members, pieces, steps, states, scales, strict=True)
    ]


def outcome_advantages(
    groups: Sequence[Group],
    rollouts: Mapping[str, Rollout],
    config: AdvantageConfig,
    *,
    baseline: Baseline | None = None,
    part_weights: Mapping[str, float] | None = None,
) -> np.ndarray:
    """(reward - baseline) / scale of every member of every group, before whitening: [B], never NaN.

    A zero-variance group gives exactly 0 under the group baselines. A member to which a part does not apply gets 0 of
    it (`per_reward`), and does not enter the others' baseline.

    >>> from types import SimpleNamespace as Attempt  # all that is read of a rollout
    >>> four = {name: Attempt(trained_tokens=3, context=None) for name in "abcd"}
    >>> group = Group(scale="prompt", key="q", members=tuple("abcd"), rewards=(1, 0, 0, 1))
    >>> outcome_advantages([group], four, AdvantageConfig()).round(3).tolist()
    [0.866, -0.866, -0.866, 0.866]
    """
    estimate = partial(_estimate, groups=groups, rollouts=rollouts, config=config, baseline=baseline)
    if not config.per_reward:
        return estimate([np.array(group.rewards, dtype=np.float64) for group in groups])
    if not part_weights:
        raise ValueError("per_reward needs part_weights: the weight of each reward part by its label")
    total = np.zeros(sum(len(group.members) for group in groups))
    for label, weight in part_weights.items():
        if weight == 0:
            continue
        parts = [[rollouts[name].reward_parts.get(label) for name in group.members] for group in groups]
        values = [np.array([np.nan if v is None else v for v in row], dtype=np.float64) for row in parts]
        total += weight * estimate(values)
    return total


def _estimate(
    rewards: Sequence[np.ndarray],
    groups: Sequence[Group],
    rollouts: Mapping[str, Rollout],
    config: AdvantageConfig,
    baseline: Baseline | None,
) -> np.ndarray:
    """[B] centred and scaled; 0 where the reward is NaN (not applicable)."""
    scored: list[Scored] = []
    masks: list[np.ndarray] = []
    for group, values in zip(groups, rewards, strict=True):
        mask = np.isfinite(values)
        if mask.sum() == 1 < len(values) and baseline is None and config.baseline not in BATCH_BASELINES:
            mask[:] = False  # a part that applies to one member alone has no baseline
        masks.append(mask)
        members = [rollouts[name] for name, there in zip(group.members, mask, strict=True) if there]
        if members:
            lengths = np.array([rollout.trained_tokens for rollout in members], dtype=np.float64)
            contexts = tuple(rollout.context for rollout in members)
            scored.append(Scored(rewards=values[mask], lengths=lengths, contexts=contexts))
    out = np.zeros(sum(len(mask) for mask in masks))
    if scored:
        function = BASELINES[config.baseline] if baseline is None else baseline
        terms = zip(scored, function(scored), SCALES[config.scale](scored), strict=True)
        out[np.concatenate(masks)] = np.concatenate([(group.rewards - base) / size for group, base, size in terms])
    return out


def _per_token(
    members: Sequence[Rollout],
    outcome: np.ndarray,
    config: AdvantageConfig,
    token_rewards: Mapping[str, np.ndarray] | None,
) -> list[np.ndarray]:
    """[C] of each member: its outcome for all tokens, or, with token rewards, the outcome as reward of the last token,
    the token rewards added, summed up from the end; whitened."""
    if token_rewards is None:
        lengths = np.array([rollout.trained_tokens for rollout in members], dtype=np.float64)
        if config.whiten != "none":
            outcome = whiten(outcome, lengths if config.whiten == "tokens" else np.ones_like(lengths))
        return [np.full(max(int(length), 1), value) for length, value in zip(lengths, outcome, strict=True)]
    pieces = []
    for rollout, value in zip(members, outcome, strict=True):
        length = max(rollout.trained_tokens, 1)
        extra = token_rewards.get(rollout.id)
        if extra is not None and len(extra) != rollout.trained_tokens:
            raise ValueError(
                f"rollout {rollout.id} has {rollout.trained_tokens} trained tokens, but {len(extra)} token rewards"
            )
        token_values = np.zeros(length)
        token_values[: 0 if extra is None else len(extra)] = 0.0 if extra is None else extra
        token_values[-1] += value
        pieces.append(returns_to_go(token_values))
    if config.whiten == "none":
        return pieces
    weights = [
        np.full(len(piece), (1.0 if config.whiten == "tokens" else 1 / len(piece)) if rollout.trained_tokens else 0.0)
        for rollout, piece in zip(members, pieces, strict=True)
    ]
    flat = whiten(np.concatenate(pieces), np.concatenate(weights))
    return np.split(flat, np.cumsum([len(piece) for piece in pieces])[:-1])


def _step_advantages(
    groups: Sequence[Group],
    rollouts: Mapping[str, Rollout],
    config: AdvantageConfig,
    weights: Mapping[str, float] | None,
) -> list[np.ndarray | None]:
    """[C] weighted step advantages of every member; None where there are none."""
    out: list[np.ndarray | None] = []
    for group in groups:
        members = [rollouts[name] for name in group.members]
        if config.step_weight == 0:
            out += [None] * len(members)
            continue
        lengths = [rollout.trained_tokens for rollout in members]
        advantages = step_advantages([rollout.step_rewards for rollout in members], lengths, weights=weights)
        out += [config.step_weight * advantage if advantage.any() else None for advantage in advantages]
    return out


def _state_advantages(
    groups: Sequence[Group], rollouts: Mapping[str, Rollout], config: AdvantageConfig, environment: Mapping[str, float]
) -> list[np.ndarray | None]:
    """[C] weighted state advantages of every member; None where no other attempt came to any of its states, and in a
    single-turn environment. An episode that ended after its first turn has one like any other."""
    members = [rollouts[name] for group in groups for name in group.members]
    if config.gigpo_weight == 0 or not any(map(has_states, members)):
        return [None] * len(members)
    totals = [reward for group in groups for reward in group.rewards]
    environment_weight = given_by_environment(environment, "")
    episodes = [episode_of(rollout, total, environment_weight) for rollout, total in zip(members, totals, strict=True)]
    advantages = anchor_advantages(episodes, config.gamma, normalise=config.scale == "group_std")
    return [
        config.gigpo_weight * broadcast_to_tokens(values, rollout) if values.any() else None
        for rollout, values in zip(members, advantages, strict=True)
    ]


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


def _exact_mean(values: np.ndarray) -> float:
    """Mean over the tokens, exact where they are all equal."""
    return float(values[0] if _constant(values) else values.mean())


def _credit(
    rollout: Rollout,
    outcome: np.ndarray,
    extras: Mapping[str, np.ndarray | None],
    scale: str,
    clip_low: float,
    clip_high: float,
) -> Credit:
    contributions = {scale: outcome} | {name: values for name, values in extras.items() if values is not None}
    total = np.sum(list(contributions.values()), axis=0) if len(contributions) > 1 else outcome
    if not np.isfinite(total).all():
        raise ValueError(f"the advantage of rollout {rollout.id} is not finite; check the baseline function")
    return Credit(
        rollout_id=rollout.id,
        advantage=_exact_mean(total) if _constant(total) else tuple(total.tolist()),
        clip_low=clip_low,
        clip_high=clip_high,
        contributions={name: _exact_mean(values) for name, values in contributions.items()},
    )


# Groups: a scale is a name plus a key on `Context`; the order of the rollouts means nothing.

Key = Callable[[Context], str]


def by_key(rollouts: Iterable[Rollout], scale: str, key: Key) -> list[Group]:
    """Groups of the usable rollouts that share a key, in the order in which the keys first appear.

    Args:
        rollouts: any number, in any order; errors are left out.
        scale: name of the scale, recorded in each group.
        key: reads the context only, never the reward.
    """
    members: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        if rollout.outcome.usable:
            members.setdefault(key(rollout.context), []).append(rollout)
    return [
        Group(
            scale=scale,
            key=name,
            members=tuple(rollout.id for rollout in group),
            rewards=tuple(_reward(rollout) for rollout in group),
        )
        for name, group in members.items()
    ]


def by_prompt(rollouts: Iterable[Rollout]) -> list[Group]:
    """Plain GRPO: attempts at the same prompt under the same policy version."""
    return by_key(rollouts, "prompt", lambda context: f"{context.prompt_id}@{context.version}")


def informative(groups: Iterable[Group], credits: Sequence[Credit]) -> list[Credit]:
    """Credits of the groups in which some member has a non-zero advantage (ScaleRL: groups without variance are taken
    out of every denominator).

    >>> pair = [Group(scale="prompt", key=key, members=(f"{key}1", f"{key}2"), rewards=(0, 1)) for key in "ab"]
    >>> advantages = {"a1": -0.5, "a2": 0.5, "b1": 0.0, "b2": 0.0}
    >>> all_ = [Credit(rollout_id=name, advantage=a, clip_low=0.2, clip_high=0.2) for name, a in advantages.items()]
    >>> [credit.rollout_id for credit in informative(pair, all_)]
    ['a1', 'a2']
    """
    moving = {credit.rollout_id for credit in credits if not credit.zero_advantage}
    kept = {name for group in groups if not moving.isdisjoint(group.members) for name in group.members}
    return [credit for credit in credits if credit.rollout_id in kept]


def _reward(rollout: Rollout) -> float:
    if rollout.reward is None:
        raise ValueError(
            f"rollout {rollout.id} is {rollout.outcome} but has no reward; an error belongs in its outcome"
        )
    return rollout.reward
