"""A reward that never reaches 1: held-out results are its mean, and dynamic sampling looks at its variance."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from coterie import launch
from coterie.callbacks import Callback
from coterie.cli.main import main
from coterie.doctor.health import diagnose
from coterie.runs.metrics import MetricsDB
from coterie.train.evaluate import Criterion, Scale
from coterie.types import PASS, REWARD, Context, EvalResult, Interval, Outcome, Rollout, StopReason, metric_of
from runs_for_tests import make_config


def rollout(value: float | None, *, reward: float = 0.0, outcome: Outcome = Outcome.OK) -> Rollout:
    context = Context(
        prompt_id="p",
        task="t",
        difficulty=None,
        version=0,
        prompt_length=1,
        completion_length=1,
        stop_reason=StopReason.STOP,
    )
    return Rollout(
        id="p#0@0",
        sample=0,
        turns=(),
        completion="",
        reward=reward,
        reward_parts={"share": value},
        outcome=outcome,
        context=context,
    )


@pytest.mark.parametrize(
    ("values", "binary"),
    [
        ([0, 1, 1, 0], True),
        ([0, 0], True),
        ([1, 1], True),
        ([-1, 1], True),
        ([1 - 1e-7, 0.0], True),
        ([], True),
        ([-1, 0, 1], False),
        ([0, 0.5, 1], False),
        ([2, 3, 1], False),
        ([0.01, 1], False),
    ],
)
def test_a_reward_is_binary_when_all_its_values_are(values: list[float], binary: bool) -> None:
    assert Criterion(part="share").applies(values) == binary
    assert Criterion(part="share", threshold=0.5).applies(values)


def test_what_the_own_scorer_gives_a_wrong_answer_is_wrong() -> None:
    task = Criterion(part="task", wrong=0.05)
    assert task.applies([0.01, 0.05, 0.0, 1.0])
    assert not task.applies([0.01, 0.3, 1.0])


def test_a_threshold_says_what_is_correct() -> None:
    half = Criterion(part="share", threshold=0.5)
    assert [half.is_correct(rollout(value)) for value in (0.49, 0.5, 2.0, None)] == [False, True, True, False]
    assert not half.is_correct(rollout(1.0, outcome=Outcome.ENV_ERROR))
    assert [Criterion(part="share").is_correct(rollout(value)) for value in (0.99, 1.0)] == [False, True]


def test_a_group_is_judged_by_the_evaluated_part_and_by_the_reward_where_that_does_not_apply() -> None:
    share = Criterion(part="share")
    assert share.of_group([rollout(0.25), rollout(None, reward=3.0)]) == [0.25, 0.0]
    assert share.of_group([rollout(None, reward=0.1), rollout(None, reward=0.2)]) == [0.1, 0.2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("graded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield folder


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    data = {"heldout": [{"type": "file", "path": str(root / "heldout.jsonl")}]}
    return launch.train(make_config(root, name="graded", steps=24, data=data, eval={"every": 8, "samples": 4}))


def test_the_held_out_reward_rises_with_the_training_reward(run: Path) -> None:
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        evals = database.evals()
        items = database.eval_items(24)
        trained = [value for _, value in database.series("reward/mean")]
        mixed = [value for _, value in database.series("groups/mixed")]
        zero = [value for _, value in database.series("groups/zero_variance")]
        names = database.names()
    rewards = [result.reward.value for result in evals if result.reward]
    assert [result.pass_at_1 for result in evals[1:]] == [None] * 3
    assert metric_of(evals) == REWARD
    assert rewards[-1] > rewards[0] + 0.1 < trained[-1] + 0.1
    assert rewards[-1] == pytest.approx(sum(item.reward or 0.0 for item in items) / len(items))
    assert evals[-1].reward_parts == pytest.approx({"likes_a": rewards[-1]})
    assert mixed == pytest.approx([1 - share for share in zero])
    assert sum(mixed) > 0
    assert not {"length/correct", "surprisal/correct"} & set(names)


def test_the_readme_the_list_and_the_doctor_tell_of_the_gain(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (run / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| heldout |")]
    assert "| reward | 0." in row
    assert "**+0." in row
    assert "pass@1" not in text.split("## Health")[0]
    assert "points" not in text.split("## Health")[0]
    diagnosis = diagnose(run)
    told = {finding.rule: finding for finding in diagnosis.findings}
    assert not {"heldout_unsure", "heldout_flat", "heldout_lost", "no_gradient"} & set(told)

    assert main(["ls", "--runs", str(run.parent), "--json"]) == 0
    (line,) = [summary for summary in json.loads(capsys.readouterr().out) if summary["name"] == "graded"]
    assert line["heldout"] == REWARD
    assert line["after"] > line["before"] + 0.1
    assert main(["ls", "--runs", str(run.parent)]) == 0
    assert "train reward  held-out" in capsys.readouterr().out.splitlines()[0]

    assert main(["show", str(run)]) == 0
    page = capsys.readouterr().out
    assert "reward 0." in page.split("held-out after")[1].split("after minus before")[0]
    assert "metrics of the last step\n  reward\n" in page
    assert main(["show", str(run), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["paired"]["heldout"]["metric"] == REWARD
    assert summary["paired"]["heldout"]["low"] > 0
    assert summary["after"][0]["pass_at_1"] is None


class Told(Callback):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.results: list[EvalResult] = []

    def on_event(self, kind: str, message: str) -> None:
        self.notes.append(f"{kind}: {message}")

    def on_evaluate(self, results: Any) -> None:
        self.results += results


def test_dynamic_sampling_trains_on_a_graded_reward(root: Path) -> None:
    told = Told()
    config = make_config(root, name="dapo", steps=3, collect={"dynamic_sampling": True}, eval={"every": 0, "limit": 1})
    run = launch.train(config, told)
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        assert all(value > 0 for _, value in database.series("grad_norm"))
        assert all(value > 0 for _, value in database.series("groups/effective"))
        assert {value for _, value in database.series("groups/mixed")} == {1.0}
    assert not [note for note in told.notes if "trained" in note]


def test_a_constant_reward_says_that_nothing_was_trained(root: Path) -> None:
    (root / "constant.py").write_text("def half(completions, **columns):\n    return [0.5 for _ in completions]\n")
    told = Told()
    parts = {"functions": [{"name": "constant:half"}]}
    collect = {"dynamic_sampling": True, "dynamic_sampling_limit": 2}
    ways = {"constant": {}, "dropped": {"collect": collect}}
    for name, changed in ways.items():
        run = launch.train(
            make_config(root, name=name, steps=2, rewards=parts, eval={"every": 0, "limit": 1}, **changed), told
        )
        text = "the gradient was zero in 2 of 2 steps: the reward was 0.5 for every rollout"
        assert f"warning: nothing was trained: {text}" in told.notes
        readme = (run / "README.md").read_text(encoding="utf-8")
        assert "- serious: Nothing was trained: the gradient was zero in every step." in readme
        assert "- Gradient: zero in 2 of 2 steps: the reward was 0.5 for every rollout." in readme
    short = [note for note in told.notes if "collect.dynamic_sampling" in note]
    assert short[0] == (
        "warning: collect.dynamic_sampling found 0 of 3 groups with variance after 2 rounds and dropped 6, in each of "
        "which all attempts have the same 'half' (eval.reward); this step trains on nothing"
    )


def test_a_threshold_gives_a_graded_reward_pass_at_k(root: Path, run: Path) -> None:
    config = make_config(root, eval={"samples": 4, "k": 2, "correct_threshold": 0.05})
    told = Told()
    (result,) = launch.evaluate(str(run), config, told)
    assert result.pass_at_1 is not None
    assert result.pass_at_k is not None
    assert 0 < result.pass_at_1.value <= result.pass_at_k.value
    assert metric_of([result]) == PASS
    (graded,) = launch.evaluate(str(run), make_config(root, eval={"samples": 4, "k": 2}), told)
    assert (graded.pass_at_1, graded.reward) == (None, result.reward)


def test_a_reward_that_was_graded_once_stays_graded_also_after_a_resume() -> None:
    share = Criterion(part="share")
    assert share.is_undecided()
    share.observe([rollout(0.0), rollout(0.0)])
    assert (share.is_undecided(), share.is_graded()) == (True, False)
    share.observe([rollout(0.0), rollout(1.0)])
    assert (share.is_undecided(), share.is_graded()) == (False, False)
    share.observe([rollout(0.4)])
    share.observe([rollout(0.0), rollout(1.0)])
    assert share.is_graded()
    again = Criterion(part="share")
    again.scale.restore(json.loads(json.dumps(share.scale.state())))
    assert again.is_graded()
    assert not Criterion(part="share", threshold=0.5, scale=share.scale).is_graded()


def test_a_built_in_scorer_is_binary_while_all_is_0_and_by_task() -> None:
    criterion = Criterion(part="share", scale=Scale(binary=True, by_task=True))
    criterion.observe([rollout(0.0)])
    assert not criterion.is_undecided("t")
    criterion.scale.add("other", {"graded"})
    assert (criterion.is_graded("t"), criterion.is_graded("other"), criterion.is_graded()) == (False, True, True)


def result(value: float, *, binary: bool) -> EvalResult:
    estimate = Interval(value=value, low=value, high=value)
    return EvalResult(
        step=0,
        task="t",
        prompts=2,
        samples=2,
        k=1,
        pass_at_1=estimate if binary else None,
        pass_at_k=estimate if binary else None,
        mean_length=1.0,
        truncated=0.0,
        reward=estimate,
    )


def test_an_evaluation_of_zeros_is_compared_by_what_the_reward_turned_out_to_be() -> None:
    zeros = result(0.0, binary=False)
    assert metric_of([zeros]) == REWARD
    assert metric_of([zeros, result(0.5, binary=True)]) == PASS
    assert zeros.metric(PASS) == zeros.reward
    assert metric_of([zeros, result(0.5, binary=False)]) == REWARD


def test_a_sparse_graded_run_stays_graded(root: Path) -> None:
    (root / "sparse.py").write_text(
        "def sparse(completions, **columns):\n"
        "    return [0.5 if 'a' in text and len(text) % 7 == 0 else 0.0 for text in completions]\n"
    )
    told = Told()
    parts = {"functions": [{"name": "sparse:sparse"}]}
    run = launch.train(make_config(root, name="sparse", steps=4, rewards=parts, eval={"every": 2, "samples": 2}), told)
    assert [evaluation.pass_at_1 for evaluation in told.results] == [None] * len(told.results)
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        solved = {step for step, _ in database.series("groups/all_correct")}
        graded = [step for step, value in database.series("reward/max") if value not in (0.0, 1.0)]
    assert graded
    assert not {step for step in solved if step >= graded[0]}
    (root / "sparse.py").write_text("def sparse(completions, **columns):\n    return [0.0 for _ in completions]\n")
    launch.resume(run, told, steps=6, accept_reward_change=True)  # nothing but zeros from here on, and still graded
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        assert max(step for step, _ in database.series("reward/max")) == 6
        assert not {step for step, _ in database.series("groups/all_correct") if step >= graded[0]}
