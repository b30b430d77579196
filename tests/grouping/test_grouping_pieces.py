from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.data.complexity import COMPLEXITY
from coterie.grouping.arrays import Groups, Rollouts, group_rollouts
from coterie.grouping.experts import (
    Mixture,
    PromptTracker,
    batch_mean,
    group_mean,
    james_stein,
    sibling_mean,
    simplex_weights,
    spo_decay,
)
from coterie.grouping.features import FeatureMap, Reduction, complexity
from coterie.grouping.memory import PromptMemory


def groups(table: list[list[float]], weights: list[float] | None = None, history_mean: float = 0.5) -> Groups:
    names = tuple(str(i) for i, row in enumerate(table) for _ in row)
    rewards = np.array([reward for row in table for reward in row])
    w = np.ones(rewards.size) if weights is None else np.array(weights)
    batch = Rollouts(prompts=names, rewards=rewards, features=np.zeros((rewards.size, 0)), time=0.0)
    return group_rollouts(batch, rewards, w, {}, history_mean)


def test_james_stein_of_the_example():
    assert james_stein(groups([[1, 0], [1, 1], [0, 0]])).round(4).tolist() == [0, 1, 0.6667, 0.6667, 0.3333, 0.3333]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 4))
def test_james_stein_follows_its_definition(seed, count, size):
    r = np.random.default_rng(seed).random((count, size))
    expected = np.zeros((count, size))
    for i, j in np.ndindex(count, size):
        others = np.delete(r, i, axis=0)
        mubar = others.mean()
        v = np.mean([((row - row.mean()) ** 2).sum() / (size * (size - 1)) for row in others])
        s = np.mean((others.mean(axis=1) - mubar) ** 2)
        lam = (count - 1) / count * v / (v + s) if v + s > 1e-12 else 0.0
        expected[i, j] = (1 - lam) * np.delete(r[i], j).mean() + lam * mubar
    np.testing.assert_allclose(james_stein(groups(r.tolist())), expected.ravel(), atol=1e-9)


def test_plain_baselines_of_ragged_groups():
    ragged = groups([[1, 0, 0, 1], [1]], history_mean=0.25)
    assert sibling_mean(ragged).round(3).tolist() == [0.333, 0.667, 0.667, 0.333, 0.25]
    assert group_mean(ragged).tolist() == [0.5, 0.5, 0.5, 0.5, 1.0]
    assert batch_mean(ragged).tolist() == [0.5, 0.75, 0.75, 0.5, 0.5]
    assert batch_mean(groups([[1.0]], history_mean=0.25)).tolist() == [0.25]
    assert james_stein(groups([[1.0]], history_mean=0.25)).tolist() == [0.25]
    assert sibling_mean(groups([[1, 0, 0]], weights=[1, 3, 1])).tolist() == [0.0, 0.5, 0.25]


def test_spo_numbers():
    """2509.13232: six of eight offline, an age of .006 nats, one failure."""
    tracker = PromptTracker(half_life=0.06)
    tracker.reserve(1)
    tracker.hits[0], tracker.misses[0] = 8 * 6.5 / 9, 8 * 2.5 / 9
    visited = group_rollouts(
        Rollouts(prompts=("a",), rewards=np.zeros(1), features=np.zeros((1, 0)), time=0.006),
        np.zeros(1),
        np.ones(1),
        {"a": 0},
        0.5,
    )
    assert round(float(spo_decay(0.006, 0.06)), 4) == 0.9330
    assert tracker.predict(visited).round(4).tolist() == [0.7222]
    tracker.observe(visited, np.array([0]))
    assert tracker.predict(visited).round(4).tolist() == [0.6369]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_simplex_weights_are_the_best_of_all(seed, count):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(count, count + 2))
    gram = root @ root.T
    weights = simplex_weights(gram)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    best = weights @ gram @ weights
    slope = gram @ weights
    assert (slope >= best - 1e-8 * best).all()
    for other in rng.dirichlet(np.ones(count), size=50):
        assert best <= other @ gram @ other + 1e-9


def test_the_stack_learns_whom_to_believe():
    rng = np.random.default_rng(0)
    stack, bucket = Mixture(np.full(3, 1 / 3)), np.zeros(40, dtype=np.int64)
    for _ in range(30):
        truth = rng.random(40)
        rewards = (rng.random(40) < truth).astype(float)
        stack.observe(np.stack([np.full(40, 0.5), truth, 1 - truth]), rewards, np.ones(40), bucket)
    assert stack.weights[0, 1] > 0.8
    assert (stack.weights[1] == 1 / 3).all()


def test_weights_decide_what_the_stack_minimises():
    """Two constant experts; where success carries little score norm the low one is right."""
    stack, bucket = Mixture(np.full(2, 0.5), ridge=0.0), np.zeros(1000, dtype=np.int64)
    rewards = np.repeat([1.0, 0.0], 500)
    stack.observe(np.stack([np.ones(1000), np.zeros(1000)]), rewards, np.where(rewards > 0, 0.2, 1.8), bucket)
    assert stack.weights[0].round(3).tolist() == [0.1, 0.9]


def test_memory_fades_towards_the_region_and_learns_how_lasting_prompts_are():
    memory = PromptMemory(120.0, 0.99)
    memory.reserve(2)
    rows = np.array([0])
    memory.store(rows, np.array([0.3]), np.array([0.01]), np.array([0.4]), np.ones(1), 10.0)
    mean, var = memory.prior(np.array([0, 1, -1]), 10.0 + 120 * np.log(2))
    np.testing.assert_allclose(mean, [0.15, 0, 0])
    np.testing.assert_allclose(var, [0.25 * 0.01 + 0.75 * 0.03, 0.03, 0.03])
    before = memory.tau.value
    for _ in range(200):
        memory.learn_tau(rows, np.array([0.3]), np.ones(1), 10.0)
    assert memory.tau.value > before
    memory.rebase(rows, np.array([-0.1]))
    assert memory.mean[0] == pytest.approx(0.3 - 0.1 * (1 - 0.01 / memory.tau.value))
    assert memory.lasting(10.0 + 120 * 6.9).tolist() == [0]
    assert memory.lasting(10.0 + 120 * 7.0).tolist() == [], "less than a thousandth of it is left; row 1 never was"


def test_complexity_counts():
    text = "First add 12 and 30. Then compute 42 * 2 - 7."
    counts = dict(zip(COMPLEXITY, np.expm1(complexity(text, tools=2)).round().astype(int).tolist(), strict=True))
    assert counts == {
        "log length": len(text),
        "log digits": 8,
        "log operators": 2,
        "log numbers": 5,
        "log steps": 3,
        "log tools": 2,
    }


def test_features_are_standardised_and_saved():
    rng = np.random.default_rng(0)
    texts = [f"What is {rng.integers(10 ** int(rng.integers(1, 9)))} + {i}?" for i in range(50)]
    tasks = ["sums" if i % 2 else "words" for i in range(50)]
    embeddings = rng.normal(size=(50, 64)) * np.linspace(3, 0.01, 64)
    fitted = FeatureMap.fit(texts, tasks=tasks, embeddings=embeddings)
    rows = fitted.apply(texts, tasks=tasks, embeddings=embeddings)
    assert rows.shape == (50, len(fitted.columns)) == (50, 6 + 2 + 16)
    np.testing.assert_allclose(rows[:, :8].mean(axis=0), 0, atol=0.1)
    assert np.abs(rows).max() <= 4
    arrays, facts = fitted.state()
    stored = {name: array.copy(order="C") for name, array in arrays.items()}  # as a file gives them back
    loaded = FeatureMap.load((stored, facts))
    for count in (1, 3, 50):
        some: dict[str, Any] = {"texts": texts[:count], "tasks": tasks[:count], "embeddings": embeddings[:count]}
        assert loaded.apply(**some).tobytes() == fitted.apply(**some).tobytes()
    with pytest.raises(ValueError, match="pass the same"):
        fitted.apply(texts, tasks=tasks)


def test_a_reduced_embedding_keeps_neighbours():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 200))
    kind = np.repeat(np.arange(4), 20)
    embeddings = centres[kind] + 0.1 * rng.normal(size=(80, 200))
    low = Reduction.fit(embeddings, dims=16).apply(embeddings)
    assert low.shape == (80, 16)
    distance = ((low[:, None] - low[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (kind[distance.argmin(axis=1)] == kind).all()
