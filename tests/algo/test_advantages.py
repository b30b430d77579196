"""Estimators against hand-worked numbers, independent formulas, and what must not change them."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from attempts import attempt, batch, grouped
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.algo.advantages import credit, outcome_advantages
from coterie.algo.baselines import BASELINES, Scored
from coterie.algo.returns import kl_in_reward, returns_to_go, whiten
from coterie.algo.scales import SCALES
from coterie.algo.shaping import soft_overlong
from coterie.config.objective import AdvantageConfig

R, R2 = [1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]
REWARD = st.floats(-10, 10, width=16)
GROUPS = st.lists(st.lists(REWARD, min_size=2, max_size=6), min_size=1, max_size=5)
GROUP_BASELINES = ["group_mean", "leave_one_out", "length_weighted", "second_best"]
SHIFT_INVARIANT = [*GROUP_BASELINES, "batch_mean", "js2"]


def advantages(rewards: list[list[float]], lengths: Any = None, **rule: Any) -> list[list[float]]:
    groups, rollouts = batch(rewards, lengths)
    baseline = rule.pop("baseline") if callable(rule.get("baseline")) else None
    flat = outcome_advantages(groups, rollouts, AdvantageConfig(**rule), baseline=baseline)
    return [part.tolist() for part in np.split(flat, np.cumsum([len(group) for group in rewards])[:-1])]


def credited(rewards: list[list[float]], lengths: Any = None, **rule: Any) -> list[Any]:
    groups, rollouts = batch(rewards, lengths)
    return [
        member.advantage for member in credit(groups, rollouts, AdvantageConfig(**rule), clip_low=0.2, clip_high=0.2)
    ]


@pytest.mark.parametrize(
    ("rewards", "rule", "want"),
    [
        (R, {}, [0.8660, -0.8660, -0.8660, 0.8660]),
        (R2, {}, [1.5, -0.5, -0.5, -0.5]),
        (R, {"scale": "none"}, [0.5, -0.5, -0.5, 0.5]),
        (R2, {"scale": "none"}, [0.75, -0.25, -0.25, -0.25]),
        (R, {"baseline": "leave_one_out", "scale": "none"}, [2 / 3, -2 / 3, -2 / 3, 2 / 3]),
        (R2, {"baseline": "leave_one_out", "scale": "none"}, [1, -1 / 3, -1 / 3, -1 / 3]),
        (R2, {"scale": "group_mean"}, [3, -1, -1, -1]),
        (R2, {"baseline": "second_best", "scale": "none"}, [1, 0, 0, 0]),
        (R, {"baseline": "second_best", "scale": "none"}, [0, 0, 0, 0]),
        (R, {"baseline": "none", "scale": "none"}, R),
        (R2, {"baseline": "batch_mean", "scale": "none"}, [1, -1 / 3, -1 / 3, -1 / 3]),
    ],
)
def test_worked_numbers_of_one_group(rewards: list[float], rule: dict[str, str], want: list[float]) -> None:
    np.testing.assert_allclose(advantages([rewards], **rule)[0], want, atol=1e-4)


def test_opo_weights_the_others_by_their_lengths() -> None:
    got = advantages([[1, 0, 1]], [[1, 2, 5]], baseline="length_weighted", scale="none")[0]
    np.testing.assert_allclose(got, [1 - 5 / 7, 0 - 6 / 6, 1 - 1 / 3])


def test_opo_without_any_token_elsewhere_is_leave_one_out() -> None:
    got = advantages([[1, 0, 0.5]], [[4, 0, 0]], baseline="length_weighted", scale="none")[0]
    np.testing.assert_allclose(got, [1 - 0.25, 0 - 1, 0.5 - 1])


def test_js2_on_the_worked_rows() -> None:
    rewards = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    got = BASELINES["js2"]([Scored(rewards=np.array(row), lengths=np.ones(2)) for row in rewards])
    np.testing.assert_allclose(got, [[0, 1], [0.6667, 0.6667], [0.3333, 0.3333]], atol=1e-4)


def test_js2_with_nothing_to_learn_from_does_not_shrink() -> None:
    assert advantages([[1, 1], [1, 1]], baseline="js2", scale="none") == [[0, 0], [0, 0]]
    assert advantages([[1, 0]], baseline="js2", scale="none") == [[1, -1]]


def test_bnpo_on_the_worked_means() -> None:
    rewards = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    got = advantages(rewards, scale="bnpo")
    np.testing.assert_allclose(got[0], [0.6674, -0.2225, -0.2225, -0.2225], atol=1e-4)
    x = np.linspace(0, 1, 100_001)
    density = (0.5 * 0.5) ** 0.8333 / np.mean((x * (1 - x)) ** 0.8333)
    np.testing.assert_allclose(got[1], np.array([0.5, 0.5, -0.5, -0.5]) / density, rtol=1e-3)


def test_bnpo_guards_its_ends() -> None:
    assert advantages([R, R], scale="bnpo") == advantages([R, R], scale="none")
    assert advantages([[1, 1], [0, 0], R], scale="bnpo")[:2] == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match=r"needs rewards from 0 to 1; a group has the mean 1\.5"):
        advantages([[1, 2]], scale="bnpo")


def test_maxrl_gives_nothing_without_success_and_is_capped() -> None:
    assert advantages([[0, 0, -1]], scale="group_mean") == [[0, 0, 0]]
    np.testing.assert_allclose(advantages([[0.01, 0]], scale="group_mean"), [[0.01, -0.01]])


def test_one_scale_for_the_batch() -> None:
    got = advantages([R, [0, 0, 0, 0]], scale="batch_std")
    np.testing.assert_allclose(got[0], np.array([0.5, -0.5, -0.5, 0.5]) / np.std([*R, 0, 0, 0, 0], ddof=1), rtol=1e-5)


def parts_batch() -> tuple[Any, Any]:
    first, second = zip([1, 1, 0, 0], [1, 0, 1, 0], strict=True), zip([1, 0, 0, 0], [1, 1, 1, 1], strict=True)
    rollouts = [
        attempt(f"p{g}#{k}", a + b, parts={"a": float(a), "b": float(b)})
        for g, rows in enumerate((first, second))
        for k, (a, b) in enumerate(rows)
    ]
    return grouped(rollouts), {rollout.id: rollout for rollout in rollouts}


def test_gdpo_sees_that_two_rewards_at_once_are_rarer() -> None:
    groups, rollouts = parts_batch()
    raw = outcome_advantages(groups, rollouts, AdvantageConfig(per_reward=True), part_weights={"a": 1.0, "b": 1.0})
    np.testing.assert_allclose(raw, [1.7320, 0, 0, -1.7320, 1.5, -0.5, -0.5, -0.5], atol=1e-3)
    rule = AdvantageConfig(per_reward=True, whiten="samples")
    credits = credit(groups, rollouts, rule, clip_low=0.2, clip_high=0.2, part_weights={"a": 1.0, "b": 1.0})
    want = [1.527, 0, 0, -1.527, 1.323, -0.441, -0.441, -0.441]
    np.testing.assert_allclose([member.advantage for member in credits], want, atol=1e-3)
    summed = outcome_advantages(groups, rollouts, AdvantageConfig())
    np.testing.assert_allclose(summed, [1.2247, 0, 0, -1.2247, 1.5, -0.5, -0.5, -0.5], atol=1e-3)


def test_gdpo_weights_its_parts_and_skips_what_does_not_apply() -> None:
    rows: list[tuple[float | None, float]] = [(1, 1), (0, 0), (None, 1), (0, 0)]
    rollouts = [attempt(f"p#{k}", 0.0, parts={"a": a, "b": b}) for k, (a, b) in enumerate(rows)]
    by_id = {rollout.id: rollout for rollout in rollouts}
    rule = AdvantageConfig(per_reward=True, scale="none")
    got = outcome_advantages(grouped(rollouts), by_id, rule, part_weights={"a": 2.0, "b": 1.0, "off": 0.0})
    a = 2 * np.array([2 / 3, -1 / 3, 0, -1 / 3])
    np.testing.assert_allclose(got, a + np.array([0.5, -0.5, 0.5, -0.5]))
    pair = [attempt(f"p#{k}", 0.0, parts={"a": a}) for k, a in enumerate((1.0, None))]
    alone = outcome_advantages(grouped(pair), {rollout.id: rollout for rollout in pair}, rule, part_weights={"a": 1.0})
    assert alone.tolist() == [0, 0]
    with pytest.raises(ValueError, match="per_reward needs part_weights"):
        outcome_advantages(grouped(rollouts), by_id, rule)


@pytest.mark.parametrize("baseline", GROUP_BASELINES)
@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
def test_equal_rewards_give_exactly_zero(baseline: str, scale: str) -> None:
    got = advantages([[0.1 + 0.2, 0.3, 0.3], [1, 0, 1]], baseline=baseline, scale=scale)
    assert got[0] == [0, 0, 0]


def test_whitening_leaves_zero_variance_groups_at_exactly_zero() -> None:
    assert credited([[0.1, 0.7, 0.3], [1, 1, 1]], whiten="samples")[3:] == [0, 0, 0]


def test_a_tiny_spread_is_never_divided_by() -> None:
    assert max(abs(value) for value in advantages([[0, 1e-7]])[0]) < 1e-6
    nearly = advantages([[1, 1], [0, 0]], baseline="js2", scale="group_std")
    assert np.abs(nearly).max() <= 1


@pytest.mark.parametrize("baseline", [*GROUP_BASELINES, "js2"])
def test_one_rollout_has_no_baseline(baseline: str) -> None:
    with pytest.raises(ValueError, match=r"a group of 1 has no .*expected at least 2"):
        advantages([[1.0]], baseline=baseline)


def test_the_batch_is_a_baseline_for_groups_of_one() -> None:
    assert advantages([[1], [0], [0.5]], baseline="batch_mean", scale="none") == [[0.75], [-0.75], [0]]
    with pytest.raises(ValueError, match="a batch of 1"):
        advantages([[1]], baseline="batch_mean")


def test_a_function_of_ones_own_is_a_baseline() -> None:
    def median(groups: Any) -> list[np.ndarray]:
        return [np.full(group.rewards.size, np.median(group.rewards) + len(group.contexts)) for group in groups]

    assert advantages([[1, 0, 5]], baseline=median, scale="none") == [[-3, -4, 1]]


@pytest.mark.parametrize("baseline", list(BASELINES))
@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
@settings(max_examples=25, deadline=None)
@given(rewards=GROUPS, random=st.randoms())
def test_order_of_rollouts_and_groups_changes_nothing(
    baseline: str, scale: str, rewards: list[list[float]], random: Random
) -> None:
    lengths = [[1 + random.randrange(9) for _ in group] for group in rewards]
    orders = [random.sample(range(len(group)), len(group)) for group in rewards]
    outer = random.sample(range(len(rewards)), len(rewards))
    rule = {"baseline": baseline, "scale": scale}
    here = advantages(rewards, lengths, **rule)
    there = advantages(
        [[rewards[g][k] for k in orders[g]] for g in outer], [[lengths[g][k] for k in orders[g]] for g in outer], **rule
    )
    for place, g in enumerate(outer):
        want = [here[g][k] for k in orders[g]]
        if baseline == "second_best":  # who of several equals is the best is anybody's
            np.testing.assert_allclose(sorted(there[place]), sorted(want), atol=1e-9)
        else:
            np.testing.assert_allclose(there[place], want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("baseline", SHIFT_INVARIANT)
@settings(max_examples=25, deadline=None)
@given(rewards=GROUPS, constant=st.floats(-5, 5, width=16))
def test_adding_a_constant_to_all_rewards_changes_nothing(
    baseline: str, rewards: list[list[float]], constant: float
) -> None:
    moved = [[reward + constant for reward in group] for group in rewards]
    for before, after in zip(
        advantages(rewards, baseline=baseline, scale="none"),
        advantages(moved, baseline=baseline, scale="none"),
        strict=True,
    ):
        np.testing.assert_allclose(before, after, atol=1e-6)
    if all(np.ptp(group) > 1e-3 for group in rewards):
        for before, after in zip(
            advantages(rewards, baseline=baseline), advantages(moved, baseline=baseline), strict=True
        ):
            np.testing.assert_allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("scale", ["group_std", "batch_std", "group_mean", "none"])
@pytest.mark.parametrize("whiten_over", ["none", "samples", "tokens"])
@settings(max_examples=25, deadline=None)
@given(rewards=GROUPS)
def test_no_choice_ever_gives_nan(scale: str, whiten_over: str, rewards: list[list[float]]) -> None:
    for baseline in BASELINES:
        assert np.isfinite(credited(rewards, baseline=baseline, scale=scale, whiten=whiten_over)).all()


def test_reinforce_plus_plus_whitens_over_tokens() -> None:
    rewards, lengths = [[1.0, 0.0, 0.5]], [[2, 5, 1]]
    tokens = np.repeat(rewards[0], lengths[0])
    want = (tokens - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)
    got = credited(rewards, lengths, baseline="none", scale="none", whiten="tokens")
    np.testing.assert_allclose(np.repeat(got, lengths[0]), want, rtol=1e-5)


def test_reinforce_plus_plus_with_kl_in_the_reward_is_per_token() -> None:
    groups, rollouts = batch([[1.0, 0.0]], [[3, 2]])
    extra = {
        "p0#0": kl_in_reward(np.array([-1.0, -2.0, -1.0]), np.array([-1.5, -1.0, -1.0]), 0.1),
        "p0#1": kl_in_reward(np.array([-1.0, -1.0]), np.array([-2.0, -1.0]), 0.1),
    }
    rule = AdvantageConfig(baseline="none", scale="none")
    first, second = credit(groups, rollouts, rule, clip_low=0.1, clip_high=0.3, token_rewards=extra)
    np.testing.assert_allclose(first.advantage, [1 - 0.05 + 0.1, 1.1, 1.0])
    np.testing.assert_allclose(second.advantage, [-0.1, 0.0])
    assert (first.clip_low, first.clip_high) == (0.1, 0.3)
    rule = AdvantageConfig(baseline="none", scale="none", whiten="tokens")
    credits = credit(groups, rollouts, rule, clip_low=0.2, clip_high=0.2, token_rewards=extra)
    raw = np.array([1.05, 1.1, 1.0, -0.1, 0.0])
    whitened = np.concatenate([member.advantage for member in credits])
    np.testing.assert_allclose(whitened, (raw - raw.mean()) / raw.std(ddof=1), rtol=1e-5)
    with pytest.raises(ValueError, match="p0#1 has 2 trained tokens, but 3 token rewards"):
        credit(groups, rollouts, rule, clip_low=0.2, clip_high=0.2, token_rewards={"p0#1": np.zeros(3)})


def test_returns_discount_from_the_end() -> None:
    np.testing.assert_allclose(returns_to_go(np.array([1.0, 2.0, 4.0]), 0.5), [3.0, 4.0, 4.0])


@given(st.lists(st.tuples(REWARD, st.integers(1, 5)), min_size=2, max_size=8))
def test_whitening_with_counts_is_whitening_the_repeated_values(pairs: list[tuple[float, int]]) -> None:
    values, counts = np.array([v for v, _ in pairs]), np.array([float(n) for _, n in pairs])
    repeated = np.repeat(values, counts.astype(int))
    np.testing.assert_allclose(
        np.repeat(whiten(values, counts), counts.astype(int)), whiten(repeated, np.ones_like(repeated)), atol=1e-6
    )


def test_steps_are_added_to_the_outcome_token_by_token() -> None:
    first = attempt("p#0", 1.0, length=4, steps=[(1, 0.2), (2, 0.8)])
    second = attempt("p#1", 0.0, length=4, steps=[(0, 0.6), (1, 0.4), (3, 1.0)])
    rollouts = {"p#0": first, "p#1": second}
    credits = credit(
        grouped([first, second]), rollouts, AdvantageConfig(scale="none", step_weight=0.5), clip_low=0.2, clip_high=0.2
    )
    np.testing.assert_allclose(credits[0].advantage, 0.5 + 0.5 * np.array([-0.7071, -0.7071, 0.7071, 0]), atol=1e-4)
    np.testing.assert_allclose(credits[1].advantage, -0.5 + 0.5 * np.array([0.7071, 0.7071, 1.4142, 1.4142]), atol=1e-4)
    assert credits[0].contributions["prompt"] == 0.5
    assert credits[1].contributions["steps"] == pytest.approx(0.5 * (2 * 0.7071 + 2 * 1.4142) / 4, abs=1e-4)
    without_steps = credit(
        grouped([first, second]), rollouts, AdvantageConfig(scale="none"), clip_low=0.2, clip_high=0.2
    )
    assert [member.advantage for member in without_steps] == [0.5, -0.5]


def test_clip_bounds_travel_with_the_credit() -> None:
    groups, rollouts = batch([[1.0, 0.0]])
    first, second = credit(groups, rollouts, AdvantageConfig(), clip_low=0.1, clip_high=0.3)
    assert (first.rollout_id, first.clip_low, first.clip_high) == ("p0#0", 0.1, 0.3)
    assert first.advantage == first.contributions["prompt"] == -second.contributions["prompt"]


def test_no_groups_no_credit() -> None:
    assert credit([], {}, AdvantageConfig(), clip_low=0.2, clip_high=0.2) == []


def test_overlong_at_the_published_lengths() -> None:
    got = soft_overlong([0, 16384, 18432, 20480, 20481], maximum=20480, cache=4096)
    np.testing.assert_array_equal(got, [0, 0, -0.5, -1, -1])
    with pytest.raises(ValueError, match="cache = 5; expected more than 0 and at most maximum = 4"):
        soft_overlong([1], maximum=4, cache=5)


def test_every_choice_is_explained() -> None:
    assert all(function.__doc__ for function in (*BASELINES.values(), *SCALES.values()))
