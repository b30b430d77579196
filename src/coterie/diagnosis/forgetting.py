"""Rules about held-out accuracy: what was gained, what was lost, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator

from coterie.diagnosis.findings import Alarm, Evidence, Record, Rule, Severity

INTERVALS = "95 % bootstrap intervals over prompts, paired by prompt"


def _steps(record: Record) -> tuple[int, int]:
    return record.evals[0].step, record.evals[-1].step


def _lost(record: Record) -> Iterator[Alarm]:
    for task, test in record.paired.items():
        if test.high < 0:
            text = (
                f"pass@1 of {task}: {100 * test.difference:+.1f} points "
                f"[{100 * test.low:+.1f}, {100 * test.high:+.1f}], p = {test.p_value:.3f}"
            )
            proof = Evidence(
                metric=f"held-out {task} pass@1",
                value=test.difference,
                threshold=0.0,
                steps=_steps(record),
                text=text,
            )
            title = f"Held-out accuracy of {task} is lower than before the training."
            yield Alarm(severity=Severity.SERIOUS, title=title, evidence=(proof,))


def _unsure(record: Record) -> Iterator[Alarm]:
    task = record.evaluations()[-1].task if record.evaluations() else ""
    test = record.paired.get(task)
    if test is not None and test.low <= 0 <= test.high:
        result = record.evaluations()[-1]
        width = test.high - test.low
        text = (
            f"pass@1 changed by {100 * test.difference:+.1f} points [{100 * test.low:+.1f}, {100 * test.high:+.1f}], "
            f"p = {test.p_value:.3f}, on {result.prompts} prompts × {result.samples} attempts"
        )
        yield Alarm(
            severity=Severity.NOTE,
            title="The evaluation cannot tell whether the training helped.",
            evidence=(
                Evidence(
                    metric="held-out pass@1",
                    value=test.difference,
                    threshold=0.0,
                    steps=_steps(record),
                    text=text,
                ),
            ),
            action=f"Half the interval ({100 * width / 2:.1f} points wide) takes four times the held-out prompts; or "
            "train for longer."
            if width > 0
            else "No held-out prompt changed at all: see what the groups say, then train for longer.",
        )


def _sharpened(record: Record) -> Iterator[Alarm]:
    results = record.evaluations()
    if len(results) < 2 or results[-1].k < 2:
        return
    first, last = results[0], results[-1]
    gained = last.pass_at_1.low > first.pass_at_1.high
    fell = last.pass_at_k.value < first.pass_at_k.value
    if gained and fell:
        lost = last.pass_at_k.value - first.pass_at_k.value
        sure = last.pass_at_k.high < first.pass_at_k.low
        text = (
            f"pass@1 {100 * first.pass_at_1.value:.1f} → {100 * last.pass_at_1.value:.1f} %, pass@{last.k} "
            f"{100 * first.pass_at_k.value:.1f} → {100 * last.pass_at_k.value:.1f} %"
        )
        yield Alarm(
            severity=Severity.WARNING if sure else Severity.NOTE,
            title=f"One attempt got better, {last.k} attempts together did not: the model got surer, not abler.",
            evidence=(
                Evidence(
                    metric=f"held-out pass@{last.k}",
                    value=lost,
                    threshold=0.0,
                    steps=(first.step, last.step),
                    text=text,
                ),
            ),
        )


RULES = (
    Rule(
        name="heldout_lost",
        asks="Is no held-out task worse than before?",
        alarm="the 95 % interval of the paired difference in pass@1, last minus first evaluation, lies below 0, for "
        "any task",
        source=INTERVALS,
        meaning="The model unlearned something that it could do.",
        action="Take an earlier checkpoint; train on that task too; lower optim.lr or raise objective.kl_beta.",
        evals=2,
        check=_lost,
    ),
    Rule(
        name="heldout_unsure",
        asks="Can the evaluation tell a difference?",
        alarm="the 95 % interval of the paired difference in pooled pass@1 holds 0; a note",
        source=INTERVALS,
        meaning="The difference may be chance; do not report it as a gain or a loss.",
        action="Evaluate on more held-out prompts, or train for longer.",
        evals=2,
        check=_unsure,
    ),
    Rule(
        name="sharpened",
        asks="Did the model get abler, and not only surer?",
        alarm="pass@1 rose beyond both intervals while pass@k fell; a note where the intervals of pass@k overlap",
        source="Yue et al. 2025 (Does reinforcement learning really incentivize reasoning capacity, arXiv 2504.13837)",
        meaning="Prompts that some attempt used to solve are now solved by none.",
        action="Stop earlier; raise objective.clip_high; use more, and harder, prompts.",
        evals=2,
        check=_sharpened,
    ),
)
