"""Russian roulette in a run: fewer tokens, the same gradient on average, everything still on record."""

from __future__ import annotations

import sqlite3
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from coterie import launch
from coterie.algo.subsample import chances, play
from coterie.batches.pack import plan
from coterie.runs import rollouts as files
from coterie.types import Credit
from policy.test_learner import learner, rollouts
from runs_for_tests import importable, make_config
from tiny_models import tiny_policy


def test_the_gradient_is_the_same_on_average() -> None:
    """One draw for each prompt; averaged exactly over it, every prompt's part of the gradient is the whole one's."""
    items = rollouts(prompts=3, size=3)
    sizes = np.array([1.5, -0.05, 0.0, 0.2, -0.2, 0.1, 0.02, -0.9, 0.3])
    credits = [
        Credit(rollout_id=item.id, advantage=float(size), clip_low=0.2, clip_high=0.2)
        for item, size in zip(items, sizes, strict=True)
    ]
    one = learner(tiny_policy())

    def gradient(of: list[Credit]) -> tuple[torch.Tensor, int]:
        batches = plan(items, of, loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=1000, skip_zero=True)
        found = one.gradient(batches)
        return torch.cat([part.flatten() for part in found.values()]), sum(len(batch.targets) for batch in batches)

    whole, every = gradient(credits)
    mean, tokens = torch.zeros_like(whole), 0.0
    edges = np.unique([0.0, *chances(np.abs(sizes), 0.8), 1.0])
    for low, high in pairwise(edges):
        draws = {item.id: (low + high) / 2 for item in items}
        part, count = gradient(list(play(credits, draws, 0.8).credits))
        mean += (high - low) * part
        tokens += (high - low) * count
    assert tokens < 0.7 * every
    assert float((mean - whole).abs().max() / whole.abs().max()) < 5e-7  # RMSNorm works in float32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("roulette")
    changed = {"optim": {"subsample": 1.5}, "grouping": {"preset": "empirical_bayes"}, "eval": {"every": 0}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PYTHONPATH", importable(root))
        return launch.train(make_config(root, steps=4, **changed))


def test_those_left_out_are_on_record_with_their_advantage(run: Path) -> None:
    rows = [row for step in (1, 2, 3, 4) for row in files.read_step(run / "rollouts", step)]
    heard = [row for row in rows if row.credit is not None and not row.credit.silent]
    left_out = [row for row in heard if row.logprobs is None]
    assert 0 < len(left_out) < len(heard)

    def size(of: list[files.RolloutRecord]) -> float:
        return float(np.mean([np.abs(row.credit.advantage) for row in of if row.credit]))

    assert size(left_out) < size(heard)


def test_it_says_how_much_was_left(run: Path) -> None:
    with sqlite3.connect(run / "metrics.sqlite") as database:
        found = dict(database.execute("SELECT name, avg(value) FROM metrics GROUP BY name").fetchall())
    assert 0 < found["subsample/kept"] < 1
    assert 1 < found["subsample/power"] < 1 + 1.5**2 / 4
    assert found["tokens/trained"] < found["tokens/generated"]


@pytest.mark.parametrize(
    "changed",
    [
        {"objective": {"kl_beta": 0.1}},
        {"objective": {"entropy_bonus": 0.1}},
        {"objective": {"entropy_share": 0.2}},
        {"objective": {"loss": "mine:loss"}},
        {"critic": {}},
    ],
)
def test_it_is_refused_where_silent_rollouts_have_a_gradient(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"optim.subsample = 0.5 leaves rollouts out"):
        make_config(tmp_path, optim={"subsample": 0.5}, **changed)


def test_the_kl_in_the_reward_is_part_of_the_advantage(tmp_path: Path) -> None:
    objective = {"kl_beta": 0.1, "kl_in": "reward", "kl_estimator": "k1"}
    assert make_config(tmp_path, optim={"subsample": 0.5}, objective=objective).advantages_alone
