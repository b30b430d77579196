"""Every published method trains, stops and resumes as any run does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from coterie import launch
from coterie.config.algorithms import ALGORITHMS, filled
from coterie.config.schema import RunConfig
from coterie.runs.metrics import MetricsDB
from runs_for_tests import fingerprint, make_config

# Two steps, few tokens; what a row asks for beyond a laptop's batch is made small.
MORE_REWARDS = """

def odd(prompts, completions, **columns):
    return [float(len(text) % 2) for text in completions]


def rare(prompts, completions, **columns):
    return [float(text.count("a") > 1) for text in completions]
"""
ODD = {"functions": [{"name": "tiny_rewards:odd"}]}
SMALL: dict[str, dict[str, Any]] = {
    "r1": {"optim": {"minibatches": 2}, "reference": {"sync_every": 1}},
    "dapo": {"rewards": ODD},
}


def config_for(root: Path, algorithm: str, **changed: Any) -> RunConfig:
    row: dict[str, Any] = {"algorithm": algorithm, **SMALL.get(algorithm, {})}
    for section, value in changed.items():
        both = isinstance(value, dict) and isinstance(row.get(section), dict)
        row[section] = {**row[section], **value} if both else value
    made = make_config(root, **filled(row))
    with (root / "tiny_rewards.py").open("a", encoding="utf-8") as out:
        out.write(MORE_REWARDS)
    return made


def metrics(run: Path, step: int) -> dict[str, float]:
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        return database.step_metrics(step)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_method_moves_the_policy(name: str, root: Path) -> None:
    run = launch.train(config_for(root, name, steps=2, eval={"every": 0}, checkpoint={"every": 0}))
    step_metrics = metrics(run, 2)
    assert step_metrics["grad_norm"] > 0
    assert all(math.isfinite(value) for value in step_metrics.values())
    assert step_metrics["ratio/mean"] == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("ppo", {}),
        ("ppo", {"critic": {"kind": "model"}, "optim": {"minibatches": 2}}),
        ("r1", {"reference": {"sync_every": 3, "sync_ema": 0.6}}),
        ("dapo", {}),
        ("grpo", {"objective": {"entropy_target": 2.0, "kl_beta": 0.05, "kl_target": 0.01}}),
        ("grpo", {"collect": {"oversample": 1.5}}),
    ],
    ids=["head", "model", "reference", "refill", "coefficients", "oversample"],
)
def test_what_is_beside_the_policy_resumes_to_the_same_bits(name: str, changed: dict[str, Any], root: Path) -> None:
    whole = launch.train(config_for(root, name, **changed, steps=6))
    # The same run, stopped after step 4 by asking for no more, then continued under its own settings.
    half = launch.train(config_for(root, name, **changed, steps=6, **{"name": "two"}), callback=_stopping(4))
    launch.resume(half)
    assert fingerprint(half) == fingerprint(whole)


def _stopping(step: int) -> Any:
    import signal

    from runs_for_tests import stop_at

    return stop_at(step, signal.SIGTERM)


def test_refilled_groups_are_all_mixed_and_dropped_ones_are_counted(root: Path) -> None:
    rewards = {"functions": [{"name": "tiny_rewards:rare"}]}
    run = launch.train(config_for(root, "dapo", steps=3, collect={"dynamic_sampling_limit": 4}, rewards=rewards))
    by_step = [metrics(run, step) for step in (1, 2, 3)]
    assert all(step_metrics["dynamic_sampling/rounds"] <= 4 for step_metrics in by_step)
    assert any(step_metrics["dynamic_sampling/dropped"] > 0 for step_metrics in by_step)
    assert all(step_metrics.get("groups/mixed", 1.0) == 1.0 for step_metrics in by_step)


def test_a_critic_learns_what_reward_to_expect(root: Path) -> None:
    settings = {"critic": {"lr": 1e-2}, "optim": {"lr": 1e-6}, "eval": {"every": 0}, "rewards": ODD}
    run = launch.train(config_for(root, "ppo", steps=14, **settings))
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        loss = [value for _, value in database.series("critic/loss")]
    assert loss[-1] < 0.65 * loss[0]  # what is left is half the variance of a coin


def test_while_the_critic_warms_up_the_policy_stays(root: Path) -> None:
    run = launch.train(config_for(root, "ppo", steps=2, critic={"warmup": 2, "kind": "model"}, eval={"every": 1}))
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        lengths = {(result.step, result.mean_length) for result in database.evals()}
        assert metrics(run, 2)["ratio/mean"] == 1.0
    assert {step for step, _ in lengths} == {0, 1, 2}
    from safetensors.torch import load_file

    before = load_file(root / "model" / "model.safetensors")
    (last,) = (run / "checkpoints").glob("step_*")
    after = load_file(last / "model" / "model.safetensors")
    assert all(bool((before[name].to(after[name].dtype) == after[name]).all()) for name in after)
