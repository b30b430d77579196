"""Rules about groups and rewards: zero variance, few effective groups, a reward that does not rise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from coterie.doctor.findings import Evidence, Record, Rule, RuleHit, Severity, beyond, level
from coterie.doctor.series import WINDOW, Series, change

ZERO_VARIANCE = 0.6
DEAD = 0.95
SOLVED = 0.8
EFFECTIVE = 2.0
UNMOVED_STEPS = 20
ROUNDING = 1e-9  # of a mean of equal values
HEURISTIC = "a rule of thumb of practitioners"


def _ends(record: Record) -> list[Evidence]:
    """Shares of the groups that are all right and all wrong."""
    evidence = []
    for name, words in (("groups/all_correct", "all right"), ("groups/all_wrong", "all wrong")):
        series = record.correctness(name)
        if series is not None:
            now = series.now()
            evidence.append(level(series, None, now, f"{100 * now:.0f} % of the groups are now {words}"))
    return evidence


def _easier_or_harder(record: Record) -> str:
    solved, none = record.correctness("groups/all_correct"), record.correctness("groups/all_wrong")
    if (solved is None or none is None) and "groups/mixed" in record.series:
        return "Make the reward finer, so that better attempts earn more, or raise collect.group_size."
    if solved is None or none is None:
        return ""
    if solved.now() > none.now():
        return "Most of them are all right: take harder prompts, or a longer chain of them."
    return (
        "Most of them are all wrong: take easier prompts, show the layout of the answer in the prompt, raise "
        "collect.group_size, or reward parts of the way."
    )


CAUSES = ("grad_norm", "reward/min", "reward/max", "dynamic_sampling/missing", "groups/effective")
"""Metrics that `zero_gradient` reads."""


def zero_gradient(series: Mapping[str, Series]) -> str:
    """Number of steps with a gradient of exactly zero, and the cause: `zero in 2 of 2 steps: …`; empty when none."""
    norms = series.get("grad_norm")
    if norms is None or not len(norms) or norms.values.all():
        return ""
    steps = norms.steps[norms.values == 0]
    count = "1 step" if len(norms) == 1 else f"{len(norms)} steps"
    return f"zero in {len(steps)} of {count}: {_cause(series, steps)}"


def _cause(series: Mapping[str, Series], steps: NDArray[np.int64]) -> str:
    def values(name: str) -> NDArray[np.float64]:
        return series[name].values[np.isin(series[name].steps, steps)] if name in series else np.empty(0)

    low, high, missing = values("reward/min"), values("reward/max"), values("dynamic_sampling/missing")
    if len(low) == len(high) == len(steps) and low.min() == high.max():
        return f"the reward was {low.min():g} for every rollout"
    if len(missing) == len(steps) and missing.all():
        return "collect.dynamic_sampling found no group whose attempts differ in the evaluated reward (eval.reward)"
    effective = values("groups/effective")
    if len(effective) == len(steps) and not effective.any():
        return "in every group all attempts had the same reward"
    return "every advantage was zero"


def _no_gradient(record: Record) -> Iterator[RuleHit]:
    norms = record.series["grad_norm"]
    if norms.values.any():
        return
    yield RuleHit(
        severity=Severity.SERIOUS,
        title="Nothing was trained: the gradient was zero in every step.",
        evidence=(level(norms, 0.0, 0.0, f"grad_norm is {zero_gradient(record.series)}"), *_ends(record)),
        action=_easier_or_harder(record),
    )


def _zero_variance(record: Record) -> Iterator[RuleHit]:
    if alarm := beyond(record.series["groups/zero_variance"], ZERO_VARIANCE, steps=WINDOW):
        now = record.series["groups/zero_variance"].now()
        solved = record.correctness("groups/all_correct")
        if solved is not None and solved.now() > SOLVED:
            yield RuleHit(
                severity=Severity.NOTE,
                title="There is little left to learn: nearly every group is right in every attempt.",
                evidence=(alarm[0], *_ends(record)),
                action="Stop here, or go on with harder prompts.",
            )
            return
        yield RuleHit(
            severity=Severity.SERIOUS if now > DEAD - ROUNDING else Severity.WARNING,
            title="Most groups teach nothing: all attempts at a prompt earn the same."
            if now <= DEAD - ROUNDING
            else "Nothing is learned: in practically every group all attempts earn the same.",
            evidence=(alarm[0], *_ends(record)),
            action=_easier_or_harder(record),
        )


def _effective(record: Record) -> Iterator[RuleHit]:
    effective = record.series["groups/effective"]
    if effective.now() < EFFECTIVE <= record.setting("collect.prompts_per_step", EFFECTIVE):
        text = f"{effective.now():.2g} groups a step had rewards that differ (mean of the last {WINDOW} steps)"
        dropped = record.series.get("dynamic_sampling/dropped")
        if dropped is not None:
            text = (
                f"{effective.now():.2g} groups a step were trained on (mean of the last {WINDOW} steps); "
                f"collect.dynamic_sampling dropped {dropped.now():.2g}, in which all attempts had the same "
                f"{record.accuracy_part!r}"
            )
        yield RuleHit(
            severity=Severity.WARNING,
            title="The gradient of a step rests on one or two prompts.",
            evidence=(level(effective, EFFECTIVE, effective.now(), text),),
        )


def _unmoved(record: Record) -> Iterator[RuleHit]:
    reward = record.series["reward/mean"]
    moved = change(reward.values)
    if moved.clear():
        return
    solved = record.correctness("groups/all_correct")
    if solved is not None and solved.start() > DEAD:
        return  # there was nothing to gain
    flat = bool(reward.values.max() - reward.values.min() < 1e-8)
    text = (
        f"reward/mean is {moved.first:.4g} in the first and {moved.last:.4g} in the last quarter "
        f"(± {2 * moved.error:.2g} for the difference)"
    )
    yield RuleHit(
        severity=Severity.SERIOUS if flat else Severity.WARNING,
        title="The reward never moved at all." if flat else "The reward has not moved by more than its noise.",
        evidence=(level(reward, None, moved.last, text), *_ends(record)),
        action=_easier_or_harder(record) if flat else "",
    )


def _fell(record: Record) -> Iterator[RuleHit]:
    reward = record.series["reward/mean"]
    moved = change(reward.values)
    if moved.difference < 0 and moved.clear(3):
        text = f"reward/mean went from {moved.first:.4g} to {moved.last:.4g} (± {2 * moved.error:.2g})"
        yield RuleHit(
            severity=Severity.SERIOUS,
            title="The reward is lower at the end than at the start.",
            evidence=(level(reward, None, moved.last, text),),
        )


RULES = (
    Rule(
        name="no_gradient",
        asks="Is anything trained?",
        alarm="`grad_norm` exactly 0 in every step",
        source="by definition",
        meaning="The weights are those of the start; every result is that of the untrained model.",
        action="Read rollouts with their rewards: a reward has to differ between attempts at the same prompt.",
        needs=("grad_norm",),
        steps=1,
        check=_no_gradient,
    ),
    Rule(
        name="zero_variance",
        asks="Do rewards differ within most groups?",
        alarm=f"`groups/zero_variance` above {ZERO_VARIANCE:g} for {WINDOW} steps in a row; serious when it is now "
        f"{DEAD:g} or more, a note where `groups/all_correct` is now above {SOLVED:g}",
        source=HEURISTIC,
        meaning="Attempts that all earn the same have no advantage over each other; their rollouts are paid for and "
        "teach nothing.",
        action="Choose prompts that the model solves sometimes, or make the reward finer.",
        needs=("groups/zero_variance",),
        steps=WINDOW,
        check=_zero_variance,
    ),
    Rule(
        name="effective_groups",
        asks="Does each step rest on several prompts?",
        alarm=f"`groups/effective` below {EFFECTIVE:g} on average over the last {WINDOW} steps",
        source=HEURISTIC,
        meaning="Few prompts mean a noisy gradient.",
        action="Raise collect.prompts_per_step, or choose prompts that the model solves sometimes.",
        needs=("groups/effective",),
        steps=WINDOW,
        check=_effective,
    ),
    Rule(
        name="reward_unmoved",
        asks="Did the reward move?",
        alarm=f"`reward/mean` of the last quarter within 2 standard errors of that of the first, after "
        f"{UNMOVED_STEPS} steps; serious when all steps are equal",
        source="a two-sample comparison; steps are taken as independent",
        meaning="Either there is nothing to learn from, or the steps are too small, or the run too short.",
        action="Look at the groups first; then raise optim.lr by a factor of 3, or train for longer.",
        needs=("reward/mean",),
        steps=UNMOVED_STEPS,
        check=_unmoved,
    ),
    Rule(
        name="reward_fell",
        asks="Is the reward no lower than at the start?",
        alarm="`reward/mean` of the last quarter below that of the first by more than 3 standard errors",
        source="a two-sample comparison; steps are taken as independent",
        meaning="Training makes the model worse at what it is paid for.",
        action="Go back to the best checkpoint; lower optim.lr; see what else the doctor names.",
        needs=("reward/mean",),
        steps=10,
        check=_fell,
    ),
)
