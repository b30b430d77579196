"""Each rule on series made by hand: it speaks beyond its border, and not at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from records_by_hand import evaluation, findings, interval, paired_by_hand, record

from coterie.doctor.findings import Record, Severity
from coterie.doctor.groups import zero_gradient
from coterie.doctor.rules import RULES, examine
from coterie.types import POOLED, EvalResult

UP = [0.1] * 10 + [0.5] * 10
FLAT = [0.3, 0.31] * 10
NOISE = [0.29, 0.31] * 10
FORMAT = {"rewards": {"functions": [{"name": "number"}, {"name": "format"}]}}
EVALS = [evaluation(0, 0.3, 0.5), evaluation(20, 0.3, 0.5)]
SPIKE = [1.0] * 5


def of_tasks(*, sums: float, half: float = 0.04, pooled: float = 0.05, course: Sequence[float] = (0.3, 0.3)) -> Record:
    """Evaluations of the tasks sums and legs: the difference of sums and of both together, and the course of sums."""
    evals = [evaluation(10 * number, value, 0.5, task="sums") for number, value in enumerate(course)]
    paired = {
        POOLED: paired_by_hand(pooled, 0.04),
        "legs": paired_by_hand(0.2, 0.04),
        "sums": paired_by_hand(sums, half),
    }
    return record({}, evals=evals, paired=paired)


SPEAKS: list[tuple[str, Severity, Record]] = [
    ("ratio", Severity.SERIOUS, record({"ratio/mean": [1.0, 1.0011]})),
    (
        "ratio",
        Severity.WARNING,
        record({"ratio/mean": [1, 0.949, 0.949, 0.949]}, config={"optim": {"minibatches": 2, "epochs": 1}}),
    ),
    ("clip_share", Severity.WARNING, record({"clip/low": [0.11] * 3, "clip/high": [0.1] * 3})),
    (
        "clip_share",
        Severity.WARNING,
        record({"clip/low": [0.21] * 3, "clip/high": [0.2] * 3}, config={"objective": {"ratio": "sequence"}}),
    ),
    ("dual_clip", Severity.WARNING, record({"clip/dual": [0.011] * 3})),
    ("kl_step", Severity.SERIOUS, record({"kl/old": [0.051] * 3})),
    ("kl_step", Severity.WARNING, record({"kl/old": [0.051] * 3 + [0.01]})),
    ("kl_jump", Severity.WARNING, record({"kl/ref": [0.02] * 5 + [0.101]})),
    ("entropy_low", Severity.SERIOUS, record({"entropy": [0.9] * 5 + [0.0899] * 5})),
    ("entropy_low", Severity.WARNING, record({"entropy": [0.2] * 5 + [0.099] * 5})),
    ("entropy_low", Severity.WARNING, record({"entropy": [0.9] * 10 + [0.05] * 10, "reward/mean": UP})),
    ("entropy_low", Severity.NOTE, record({"entropy": [0.9] * 5 + [0.05] * 5, "groups/all_correct": [0.81] * 10})),
    ("entropy_rise", Severity.SERIOUS, record({"entropy": [1.0] * 10 + [1.51] * 10, "reward/mean": UP[::-1]})),
    ("grad_spike", Severity.WARNING, record({"grad_norm": [*SPIKE, 10.1]})),
    ("skipped_updates", Severity.SERIOUS, record({"update/nonfinite": [0] * 7 + [1] * 3})),
    ("skipped_updates", Severity.WARNING, record({"update/nonfinite": [0] * 39 + [1]})),
    ("advantage_max", Severity.WARNING, record({"advantage/max": [5.01]})),
    ("critic", Severity.WARNING, record({"critic/explained_variance": [0.1] + [-0.01] * 10})),
    ("teacher", Severity.WARNING, record({"distill/reverse_kl": NOISE})),
    ("mismatch_kl", Severity.SERIOUS, record({"mismatch/kl": [0.011] * 3})),
    ("mismatch_cut", Severity.WARNING, record({"mismatch/masked": [0.051] * 3})),
    ("mismatch_cut", Severity.WARNING, record({"mismatch/truncated": [0.051] * 3})),
    ("mismatch_ess", Severity.WARNING, record({"mismatch/ess": [0.49] * 3})),
    ("mismatch_ess_sequence", Severity.WARNING, record({"mismatch/ess_sequence": [0.49] * 3})),
    ("no_gradient", Severity.SERIOUS, record({"grad_norm": [0.0, 0.0]})),
    ("zero_variance", Severity.WARNING, record({"groups/zero_variance": [0.61] * 10})),
    ("zero_variance", Severity.SERIOUS, record({"groups/zero_variance": [0.95] * 10})),
    ("zero_variance", Severity.NOTE, record({"groups/zero_variance": [1.0] * 10, "groups/all_correct": [0.81] * 10})),
    ("effective_groups", Severity.WARNING, record({"groups/effective": [1.9] * 10})),
    ("reward_unmoved", Severity.WARNING, record({"reward/mean": NOISE})),
    ("reward_unmoved", Severity.SERIOUS, record({"reward/mean": [0.3] * 20})),
    ("reward_fell", Severity.SERIOUS, record({"reward/mean": UP[::-1]})),
    ("truncated", Severity.WARNING, record({"truncated": [0.051] * 3})),
    ("truncated", Severity.SERIOUS, record({"truncated": [0.51] * 3})),
    ("wrong_longer", Severity.WARNING, record({"length/wrong": [20] * 5 + [26] * 5, "length/correct": [20] * 10})),
    (
        "length_drift",
        Severity.WARNING,
        record({"length/mean": [20] * 5 + [41] * 5, "reward/mean": [0.3] * 10}),
    ),
    (
        "heldout_flat",
        Severity.WARNING,
        record({"reward/mean": UP}, evals=EVALS, paired={"legs": paired_by_hand(0.02, 0.02)}),
    ),
    (
        "heldout_flat",
        Severity.SERIOUS,
        record({"reward/mean": UP}, evals=EVALS, paired={"legs": paired_by_hand(-0.05, 0.02)}),
    ),
    (
        "format_full",
        Severity.WARNING,
        record({"reward/part/format": [0.95] * 20, "reward/part/number": FLAT}, config=FORMAT),
    ),
    (
        "parts_apart",
        Severity.WARNING,
        record({"reward/mean": FLAT, "reward/part/style": UP, "reward/part/length": UP[::-1]}, config=FORMAT),
    ),
    (
        "parts_apart",
        Severity.SERIOUS,
        record({"reward/mean": FLAT, "reward/part/style": UP, "reward/part/number": UP[::-1]}, config=FORMAT),
    ),
    (
        "parts_apart",
        Severity.NOTE,
        record(
            {"reward/mean": FLAT, "reward/part/number": UP, "reward/part/call_cost": [-value for value in UP]},
            config=FORMAT,
        ),
    ),
    ("repetition", Severity.WARNING, record({"repetition/mean": [0.1] * 5 + [0.31] * 5})),
    ("repetition", Severity.SERIOUS, record({"repetition/mean": [0.1] * 5 + [0.61] * 5})),
    ("copied_prompt", Severity.WARNING, record({"prompt_overlap/mean": [0.1] * 5 + [0.51] * 5})),
    ("no_reasoning", Severity.WARNING, record({"think/empty": [0.0] * 5 + [0.21] * 5})),
    (
        "kl_without_gain",
        Severity.WARNING,
        record({"kl/ref": [0.01] * 10 + [0.12] * 10, "reward/mean": FLAT}),
    ),
    ("heldout_lost", Severity.SERIOUS, record({}, evals=EVALS, paired={"legs": paired_by_hand(-0.05, 0.04)})),
    ("tasks_apart", Severity.SERIOUS, of_tasks(sums=-0.05)),
    ("tasks_apart", Severity.WARNING, of_tasks(sums=0.0, half=0.0)),
    ("tasks_apart", Severity.WARNING, of_tasks(sums=0.1, course=[0.1, 0.4, 0.2])),
    ("heldout_unsure", Severity.NOTE, record({}, evals=EVALS, paired={"legs": paired_by_hand(0.04, 0.04)})),
    ("sharpened", Severity.WARNING, record({}, evals=[evaluation(0, 0.3, 0.6), evaluation(9, 0.4, 0.5)])),
    ("sharpened", Severity.NOTE, record({}, evals=[evaluation(0, 0.3, 0.6), evaluation(9, 0.4, 0.59)])),
    ("errors", Severity.WARNING, record({"errors": [0, 1]})),
    (
        "errors",
        Severity.SERIOUS,
        record({"errors": [0, 1]}, config={"collect": {"prompts_per_step": 2, "group_size": 4}}),
    ),
    ("late", Severity.WARNING, record({"late": [0, 1]})),
    ("slower", Severity.NOTE, record({"speed/generate": [150.1] * 5 + [100] * 5})),
    ("stale", Severity.WARNING, record({"staleness/max": [0, 2]})),
]
QUIET: list[tuple[str, Record]] = [
    ("ratio", record({"ratio/mean": [1.0, 1.0009]})),
    ("ratio", record({"ratio/mean": [1, 0.951] * 5}, config={"optim": {"minibatches": 2, "epochs": 1}})),
    ("ratio", record({"ratio/mean": [1.04] * 5, "staleness/mean": [0.5] * 5})),
    ("clip_share", record({"clip/low": [0.1] * 3, "clip/high": [0.1] * 3})),
    (
        "clip_share",
        record({"clip/low": [0.2] * 3, "clip/high": [0.2] * 3}, config={"objective": {"ratio": "sequence"}}),
    ),
    ("clip_share", record({"clip/low": [0.3, 0.3, 0, 0.3, 0.3], "clip/high": [0.0] * 5})),
    ("dual_clip", record({"clip/dual": [0.01] * 3})),
    ("kl_step", record({"kl/old": [0.05] * 3})),
    ("kl_jump", record({"kl/ref": [0.02] * 5 + [0.1]})),
    ("kl_jump", record({"kl/ref": [0.001] * 5 + [0.05]})),
    ("entropy_low", record({"entropy": [0.9] * 5 + [0.1] * 5})),
    ("entropy_rise", record({"entropy": [1.0] * 10 + [1.5] * 10, "reward/mean": UP[::-1]})),
    ("entropy_rise", record({"entropy": [1.0] * 10 + [2.0] * 10, "reward/mean": FLAT})),
    ("grad_spike", record({"grad_norm": [*SPIKE, 10.0]})),
    ("skipped_updates", record({"update/nonfinite": [0.0]})),
    ("advantage_max", record({"advantage/max": [5.0]})),
    ("critic", record({"critic/explained_variance": [-0.5] * 20 + [0.0]})),
    ("teacher", record({"distill/reverse_kl": UP[::-1]})),
    ("mismatch_kl", record({"mismatch/kl": [0.01] * 3})),
    ("mismatch_cut", record({"mismatch/masked": [0.05] * 3})),
    ("mismatch_ess", record({"mismatch/ess": [0.5] * 3})),
    ("mismatch_ess_sequence", record({"mismatch/ess_sequence": [0.5] * 3})),
    ("no_gradient", record({"grad_norm": [0.0, 1e-9]})),
    ("zero_variance", record({"groups/zero_variance": [0.6] * 10})),
    ("zero_variance", record({"groups/zero_variance": [0.9] * 9 + [0.5] + [0.9] * 9})),
    ("effective_groups", record({"groups/effective": [2.0] * 10})),
    ("effective_groups", record({"groups/effective": [1.0] * 10}, config={"collect": {"prompts_per_step": 1}})),
    ("reward_unmoved", record({"reward/mean": UP})),
    ("reward_unmoved", record({"reward/mean": [1.0] * 20, "groups/all_correct": [1.0] * 20})),
    ("reward_fell", record({"reward/mean": NOISE})),
    ("truncated", record({"truncated": [0.05] * 3})),
    ("truncated", record({"truncated": [0.9] * 5 + [0.0] * 10})),
    ("wrong_longer", record({"length/wrong": [20] * 5 + [25] * 5, "length/correct": [20] * 10})),
    ("wrong_longer", record({"length/wrong": [20] * 5 + [40] * 5, "length/correct": [20] * 5 + [40] * 5})),
    ("length_drift", record({"length/mean": [20] * 5 + [40] * 5, "reward/mean": [0.3] * 10})),
    ("length_drift", record({"length/mean": [20] * 10 + [60] * 10, "reward/mean": UP})),
    ("heldout_flat", record({"reward/mean": UP}, evals=EVALS, paired={"legs": paired_by_hand(0.05, 0.04)})),
    ("heldout_flat", record({"reward/mean": FLAT}, evals=EVALS, paired={"legs": paired_by_hand(-0.05, 0.04)})),
    ("format_full", record({"reward/part/format": [0.94] * 20, "reward/part/number": FLAT}, config=FORMAT)),
    ("format_full", record({"reward/part/format": [1.0] * 20, "reward/part/number": UP}, config=FORMAT)),
    ("parts_apart", record({"reward/mean": FLAT, "reward/part/number": UP, "reward/part/style": FLAT}, config=FORMAT)),
    ("parts_apart", record({"reward/mean": FLAT, "reward/part/number": UP[::-1]}, config=FORMAT)),
    ("repetition", record({"repetition/mean": [0.1] * 5 + [0.3] * 5})),
    ("repetition", record({"repetition/mean": [0.5] * 10})),
    ("copied_prompt", record({"prompt_overlap/mean": [0.1] * 5 + [0.5] * 5})),
    ("no_reasoning", record({"think/empty": [0.0] * 5 + [0.2] * 5})),
    ("kl_without_gain", record({"kl/ref": [0.01] * 10 + [0.1099] * 10, "reward/mean": FLAT})),
    ("kl_without_gain", record({"kl/ref": [0.01] * 10 + [0.5] * 10, "reward/mean": UP})),
    ("heldout_lost", record({}, evals=EVALS, paired={"legs": paired_by_hand(-0.04, 0.04)})),
    ("tasks_apart", of_tasks(sums=-0.03)),
    ("tasks_apart", of_tasks(sums=-0.05, pooled=0.04)),
    ("tasks_apart", of_tasks(sums=0.1, course=[0.1, 0.4, 0.34])),
    ("heldout_unsure", record({}, evals=EVALS, paired={"legs": paired_by_hand(0.04, 0.03)})),
    ("sharpened", record({}, evals=[evaluation(0, 0.3, 0.6), evaluation(9, 0.4, 0.6)])),
    ("sharpened", record({}, evals=[evaluation(0, 0.3, 0.6), evaluation(9, 0.35, 0.5)])),
    ("errors", record({"errors": [0.0]})),
    ("late", record({"late": [0.0]})),
    ("slower", record({"speed/generate": [150] * 5 + [100] * 5})),
    ("stale", record({"staleness/max": [1, 1]})),
]


@pytest.mark.parametrize(("rule", "severity", "made"), SPEAKS, ids=[f"{s[0]}-{s[1]}" for s in SPEAKS])
def test_it_speaks_beyond_its_border(rule: str, severity: Severity, made: Record) -> None:
    finding = findings(made)[rule]
    assert finding.severity is severity
    assert finding.evidence
    assert all(evidence.text and evidence.steps[0] <= evidence.steps[1] for evidence in finding.evidence)
    assert finding.title.endswith((".", ".;"))
    assert finding.meaning
    assert finding.action


@pytest.mark.parametrize(("rule", "made"), QUIET, ids=[name for name, _ in QUIET])
def test_it_is_quiet_at_its_border(rule: str, made: Record) -> None:
    assert rule in examine(made).quiet


def test_every_rule_is_tried_on_both_sides() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert {name for name, *_ in SPEAKS} == {name for name, _ in QUIET} == set(names)


def test_a_rule_without_its_metric_does_not_speak_and_says_so() -> None:
    examination = examine(record({}))
    assert not examination.findings
    assert not examination.quiet
    assert {skipped.rule for skipped in examination.unjudged} == {rule.name for rule in RULES}
    reasons = {skipped.rule: skipped.reason for skipped in examine(record({"kl/ref": [0.1]})).unjudged}
    assert reasons["kl_jump"] == "needs 6 steps with kl/ref, there is 1"
    assert reasons["mismatch_cut"] == "none of mismatch/masked, mismatch/truncated was recorded"
    assert reasons["heldout_lost"] == "needs 2 held-out evaluations, there are 0"


def test_the_most_severe_comes_first() -> None:
    made = record({"truncated": [0.1] * 3, "mismatch/kl": [0.5] * 3, "speed/generate": [9] * 5 + [1] * 5})
    assert [finding.severity for finding in examine(made).findings] == ["serious", "warning", "note"]


def test_evidence_says_where_how_often_and_how_bad() -> None:
    finding = findings(record({"mismatch/kl": [0.001, 0.02, 0.03, 0.02, 0.001]}))["mismatch_kl"]
    (evidence,) = finding.evidence
    assert evidence.text == "mismatch/kl above 0.01 in 3 of 5 steps, steps 2 to 4; worst 0.03 at step 3"
    assert (evidence.metric, evidence.value, evidence.threshold, evidence.steps) == ("mismatch/kl", 0.03, 0.01, (2, 4))


def test_the_advice_knows_the_run() -> None:
    cut = {"truncated": [0.4] * 10, "length/terminated": [50.0] * 10}
    action = findings(record(cut, config={"sampling": {"max_tokens": 64}}))["truncated"].action
    assert "from 64 to about 128" in action
    assert "take 50 tokens" in action
    assert "No completion ends by itself" in findings(record({"truncated": [1.0] * 10}))["truncated"].action
    assert "No completion" not in findings(record({"truncated": [0.9] * 10}))["truncated"].action
    hard = {"groups/zero_variance": [0.9] * 10, "groups/all_correct": [0.1] * 10, "groups/all_wrong": [0.8] * 10}
    assert "easier prompts" in findings(record(hard))["zero_variance"].action
    easy = hard | {"groups/all_correct": [0.7] * 10, "groups/all_wrong": [0.2] * 10}
    assert "harder prompts" in findings(record(easy))["zero_variance"].action


def test_a_good_run_is_healthy() -> None:
    good = {
        "reward/mean": UP,
        "ratio/mean": [1.0] * 20,
        "entropy": [1.0] * 10 + [0.6] * 10,
        "truncated": [0.01] * 20,
        "groups/zero_variance": [0.3] * 20,
        "errors": [0.0] * 20,
    }
    examination = examine(record(good, evals=EVALS, paired={"legs": paired_by_hand(0.2, 0.05)}))
    assert examination.quiet
    assert not examination.serious
    assert not examination.findings


def test_a_task_that_pays_for_the_mean_is_named() -> None:
    finding = findings(of_tasks(sums=0.0, half=0.0))["tasks_apart"]
    assert finding.title == "Held-out accuracy of sums does not move while that of all tasks together rises."
    assert [evidence.text for evidence in finding.evidence] == [
        "pass@1 of sums: +0.0 points [+0.0, +0.0]",
        "pass@1 of all tasks: +5.0 points [+1.0, +9.0]",
    ]
    finding = findings(of_tasks(sums=0.0, half=0.0, course=[0.0, 0.4, 0.0]))["tasks_apart"]
    assert finding.title.startswith("Held-out accuracy of sums falls")
    assert finding.evidence[0].text == "pass@1 of sums: 40.0 % at step 10, 0.0 % at step 20"
    assert finding.evidence[0].steps == (10, 20)


def graded(step: int, reward: float) -> EvalResult:
    return replace(evaluation(step, 0, 0), pass_at_1=None, pass_at_k=None, reward=interval(reward))


def test_a_graded_reward_is_judged_by_its_held_out_mean() -> None:
    rose = [graded(0, 0.07), graded(20, 0.43)]
    paired = {"legs": replace(paired_by_hand(0.36, 0.05), metric="reward")}
    assert findings(record({"reward/mean": UP}, evals=rose, paired=paired)) == {}
    unsure = {"legs": replace(paired_by_hand(0.01, 0.05), metric="reward")}
    hits = findings(record({"reward/mean": UP}, evals=rose, paired=unsure))
    assert set(hits) == {"heldout_flat", "heldout_unsure"}
    assert hits["heldout_flat"].title == "The training reward rises, and held-out reward has not been shown to follow."
    assert (
        hits["heldout_flat"].evidence[1].text == "held-out reward changed by +0.010 [-0.040, +0.060] from step 0 to 20"
    )
    assert hits["heldout_unsure"].evidence[0].text.startswith("reward changed by +0.010 [-0.040, +0.060], p = 0.010")
    assert "0.050 wide" in hits["heldout_unsure"].action
    lost = findings(record({}, evals=rose, paired={"legs": replace(paired_by_hand(-0.36, 0.05), metric="reward")}))
    assert lost["heldout_lost"].title == "Held-out reward of legs is lower than before the training."


def test_an_evaluation_of_nothing_but_zeros_is_graded_when_a_later_one_is() -> None:
    zeros = replace(evaluation(0, 0, 0), reward=interval(0.0))
    assert findings(record({"reward/mean": UP}, evals=[zeros, graded(20, 0.4)])) == {}
    assert "heldout_flat" in findings(record({"reward/mean": UP}, evals=[zeros, graded(20, -0.1)]))


def test_solved_and_none_of_some_steps_say_nothing_of_a_graded_run() -> None:
    made = {"groups/zero_variance": [1.0] * 10, "groups/mixed": [0.0] * 20, "groups/all_correct": [1.0] * 3}
    finding = findings(record(made | {"groups/all_wrong": [0.0] * 3}))["zero_variance"]
    assert finding.severity is Severity.SERIOUS
    assert [evidence.metric for evidence in finding.evidence] == ["groups/zero_variance"]
    assert "finer" in finding.action


def test_groups_that_were_thrown_away_are_told_as_such() -> None:
    made = {"groups/effective": [0.0] * 10, "dynamic_sampling/dropped": [40.0] * 10}
    (evidence,) = findings(record(made))["effective_groups"].evidence
    assert evidence.text == (
        "0 groups a step were trained on (mean of the last 10 steps); collect.dynamic_sampling dropped 40, in which "
        "all attempts had the same 'task'"
    )


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"reward/min": [0.5] * 2, "reward/max": [0.5] * 2}, "the reward was 0.5 for every rollout"),
        ({"reward/min": [0.1] * 2, "reward/max": [0.5] * 2, "groups/effective": [0, 0]}, "in every group all attempts"),
        (
            {"dynamic_sampling/missing": [4, 4], "groups/effective": [0, 0]},
            "collect.dynamic_sampling found no group",
        ),
        ({}, "every advantage was zero"),
    ],
)
def test_a_gradient_of_zero_has_a_reason(metrics: dict[str, list[float]], why: str) -> None:
    (evidence, *_) = findings(record({"grad_norm": [0.0, 0.0], **metrics}))["no_gradient"].evidence
    assert evidence.text.startswith(f"grad_norm is zero in 2 of 2 steps: {why}")
    some = {name: [*values, 1.0] for name, values in metrics.items()}
    assert zero_gradient(record({"grad_norm": [0.0, 0.0, 1.0], **some}).series).startswith(
        f"zero in 2 of 3 steps: {why}"
    )


PARTS = ("reward/part/number", "reward/part/short", "reward/part/polite")


def parts_of(rows: np.ndarray) -> Record:
    """A record of three reward parts. rows: [3, S]"""
    return record({"reward/mean": rows.mean(axis=0), **dict(zip(PARTS, rows, strict=True))})


def test_noise_of_reward_parts_is_no_divergence() -> None:
    """Of 400 runs of noise, white and with a memory, fewer than 1 in 50 are taken for parts that part."""
    random = np.random.default_rng(11)
    for memory in (0.0, 0.5):
        alarms = 0
        for _ in range(400):
            rows = random.normal(0.5, 0.1, size=(3, 60))
            for step in range(1, 60):
                rows[:, step] = memory * rows[:, step - 1] + (1 - memory) * rows[:, step]
            alarms += "parts_apart" in findings(parts_of(rows))
        assert alarms < 8, memory


def test_parts_that_part_in_noise_are_seen() -> None:
    random = np.random.default_rng(5)
    drift = np.linspace(0, 0.4, 60)
    alarms = 0
    for _ in range(50):
        rows = random.normal(0.5, 0.1, size=(3, 60)) + np.stack([-drift, drift, 0 * drift])
        finding = findings(parts_of(rows)).get("parts_apart")
        alarms += finding is not None
        if finding is not None:
            assert {item.metric for item in finding.evidence} >= {PARTS[0], PARTS[1]}
    assert alarms >= 48


def test_parts_that_all_rise_in_noise_are_no_divergence() -> None:
    random = np.random.default_rng(6)
    drift = np.linspace(0, 0.4, 60)
    for _ in range(50):
        assert "parts_apart" not in findings(parts_of(random.normal(0.3, 0.1, size=(3, 60)) + drift))
