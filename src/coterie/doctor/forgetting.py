"""Rules about held-out results: gains, losses and their uncertainty."""

from __future__ import annotations

from collections.abc import Iterator

from coterie.doctor.findings import Evidence, Record, Rule, RuleHit, Severity
from coterie.stats import PairedTest
from coterie.text import difference_text, p_text
from coterie.types import PASS, POOLED

INTERVALS = "95 % bootstrap intervals over prompts, paired by prompt"


def _steps(record: Record) -> tuple[int, int]:
    return record.evals[0].step, record.evals[-1].step


def noun(metric: str) -> str:
    """Name of a held-out metric inside a sentence."""
    return "accuracy" if metric == PASS else "reward"


def _width(metric: str, width: float) -> str:
    return f"{100 * width:.1f} points" if metric == PASS else f"{width:.3f}"


def _lost(record: Record) -> Iterator[RuleHit]:
    for task, test in record.paired.items():
        if test.high < 0:
            text = f"{test.metric} of {task}: {difference_text(test.metric, test)}, {p_text(test, label='p = ')}"
            proof = Evidence(
                metric=f"held-out {task} {test.metric}",
                value=test.difference,
                threshold=0.0,
                steps=_steps(record),
                text=text,
            )
            title = f"Held-out {noun(test.metric)} of {task} is lower than before the training."
            if not test.significant:
                title = f"Held-out {noun(test.metric)} of {task} may be lower than before the training."
            severity = Severity.SERIOUS if test.significant else Severity.WARNING
            yield RuleHit(severity=severity, title=title, evidence=(proof,))


def _tasks_apart(record: Record) -> Iterator[RuleHit]:
    pooled = record.paired.get(POOLED)
    if pooled is None or pooled.low <= 0:
        return
    for task, test in record.paired.items():
        lost = test.high < 0
        fall = None if lost else _fall_from_best(record, task)
        if task == POOLED or (test.high > 0 and fall is None):
            continue
        yield RuleHit(
            severity=Severity.SERIOUS if lost and test.significant else Severity.WARNING,
            title=f"Held-out {noun(test.metric)} of {task} {'falls' if lost or fall else 'does not move'} while that "
            "of all tasks together rises.",
            evidence=(fall or _proof(record, task, test), _proof(record, POOLED, pooled)),
        )


def _proof(record: Record, task: str, test: PairedTest) -> Evidence:
    return Evidence(
        metric=f"held-out {task} {test.metric}",
        value=test.difference,
        threshold=0.0,
        steps=_steps(record),
        text=f"{test.metric} of {'all tasks' if task == POOLED else task}: {difference_text(test.metric, test)}",
    )


def _fall_from_best(record: Record, task: str) -> Evidence | None:
    """Evidence that the last evaluation lies below the best one, beyond both intervals; None if it does not."""
    metric = record.metric(task)
    results = [result for result in record.evals if result.task == task]
    estimates = [(result.step, estimate) for result in results if (estimate := result.metric(metric)) is not None]
    if not estimates:
        return None
    (best, top), (last, end) = max(estimates, key=lambda pair: pair[1].low), estimates[-1]
    if top.low <= end.high:
        return None
    before, after = _level(metric, top.value), _level(metric, end.value)
    return Evidence(
        metric=f"held-out {task} {metric}",
        value=end.value - top.value,
        threshold=0.0,
        steps=(best, last),
        text=f"{metric} of {task}: {before} at step {best}, {after} at step {last}",
    )


def _level(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if metric == PASS else f"{value:.3f}"


def _unsure(record: Record) -> Iterator[RuleHit]:
    task = record.evaluations()[-1].task if record.evaluations() else ""
    test = record.paired.get(task)
    if test is not None and test.low <= 0 <= test.high:
        result = record.evaluations()[-1]
        width = test.high - test.low
        text = (
            f"{test.metric} changed by {difference_text(test.metric, test)}, {p_text(test, label='p = ')}, "
            f"on {result.prompts} prompts × {result.samples} attempts"
        )
        yield RuleHit(
            severity=Severity.NOTE,
            title="The evaluation cannot tell whether the training helped.",
            evidence=(
                Evidence(
                    metric=f"held-out {test.metric}",
                    value=test.difference,
                    threshold=0.0,
                    steps=_steps(record),
                    text=text,
                ),
            ),
            action=f"Half the interval ({_width(test.metric, width / 2)} wide) takes four times the held-out prompts; "
            "or train for longer."
            if width > 0
            else "No held-out prompt changed at all: see what the groups say, then train for longer.",
        )


def _sharpened(record: Record) -> Iterator[RuleHit]:
    results = record.evaluations()
    if len(results) < 2 or results[-1].k < 2:
        return
    first, last = results[0], results[-1]
    ones, several = (first.pass_at_1, last.pass_at_1), (first.pass_at_k, last.pass_at_k)
    if ones[0] is None or ones[1] is None or several[0] is None or several[1] is None:
        return  # a graded reward has no pass@k
    gained = ones[1].low > ones[0].high
    fell = several[1].value < several[0].value
    if gained and fell:
        lost = several[1].value - several[0].value
        sure = several[1].high < several[0].low
        text = (
            f"pass@1 {100 * ones[0].value:.1f} → {100 * ones[1].value:.1f} %, pass@{last.k} "
            f"{100 * several[0].value:.1f} → {100 * several[1].value:.1f} %"
        )
        yield RuleHit(
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
        alarm="the 95 % interval of the paired difference in pass@1 (in reward where it is graded), last minus first "
        "evaluation, lies below 0, for any task; serious when p < 0.05 on at least 8 prompts, too",
        source=INTERVALS,
        meaning="The model unlearned something that it could do.",
        action="Take an earlier checkpoint; train on that task too; lower optim.lr or raise objective.kl_beta.",
        evals=2,
        check=_lost,
    ),
    Rule(
        name="tasks_apart",
        asks="Do the held-out tasks rise together?",
        alarm="the 95 % interval of the paired difference of all tasks together lies above 0, and that of a task does "
        "not reach above it, or its last evaluation lies below its best one beyond both intervals; serious when the "
        "task's interval lies below 0 and p < 0.05 on at least 8 prompts",
        source=INTERVALS,
        meaning="One kind of prompt is learned at the cost of another, such as refusing everything; the mean hides it.",
        action="Read the rollouts of that task; change the shares of the tasks, or when they begin (`after` of a "
        "source). A task that is only measured and stays at 0 is too hard to tell anything.",
        evals=2,
        check=_tasks_apart,
    ),
    Rule(
        name="heldout_unsure",
        asks="Is the held-out difference significant?",
        alarm="the 95 % interval of the paired difference in pooled pass@1 (in reward where it is graded) holds 0; a "
        "note",
        source=INTERVALS,
        meaning="The difference may be chance; do not report it as a gain or a loss.",
        action="Evaluate on more held-out prompts, or train for longer.",
        evals=2,
        check=_unsure,
    ),
    Rule(
        name="sharpened",
        asks="Did pass@k rise along with pass@1?",
        alarm="pass@1 rose beyond both intervals while pass@k fell; a note where the intervals of pass@k overlap",
        source="Yue et al. 2025 (Does reinforcement learning really incentivize reasoning capacity, arXiv 2504.13837)",
        meaning="Prompts that some attempt used to solve are now solved by none.",
        action="Stop earlier; raise objective.clip_high; use more, and harder, prompts.",
        evals=2,
        check=_sharpened,
    ),
)
