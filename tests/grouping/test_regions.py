from __future__ import annotations

import numpy as np
import pytest

from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.regions import leaf_labels, regions
from coterie.grouping.tree import Tree
from coterie.grouping.tree_fit import TAU_HIGH, TAU_LOW, Observations, fit_tree
from grouping_worlds import COLUMNS, features, settings_of, step, trained

ALL = np.arange(4)


def visits(success, count: int = 4000, seed: int = 0) -> Observations:
    rng = np.random.default_rng([seed, 1])
    table = features(count, seed)
    return Observations(table, (rng.random(count) < success(table)).astype(float), np.ones(count), np.arange(count))


def two_steps(table: np.ndarray) -> np.ndarray:
    return np.where(table[:, 0] > 0.5, 0.9, np.where(table[:, 3] > 0, 0.6, 0.2))


def test_boundaries_are_drawn_where_rewards_differ():
    tree, levels = fit_tree(visits(two_steps), ALL, np.random.default_rng(0))
    assert tree.feature[0] == 0
    assert tree.threshold[0] == pytest.approx(0.5, abs=0.1)
    below = int(tree.left[0])
    assert tree.feature[below] == 3
    assert ((levels[1:] >= TAU_LOW) & (levels[1:] <= TAU_HIGH)).all()
    assert levels[1] > 0.02


def test_pure_noise_makes_no_regions():
    sizes = [
        fit_tree(visits(lambda t: np.full(len(t), 0.5), seed=s), ALL, np.random.default_rng(s))[0].leaves.size
        for s in range(5)
    ]
    assert np.mean(sizes) <= 4


def test_leaves_are_few_and_hold_enough():
    data = visits(lambda t: 1 / (1 + np.exp(-3 * np.sin(3 * t[:, 0]) - 2 * t[:, 1] * t[:, 2])), count=20000)
    tree, _ = fit_tree(data, ALL, np.random.default_rng(0), max_leaves=12, min_weight=200.0)
    assert 6 <= tree.leaves.size <= 12
    assert np.bincount(tree.locate(data.features))[tree.leaves].min() >= 150
    small, _ = fit_tree(visits(two_steps, count=70), ALL, np.random.default_rng(0))
    assert small.leaves.size <= 2


def test_a_boundary_stays_while_it_serves_and_goes_when_rewards_change():
    old, _ = fit_tree(visits(two_steps, seed=1), ALL, np.random.default_rng(1))
    again, _ = fit_tree(visits(two_steps, seed=2), ALL, np.random.default_rng(2), previous=old)
    assert again.feature[0] == old.feature[0]
    assert again.threshold[0] == old.threshold[0]
    moved, _ = fit_tree(visits(lambda t: np.where(t[:, 1] > 0, 0.9, 0.1)), ALL, np.random.default_rng(3), previous=old)
    assert moved.feature[0] == 1
    gone, _ = fit_tree(visits(lambda t: np.full(len(t), 0.5)), ALL, np.random.default_rng(4), previous=old)
    assert gone.leaves.size < old.leaves.size


def test_without_the_reward_signal_boundaries_ignore_rewards():
    tree, _ = fit_tree(visits(two_steps), ALL, np.random.default_rng(0), boundaries="spread", max_leaves=8)
    flipped = visits(two_steps)
    flipped_tree, _ = fit_tree(
        Observations(flipped.features, 1 - flipped.mean, flipped.weight, flipped.prompt),
        ALL,
        np.random.default_rng(0),
        boundaries="spread",
        max_leaves=8,
    )
    assert tree.leaves.size == 8
    assert (tree.feature == flipped_tree.feature).all()
    assert (tree.threshold == flipped_tree.threshold).all()


def test_features_of_a_signal_that_is_off_are_never_split_on():
    tree, _ = fit_tree(visits(two_steps), np.array([1, 2]), np.random.default_rng(0))
    assert set(tree.feature.tolist()) <= {-1, 1, 2}


def test_every_row_lies_in_one_leaf_and_below_its_ancestors():
    tree, _ = fit_tree(visits(two_steps), ALL, np.random.default_rng(0))
    leaves = tree.locate(features(500, 9))
    assert set(leaves.tolist()) <= set(tree.leaves.tolist())
    assert (tree.membership.sum(axis=1) == tree.depth + 1).all()
    np.testing.assert_array_equal(tree.membership[tree.leaves][:, tree.leaves], np.eye(tree.leaves.size))


def test_merging_keeps_what_lies_elsewhere():
    tree = Tree.stump().split(0, 0, 0.0).split(1, 1, 1.0).split(2, 2, -1.0).split(3, 3, 0.0)
    merged = tree.merge({1})
    assert merged.leaves.size == 3
    assert merged.rule(2, COLUMNS) == "meaning 1 > 0"
    rows = features(300)
    np.testing.assert_array_equal(merged.locate(rows) == 1, rows[:, 0] <= 0)
    assert tree.merge(set()).feature.tolist() == tree.feature.tolist()


def test_rules_are_words_in_plain_units():
    tree = Tree.stump().split(0, 2, 1.0).split(2, 2, 3.0).split(3, 3, 0.0)
    assert tree.rule(0, COLUMNS) == "all prompts"
    assert tree.rule(1, COLUMNS) == "log digits ≤ 2"
    assert tree.rule(5, COLUMNS) == "2 < log digits ≤ 3 and task is not sums"
    assert tree.rule(6, COLUMNS) == "2 < log digits ≤ 3 and task is sums"
    assert tree.rule(4, COLUMNS) == "log digits > 3"


def test_the_summary_tells_what_each_region_is():
    rng, table = np.random.default_rng(0), features(200)
    table[:, 1:3] = 0.0
    baseline = GroupAwareBaseline(COLUMNS, preset="empirical_bayes", settings=settings_of(weights="none"))
    update_stats = [baseline.observe(step(rng, table, prompts=100, size=4, time=float(t))) for t in range(11)]
    assert any(update_stat.redrawn and update_stat.redrawn.split for update_stat in update_stats)
    rows = regions(baseline)
    assert rows[0].rule == "all prompts"
    assert rows[0].parent == -1
    below = [[row.node for row in rows if row.parent == region.node] for region in rows]
    assert all(len(children) == (0 if region.leaf else 2) for region, children in zip(rows, below, strict=True))
    leaves = [row for row in rows if row.leaf]
    assert len(leaves) >= 2
    assert sum(row.prompts for row in leaves) == rows[0].prompts == len(baseline.prompt_table.index)
    assert sum(row.rollouts for row in leaves) == pytest.approx(rows[0].rollouts)
    easy = max(rows, key=lambda row: row.success)
    assert "meaning 1 >" in easy.rule
    assert all(name in baseline.prompt_table.index and len(row.examples) <= 3 for row in rows for name in row.examples)
    assert [row.label for row in leaves] == list("ABCDEFGHIJKL"[: len(leaves)])
    assert all(row.rule.endswith(row.step) for row in rows if row.depth == 1)
    assert regions(trained("tracker")[0]) == []


def test_the_page_goes_down_before_it_goes_on():
    tree = Tree.stump().split(0, 2, 1.0).split(1, 0, 0.0).split(2, 3, 0.0)
    assert tree.order() == [0, 1, 3, 4, 2, 5, 6]
    assert leaf_labels(tree) == {3: "A", 4: "B", 5: "C", 6: "D"}
    assert [tree.last_rule(node, COLUMNS) for node in (0, 1, 3)] == ["all prompts", "log digits ≤ 2", "meaning 1 ≤ 0"]
    many = tree
    for node in range(3, 57, 2):
        many = many.split(node, 0, 0.0)
    assert list(leaf_labels(many).values())[25:28] == ["Z", "AA", "AB"]
