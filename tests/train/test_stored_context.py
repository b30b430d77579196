"""Every rollout is stored with what was known when it was sent out, and a resume stores the same again."""

from __future__ import annotations

import signal
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import coterie
from coterie import launch
from coterie.algo.estimators import Advantages, Terms
from coterie.grouping.estimator import GroupAwareEstimator, PromptFeatures
from coterie.grouping.features import text_embedding
from coterie.rollout.collector import Experience
from coterie.runs import parquet, prompts, rollouts
from coterie.runs.rollouts import RolloutRecord
from coterie.train.evaluate import Criterion
from coterie.train.prompt_stats import MEMORY, PromptStatsTable
from coterie.types import Context, Group, Message, Outcome, Prompt, Rollout, SamplingSnapshot, StopReason
from runs_for_tests import fingerprint, make_config, stop_at

HEB = {"preset": "mixture", "refit_every": 2, "min_weight": 4.0}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(run: Path) -> dict[int, list[RolloutRecord]]:
    return {step: rollouts.read_step(run / "rollouts", step) for step in parquet.steps(run / "rollouts")}


def faded(values: list[tuple[int, float]]) -> float | None:
    """Mean of (step, value), each fading from its step on."""
    if not values:
        return None
    weights = np.exp((np.array([step for step, _ in values]) - values[-1][0]) / MEMORY)
    return float(weights @ np.array([value for _, value in values]) / weights.sum())


def test_a_plain_run_knows_the_past_of_each_prompt_and_task(root: Path) -> None:
    run = launch.train(make_config(root, steps=6, eval={"every": 0}))
    past: dict[str, list[tuple[int, float]]] = defaultdict(list)
    lengths: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for step, rows in rows_of(run).items():
        for row in rows:
            context = row.rollout.context
            dispatch = context.dispatch
            assert dispatch is not None
            assert (dispatch.time, dispatch.expected, dispatch.region) == (float(step - 1), None, None)
            assert dispatch.attempts == len(past[context.prompt_id])
            assert dispatch.reward == pytest.approx(faded(past[context.prompt_id]))
            assert dispatch.length == pytest.approx(faded(lengths[context.prompt_id]))
            assert dispatch.task_attempts == len(past["train"]) == 12 * (step - 1)
            assert dispatch.task_reward == pytest.approx(faded(past["train"]))
            assert context.source == row.prompt.source == "file:train.jsonl"
            assert context.complexity["digits"] == sum(map(str.isdigit, row.prompt.messages[-1]["content"]))
        for row in rows:
            assert row.rollout.reward is not None
            for name in (row.prompt.id, "train"):
                past[name].append((step, row.rollout.reward))
            lengths[row.prompt.id].append((step, row.rollout.context.completion_length))


def test_every_prompt_is_stored_once_and_every_rollout_says_where(root: Path) -> None:
    for name, grouping in (("plain", {}), ("aware", HEB)):
        run = launch.train(make_config(root, name=name, steps=5, eval={"every": 0}, grouping=grouping))
        stored = {
            f"step_{row['step']:06d}#{row['prompt_id']}": row for row in prompts.read(run / "prompts").to_pylist()
        }
        assert len({row["prompt_id"] for row in stored.values()}) == len(stored)
        rows = [row for rows in rows_of(run).values() for row in rows]
        assert {row.rollout.context.embedding for row in rows} == set(stored)
        assert {row["embedding_kind"] for row in stored.values()} == {"text" if name == "plain" else "policy"}
        assert {len(row["embedding"]) for row in stored.values()} == {256 if name == "plain" else 32}


def test_a_group_aware_run_says_what_it_expected_and_in_which_region(root: Path) -> None:
    run = launch.train(make_config(root, steps=6, eval={"every": 0}, grouping=HEB))
    for step, rows in rows_of(run).items():
        for row in rows:
            dispatch = row.rollout.context.dispatch
            assert dispatch is not None
            assert dispatch.time == step - 1
            assert dispatch.expected is not None
            assert dispatch.expected_std is not None
            assert 0 <= dispatch.expected <= 1
            assert dispatch.expected_std > 0
            assert dispatch.region
            assert step > 1 or dispatch.expected == pytest.approx(0.5)


@pytest.mark.parametrize(
    "grouping",
    [{}, HEB, HEB | {"allocate": True, "candidates": 3, "most": 6}],
    ids=["plain", "group-aware", "allocation"],
)
def test_a_resume_stores_the_same_context_and_prompts(grouping: dict[str, Any], root: Path) -> None:
    config = {"grouping": grouping, "eval": {"every": 0}}
    whole = launch.train(make_config(root, **config))
    half = launch.train(make_config(root, name="two", **config), stop_at(3, signal.SIGTERM))
    # As a kill after step 4's files and before its checkpoint would leave it.
    for folder in ("rollouts", "prompts"):
        for step in (4, 5):
            source = whole / folder / f"step_{step:06d}.parquet"
            if source.exists():
                (half / folder / source.name).write_bytes(source.read_bytes()[:-7])
    launch.resume(half)
    assert fingerprint(half) == fingerprint(whole)


def test_a_run_of_before_there_were_entropies_is_resumed(root: Path) -> None:
    """Its files stay as they are, those of later steps have the column, and a reader has both."""
    whole = launch.train(make_config(root, steps=4))
    half = launch.train(make_config(root, name="two", steps=4), stop_at(2, signal.SIGTERM))
    for step in (1, 2):
        path = parquet.path_of(half / "rollouts", step)
        table = pq.read_table(path).drop_columns(["sampler_entropies"]).replace_schema_metadata(None)
        header = {"coterie": "3", "step": str(step), "sha256": rollouts._digest(table.to_pylist())}
        pq.write_table(table.replace_schema_metadata(header), path)
    launch.resume(half)
    before, after = rows_of(half), rows_of(whole)
    for step, rows in before.items():
        for row, other in zip(rows, after[step], strict=True):
            (turn,) = row.rollout.turns
            assert (turn.sampler_entropies is None) == (step < 3)
            turns = other.rollout.turns if step > 2 else (replace(other.rollout.turns[0], sampler_entropies=None),)
            assert row.rollout == replace(other.rollout, turns=turns)
    table = coterie.load_run(half).rollouts().to_pylist()
    assert [row["sampler_entropies"] is None for row in table] == [row["step"] < 3 for row in table]


def prompt(name: str, text: str = "What is 2 + 2?") -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=text),), answer="4", task="sums")


def rollout(name: str, reward: float | None, *, length: int = 10, sample: int = 0) -> Rollout:
    context = Context(
        prompt_id=name,
        task="sums",
        difficulty=None,
        version=0,
        prompt_length=3,
        completion_length=length,
        stop_reason=StopReason.STOP,
    )
    return Rollout(
        id=f"{name}#{sample}@0",
        sample=sample,
        turns=(),
        completion="",
        reward=reward,
        reward_parts={"number": reward},
        outcome=Outcome.REWARD_ERROR if reward is None else Outcome.OK,
        context=context,
    )


def experience(*batch: Rollout) -> Experience:
    names = dict.fromkeys(item.context.prompt_id for item in batch)
    asked = tuple(prompt(name) for name in names)
    return Experience(prompts=asked, rollouts=batch, generate_seconds=0.0, reward_seconds=0.0)


def dispatch_of(history: PromptStatsTable, step: int, name: str) -> SamplingSnapshot:
    stamped, _ = history.stamp(step, experience(rollout(name, 0.0)), Advantages())
    dispatch = stamped.rollouts[0].context.dispatch
    assert dispatch is not None
    return dispatch


def test_pass_rates_count_right_attempts_and_leave_out_errors() -> None:
    history = PromptStatsTable(Criterion(part="number"))
    history.learn(1, [rollout("a", 1.0), rollout("a", 0.5, length=30), rollout("a", None), rollout("b", 0.0)])
    dispatch = dispatch_of(history, 2, "a")
    assert (dispatch.attempts, dispatch.pass_rate, dispatch.reward, dispatch.length) == (2, 0.5, 0.75, 20.0)
    assert (dispatch.task_attempts, dispatch.task_pass_rate, dispatch.task_reward) == (3, pytest.approx(1 / 3), 0.5)
    fresh = dispatch_of(history, 2, "c")
    assert (fresh.attempts, fresh.pass_rate, fresh.task_attempts) == (0, None, 3)


def test_old_attempts_fade() -> None:
    history = PromptStatsTable(Criterion(part="number"))
    history.learn(0, [rollout("a", 1.0)])
    history.learn(int(MEMORY), [rollout("a", 0.0)])
    assert dispatch_of(history, 41, "a").pass_rate == pytest.approx(np.exp(-1) / (1 + np.exp(-1)))


def test_what_is_remembered_survives_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    history, draw = PromptStatsTable(Criterion(part="number")), np.random.default_rng(0)
    for step in range(9):
        batch = [rollout(f"p{draw.integers(4)}", float(draw.random())) for _ in range(6)]
        stamped, _ = history.stamp(step, experience(*batch), Advantages())
        history.learn(step, stamped.rollouts)
    history.save(tmp_path)
    again = PromptStatsTable(Criterion(part="number"))
    again.load(tmp_path)
    assert (again.prompts, again.tasks, again.stored) == (history.prompts, history.tasks, history.stored)
    empty = PromptStatsTable(Criterion(part="number"))
    empty.load(tmp_path / "made before this was kept")
    assert empty.prompts == {}


def estimator_for(names: list[str]) -> GroupAwareEstimator:
    features = PromptFeatures(
        [prompt(name, f"What is {k} + {k}?") for k, name in enumerate(names)],
        lambda prompts: np.array([[float(names.index(item.id)), 1.0] for item in prompts]),
        dimensions=2,
    )
    config = make_grouping()
    return GroupAwareEstimator(
        config, terms=Terms(clip_low=0.2, clip_high=0.2), features=features, part_weights={}, seed=0
    )


def make_grouping() -> Any:
    from coterie.config.advantage import GroupingConfig

    return GroupingConfig.model_validate(HEB | {"weights": "none"})


def test_what_is_expected_does_not_depend_on_the_rewards_of_the_step() -> None:
    names = ["a", "b", "c"]
    estimator = estimator_for(names)
    for value in (0.0, 1.0):
        by_id = {f"{name}#{k}@0": rollout(name, value if k else 0.5, sample=k) for name in names for k in range(2)}
        groups = [
            Group(
                scale="prompt",
                key=name,
                members=(f"{name}#0@0", f"{name}#1@0"),
                rewards=tuple(by_id[f"{name}#{k}@0"].reward or 0.0 for k in range(2)),
            )
            for name in names
        ]
        before = estimator.predict(groups, by_id).predictions
        others = {key: replace(attempt, reward=0.123) for key, attempt in by_id.items()}
        assert estimator.predict(groups, others).predictions == before
        assert estimator.predict([], by_id).predictions == before
        assert estimator(groups, by_id, lambda rollouts: {}).predictions == before
        assert estimator.predict(groups, by_id).predictions != before


def test_an_embedding_is_handed_on_once() -> None:
    estimator = estimator_for(["a", "b"])
    first = estimator.predict([], {"a#0@0": rollout("a", 1.0)})
    assert [(item.id, vector.tolist()) for item, vector in first.embedded] == [("a", [0.0, 1.0])]
    second = estimator.predict([], {"a#0@0": rollout("a", 1.0), "b#0@0": rollout("b", 1.0)})
    assert [item.id for item, _ in second.embedded] == ["b"]


def test_like_texts_have_like_vectors() -> None:
    sums, other = text_embedding("What is 17 + 25?"), text_embedding("What is 98 + 41?")
    story = text_embedding("A farmer keeps three cows and a dog. How many legs are there?")
    assert sums @ other > 0.9 > sums @ story
    assert np.linalg.norm(story) == pytest.approx(1, abs=1e-6)
    assert not text_embedding("").any()
    assert np.isfinite(text_embedding("\ud800 x" * 9_000)).all()
