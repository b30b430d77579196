"""Replay: which past groups join a step, that nothing else changes by it, and that a run with it resumes to the bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie import launch
from coterie.algo.advantages import by_prompt, credit
from coterie.algo.estimators import Advantages
from coterie.config.objective import AdvantageConfig
from coterie.config.rewards import RewardsConfig
from coterie.config.schema import ReplayConfig, RunConfig
from coterie.errors import CheckpointError
from coterie.grouping.estimator import GroupAwareEstimator
from coterie.rewards.check import identity
from coterie.rollout.replay import ReplayBuffer, Replayed
from coterie.rollout.replay_groups import FILES, ReplayGroup, read
from coterie.runs import rollouts as files
from coterie.runs.metrics import MetricsDB
from coterie.types import Context, Credit, Group, Outcome, Rollout, RolloutScores, StopReason, Turn
from runs_for_tests import fingerprint, importable, killed, make_config, stop_at

Made = tuple[Group, dict[str, Rollout], list[Credit]]


def made(prompt: str, version: int, *, size: float = 1.0, members: int = 3, turns: int = 1, tokens: int = 2) -> Made:
    """A group whose advantages are ±`size`; of two turns, with an advantage for each token."""
    rollouts: dict[str, Rollout] = {}
    credits = []
    for sample in range(members):
        sampled_turns: list[Turn] = []
        prefix = (1, 2, 3)
        for k in range(turns):
            ids = tuple(10 * sample + k + t for t in range(tokens))
            logprobs = tuple(-1.0 - 0.1 * t - 0.01 * sample for t in range(tokens))
            sampled_turns.append(
                Turn(
                    prompt_tokens=prefix,
                    tokens=ids,
                    sampler_logprobs=logprobs,
                    temperature=0.7,
                    stop_reason=StopReason.STOP,
                    version=version,
                )
            )
            prefix = (*prefix, *ids, 99)
        context = Context(
            prompt_id=prompt,
            task="t",
            difficulty=2.0,
            version=version,
            prompt_length=3,
            completion_length=turns * tokens,
            stop_reason=StopReason.STOP,
        )
        member = Rollout(
            id=f"{prompt}#{sample}@{version}",
            sample=sample,
            turns=tuple(sampled_turns),
            completion="a long text",
            reward=float(sample),
            reward_parts={"r": 1.0},
            outcome=Outcome.OK,
            context=context,
        )
        rollouts[member.id] = member
        advantage = size * (-1.0) ** sample
        own_advantage = advantage if turns == 1 else tuple(advantage / (k + 1) for k in range(turns * tokens))
        credits.append(Credit(rollout_id=member.id, advantage=own_advantage, clip_low=0.2, clip_high=0.28))
    rewards = tuple(member.reward or 0.0 for member in rollouts.values())
    return Group(scale="prompt", key=f"{prompt}@{version}", members=tuple(rollouts), rewards=rewards), rollouts, credits


class Policy:
    """Says of every token that it is `moved` nats likelier than when it was sampled; counts what it is asked."""

    def __init__(self, moved: float = 0.0, prompts: Mapping[str, float] | None = None) -> None:
        self.moved, self.prompts, self.asked = moved, prompts or {}, [0]

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, RolloutScores]:
        self.asked.append(len(rollouts))
        scores = {}
        for rollout in rollouts:
            sampled = np.concatenate([np.array(turn.sampler_logprobs) for turn in rollout.turns])
            scores[rollout.id] = RolloutScores(
                logprobs=sampled + self.prompts.get(rollout.context.prompt_id, self.moved)
            )
        return scores


def memory(*groups: Made, step: int = 1, **changed: Any) -> ReplayBuffer:
    names = {name: changed.pop(name) for name in ("reward", "reference", "renewed_every") if name in changed}
    buffer = ReplayBuffer(ReplayConfig(**{"groups": 2, **changed}), seed=3, **names)
    for group, rollouts, credits in groups:
        buffer.keep(step, [group], rollouts, credits)
    return buffer


def keys(replayed: Replayed) -> set[str]:
    return {f"{rollout.context.prompt_id}@{rollout.context.version}" for rollout in replayed.rollouts.values()}


def test_a_past_group_joins_whole_with_the_credit_it_was_given() -> None:
    group, rollouts, credits = made("q", 0)
    policy = Policy(0.1)
    replayed = memory((group, rollouts, credits)).draw(2, policy)
    assert set(replayed.rollouts) == set(group.members)
    assert [credit.advantage for credit in replayed.credits] == [credit.advantage for credit in credits]
    assert all(credit.replayed and credit.clip_high == 0.28 for credit in replayed.credits)
    assert replayed.rollouts[group.members[0]].turns == rollouts[group.members[0]].turns
    ratio = float(np.exp(0.1))
    assert dict(replayed.metrics) == {
        "replay/kept": 1.0,
        "replay/rejected": 0.0,
        "replay/groups": 1.0,
        "replay/age": 2.0,
        "replay/ratio_min": pytest.approx(ratio),
        "replay/ratio_max": pytest.approx(ratio),
    }
    assert replayed.event == "q@0 of 3, age 2, ratio 1.11 to 1.11"


def test_nothing_is_replayed_when_stale_or_too_far_or_of_another_reward(tmp_path: Path) -> None:
    buffer = memory(made("q", 0), reward="exact")
    assert keys(buffer.draw(4, Policy())) == {"q@0"}
    for moved in (-0.7, 0.7):
        replayed = buffer.draw(4, Policy(moved))
        assert not replayed.rollouts
        assert replayed.metrics["replay/rejected"] == 1
        assert replayed.metrics["replay/groups"] == 0
    buffer.save(tmp_path)
    other = memory(reward="approximate")
    assert other.load(tmp_path) == "the reward changed since these were credited: 1 past groups are forgotten"
    assert other.kept == []
    stale = Policy()
    assert not buffer.draw(5, stale).rollouts
    assert stale.asked == [0], "nothing is left to be scored"


def test_one_rollout_outside_takes_the_whole_group_out() -> None:
    group, rollouts, credits = made("q", 0)

    def policy(asked: Sequence[Rollout]) -> dict[str, RolloutScores]:
        scores = Policy()(asked)
        last = group.members[-1]
        return scores | {last: RolloutScores(logprobs=scores[last].logprobs + 1.0)}

    assert not memory((group, rollouts, credits)).draw(1, policy).rollouts


def test_groups_that_teach_nothing_are_not_kept_and_masked_members_stay_out() -> None:
    assert memory(made("q", 0, size=0.0)).kept == []
    group, rollouts, credits = made("q", 0)
    (kept,) = memory((group, rollouts, credits[:2])).kept
    assert [rollout.id for rollout in kept.rollouts] == list(group.members[:2])
    assert memory((group, rollouts, [])).kept == []


def test_the_memory_is_bounded_by_groups_and_keeps_the_most_surprising() -> None:
    buffer = memory(*(made(f"q{k}", 0, size=1.0 + k % 7) for k in range(30)), capacity=5)
    assert [group.surprise for group in buffer.kept] == [6.0, 7.0, 7.0, 7.0, 7.0]
    assert all(rollout.completion == "" for group in buffer.kept for rollout in group.rollouts)
    for step in range(2, 40):
        group, rollouts, credits = made("new", step - 1, size=1.5)
        buffer.keep(step, [group], rollouts, credits)
        assert len(buffer.kept) <= 5
    assert {group.version for group in buffer.kept} == {34, 35, 36, 37, 38}, "old surprise fades"


def test_the_pass_that_scores_sees_a_bounded_number_of_groups() -> None:
    policy = Policy()
    buffer = memory(*(made(f"q{k}", 0) for k in range(30)), groups=2, candidates=3)
    replayed = buffer.draw(1, policy)
    assert policy.asked[-1] == 2 * 3 * 3
    assert len(keys(replayed)) == 2


def test_equal_counters_draw_equal_groups() -> None:
    groups = [made(f"q{k}", 0) for k in range(12)]
    drawn = [keys(memory(*groups).draw(version, Policy())) for version in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len({frozenset(names) for names in drawn}) > 2


def test_a_renewed_reference_empties_the_memory() -> None:
    buffer = memory(renewed_every=2)
    for step in (1, 2, 3):
        group, rollouts, credits = made("q", step - 1)
        buffer.keep(step, [group], rollouts, credits)
        assert [group.version for group in buffer.kept] == {1: [0], 2: [], 3: [2]}[step]


def test_uniform_weights_give_every_kept_group_the_same_say() -> None:
    """The expected sum of the weighted groups is `groups` times the mean over all, those outside the limits as 0."""
    names = [f"q{k}" for k in range(6)]
    groups = [made(name, 0, size=1.0 + k) for k, name in enumerate(names)]
    draws = 1500
    weights = np.zeros((draws, len(names)))
    buffer = memory(*groups, unbiased=True, candidates=2)
    for seed in range(draws):
        buffer.seed = seed
        replayed = buffer.draw(1, Policy(prompts={"q5": 2.0}))
        for rollout, earned in zip(replayed.rollouts.values(), replayed.credits, strict=True):
            if rollout.sample == 0:
                assert isinstance(earned.advantage, float)
                which = names.index(rollout.context.prompt_id)
                weights[seed, which] = earned.advantage / (1.0 + which)
    assert not weights[:, 5].any()
    errors = weights[:, :5].std(axis=0) / np.sqrt(draws)
    assert (errors < 0.05).all()
    assert (np.abs(weights[:, :5].mean(axis=0) - 2 / 6) < 4 * errors).all()


def test_a_memory_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    buffer = memory(made("q", 0), made("ü", 1, turns=2, size=1 / 3), step=2, reward="exact", reference="base")
    buffer.save(tmp_path)
    other = memory(reward="exact", reference="base")
    assert other.load(tmp_path) == ""
    assert other.kept == buffer.kept
    assert isinstance(other.kept[1].credits[0].advantage, tuple)
    assert keys(other.draw(3, Policy())) == keys(buffer.draw(3, Policy()))
    (tmp_path / "empty").mkdir()
    memory().save(tmp_path / "empty")
    assert read(tmp_path / "empty") == ([], {"reward": "", "reference": ""})


def test_a_broken_character_in_a_name_comes_back_visible(tmp_path: Path) -> None:
    buffer = memory(made("r\ud800", 1), step=2)
    buffer.save(tmp_path)
    ((group,), _) = read(tmp_path)
    assert (group.key, group.rollouts[0].context.prompt_id) == ("r\ud800@1", "r\\ud800")


def test_another_format_and_a_torn_file_are_refused(tmp_path: Path) -> None:
    memory(made("q", 0)).save(tmp_path)
    facts = json.loads((tmp_path / FILES.facts).read_text(encoding="utf-8"))
    for changed, message in (
        ({"format": 1}, "format is 1, this version of coterie reads 2"),
        ({"groups": facts["groups"] * 2}, "group 'q@0' has no rollouts"),
        ({"groups": []}, "left over"),
    ):
        (tmp_path / FILES.facts).write_text(json.dumps(facts | changed), encoding="utf-8")
        with pytest.raises(CheckpointError, match=message):
            memory().load(tmp_path)
    (tmp_path / FILES.facts).unlink()
    with pytest.raises(CheckpointError, match="cannot read the replayed groups"):
        memory().load(tmp_path)


def test_off_it_keeps_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    buffer = memory(made("q", 0), groups=0)
    policy = Policy()
    assert buffer.draw(1, policy) == Replayed()
    assert (buffer.kept, policy.asked) == ([], [0])
    buffer.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert buffer.load(tmp_path) == ""


def test_kept_groups_hold_no_more_than_an_update_needs() -> None:
    group, rollouts, credits = made("q", 0)
    kept = ReplayGroup.of(
        group, rollouts, {credit.rollout_id: replace(credit, contributions={"root": 1.0}) for credit in credits}
    )
    assert all(rollout.completion == "" and rollout.reward_parts == {} for rollout in kept.rollouts)
    assert all(credit.contributions == {} for credit in kept.credits)
    assert [rollout.reward for rollout in kept.rollouts] == list(group.rewards)


def test_the_name_of_a_reward_follows_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "rated"
    package.mkdir()
    (package / "by.py").write_text("def length(prompts, completions): ...", encoding="utf-8")
    (package / "__init__.py").write_text("raise RuntimeError('never imported')", encoding="utf-8")
    rewards = RewardsConfig.model_validate(
        {"functions": [{"name": "rated.by:length"}, {"name": "exact", "weight": 0.5}]}
    )
    before = identity(rewards)
    assert identity(rewards.model_copy(update={"timeout_s": 1.0, "workers": 3})) == before
    assert (
        identity(RewardsConfig.model_validate({"functions": [{"name": "rated.by:length"}, {"name": "exact"}]}))
        != before
    )
    (package / "by.py").write_text("def length(prompts, completions): pass", encoding="utf-8")
    assert identity(rewards) != before
    gone = RewardsConfig.model_validate({"functions": [{"name": "nowhere.at.all:length"}]})
    assert identity(gone) == identity(gone)


REPLAY = {"groups": 2, "capacity": 8, "max_age": 3, "min_ratio": 0.2, "max_ratio": 5.0}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    return tmp_path


def config_for(root: Path, **changed: Any) -> RunConfig:
    # A rate at which the policy stays near enough for its past to be replayed.
    return make_config(root, **{"replay": REPLAY, "optim": {"lr": 2e-3}, **changed})


def metrics(run: Path, step: int) -> dict[str, float]:
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        return database.step_metrics(step)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "minibatches, kl": {"optim": {"lr": 1e-3, "minibatches": 2, "epochs": 2}, "objective": {"kl_beta": 0.1}},
    "kl in the reward": {"objective": {"kl_beta": 0.1, "kl_in": "reward", "kl_estimator": "k1"}},
    "mixture": {"grouping": {"preset": "mixture", "refit_every": 2, "min_weight": 4.0, "weights": "probability"}},
    "tracker, unbiased": {"grouping": {"preset": "tracker"}, "replay": {**REPLAY, "unbiased": True}},
    "renewed reference": {"objective": {"kl_beta": 0.1}, "reference": {"sync_every": 4}},
}


SLOW = ("plain", "kl in the reward")  # the others go the same ways


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(changed, marks=pytest.mark.slow if name in SLOW else (), id=name)
        for name, changed in VARIANTS.items()
    ],
)
def test_it_resumes_to_the_same_bits(changed: dict[str, Any], root: Path) -> None:
    whole = launch.train(config_for(root, **changed))
    half = launch.train(config_for(root, name="two", **changed), stop_at(3, signal.SIGTERM))
    with MetricsDB.reader(whole / "metrics.sqlite") as database:
        assert sum(database.step_metrics(step).get("replay/groups", 0.0) for step in range(4, 7)) > 0
    assert launch.resume(half) == half
    assert fingerprint(half) == fingerprint(whole)
    facts = [(run / "checkpoints" / "step_000006" / FILES.facts).read_bytes() for run in (whole, half)]
    assert facts[0] == facts[1]


@pytest.mark.parametrize(("point", "nth"), [("optimizer", 5), pytest.param("publish", 2, marks=pytest.mark.slow)])
def test_killed_it_resumes_to_the_same_bits(root: Path, point: str, nth: int) -> None:
    changed = json.dumps({"replay": REPLAY, "optim": {"lr": 2e-3}})
    assert killed(root, point, nth, changed=changed) == -signal.SIGKILL
    run = launch.resume("one", runs=root / "runs")
    assert fingerprint(run) == fingerprint(launch.train(config_for(root, name="whole")))


def test_replay_changes_no_credit_of_a_fresh_group(root: Path) -> None:
    """Each fresh group's credit is that of its own rewards, whatever was trained beside it."""
    run = launch.train(config_for(root, eval={"every": 0}))
    for step in range(1, 7):
        rows = files.read_step(run / "rollouts", step)
        assert {row.rollout.context.version for row in rows} == {step - 1}, "a past rollout is recorded once"
        by_id = {row.rollout.id: row.rollout for row in rows}
        alone = credit(by_prompt(by_id.values()), by_id, AdvantageConfig(), clip_low=0.2, clip_high=0.2)
        assert [row.credit for row in rows if row.credit] == [credit for credit in alone if credit.rollout_id in by_id]
    assert any(metrics(run, step)["replay/groups"] for step in range(2, 7))


def test_the_estimator_sees_every_group_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group_keys: list[str] = []
    inner = GroupAwareEstimator.__call__

    def watched(estimator: GroupAwareEstimator, groups: Sequence[Group], *args: Any) -> Advantages:
        group_keys.extend(group.key for group in groups)
        return inner(estimator, groups, *args)

    monkeypatch.setattr(GroupAwareEstimator, "__call__", watched)
    grouping = {"preset": "empirical_bayes", "refit_every": 2, "min_weight": 4.0}
    run = launch.train(config_for(root, grouping=grouping, eval={"every": 0}))
    assert len(group_keys) == len(set(group_keys)) == 6 * 3
    assert any(metrics(run, step)["replay/groups"] for step in range(2, 7))


def test_a_run_says_what_it_replayed(root: Path) -> None:
    run = launch.train(config_for(root, eval={"every": 0}))
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        told = {event.step: event.message for event in database.events("replay")}
        step_metrics = {step: database.step_metrics(step) for step in range(1, 7)}
    assert "replay/age" not in step_metrics[1], "the first step has no past"
    steps = [step for step, values in step_metrics.items() if values["replay/groups"]]
    assert list(told) == steps
    assert steps
    for step in steps:
        assert told[step].count("age") == step_metrics[step]["replay/groups"]
        assert 1 <= step_metrics[step]["replay/age"] <= REPLAY["max_age"]
        assert 0.2 <= step_metrics[step]["replay/ratio_min"] <= step_metrics[step]["replay/ratio"] * 2
        assert 0 <= step_metrics[step]["replay/clipped"] <= 1
        assert step_metrics[step]["ratio/max"] == 1.0, "fresh rollouts are still on-policy"


def test_a_changed_reward_function_forgets_the_past_and_says_so(root: Path) -> None:
    run = launch.train(config_for(root, steps=4, eval={"every": 0}), stop_at(2, signal.SIGTERM))
    source = root / "tiny_rewards.py"
    source.write_text(source.read_text(encoding="utf-8").replace('count("a")', 'count("e")'), encoding="utf-8")
    launch.resume(run, accept_reward_change=True)
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        assert any("past groups are forgotten" in event.message for event in database.events("warning"))
    assert metrics(run, 3)["replay/kept"] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"critic": {}}, "leave out critic, or set replay.groups = 0"),
        ({"objective": {"kl_beta": 0.1}, "reference": {"sync_every": 1}}, "a renewed reference empties the memory"),
        ({"replay": {"groups": 9, "capacity": 8}}, "cannot come from a memory of capacity = 8"),
        ({"replay": {"groups": 1, "min_ratio": 1.5}}, "less than 1"),
        ({"replay": {"groups": 1, "max_ratio": 0.9}}, "greater than 1"),
        ({"replay": {"groups": 1, "max_age": 0}}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config_for(root, **changed)
