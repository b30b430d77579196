"""Rules about execution: errors, timeouts, a falling speed, stale rollouts."""

from __future__ import annotations

from collections.abc import Iterator

from coterie.doctor.findings import Record, Rule, RuleHit, Severity, breach, level
from coterie.doctor.series import change

ERROR_SHARE = 0.05
SLOWER = 1.5
STALE = 1.0


def _errors(record: Record) -> Iterator[RuleHit]:
    errors = record.series["errors"]
    mask = errors.values > 0
    if mask.any():
        size = record.setting("collect.prompts_per_step", 0) * record.setting("collect.group_size", 0)
        share = float(errors.values.sum() / (size * len(errors))) if size else 0.0
        of = f" ({100 * share:.1f} % of all)" if size else ""
        yield RuleHit(
            severity=Severity.SERIOUS if share > ERROR_SHARE else Severity.WARNING,
            title=f"{errors.values.sum():.0f} rollouts ended in an error{of}; their whole groups were left out.",
            evidence=(breach(errors, mask, 0.0),),
        )


def _late(record: Record) -> Iterator[RuleHit]:
    late = record.series["late"]
    mask = late.values > 0
    if mask.any():
        yield RuleHit(
            severity=Severity.WARNING,
            title="Completions were cut by the wall clock: this run will not repeat on another machine.",
            evidence=(breach(late, mask, 0.0),),
        )


def _slower(record: Record) -> Iterator[RuleHit]:
    speed = record.series["speed/generate"]
    moved = change(speed.values)
    if moved.first > SLOWER * moved.last and moved.clear():
        yield RuleHit(
            severity=Severity.NOTE,
            title=f"Sampling is {moved.first / moved.last:.1f} times slower than at the start.",
            evidence=(
                level(
                    speed,
                    moved.first / SLOWER,
                    moved.last,
                    f"speed/generate went from {moved.first:.0f} to {moved.last:.0f} tokens a second",
                ),
            ),
        )


def _stale(record: Record) -> Iterator[RuleHit]:
    lag = record.series["staleness/max"]
    mask = lag.values > STALE
    if mask.any():
        yield RuleHit(
            severity=Severity.WARNING,
            title="Rollouts of old policies are trained on.",
            evidence=(breach(lag, mask, STALE),),
        )


RULES = (
    Rule(
        name="errors",
        asks="Were all rollouts usable?",
        alarm=f"`errors` above 0; serious above {ERROR_SHARE:g} of all rollouts",
        source="by definition",
        meaning="Errors are seldom random: they strike long rollouts and certain tasks, and bias what is learned.",
        action="Read the `error` column of the rollouts; mend the reward function or raise its deadline.",
        needs=("errors",),
        steps=1,
        check=_errors,
    ),
    Rule(
        name="late",
        asks="Did all rollouts end before the timeout?",
        alarm="`late` above 0",
        source="by definition",
        meaning="Which completions are cut then depends on the speed of the machine.",
        action="Raise sampling.timeout_s.",
        needs=("late",),
        steps=1,
        check=_late,
    ),
    Rule(
        name="slower",
        asks="Is the sampling speed steady?",
        alarm=f"`speed/generate` of the last quarter less than 1/{SLOWER:g} of the first; a note",
        source="a rule of thumb",
        meaning="Shorter completions fill the machine less; or something else runs on it.",
        action="See whether lengths changed, and what else the machine does.",
        needs=("speed/generate",),
        steps=10,
        check=_slower,
    ),
    Rule(
        name="stale",
        asks="Do rollouts come from the current policy?",
        alarm=f"`staleness/max` above {STALE:g} versions",
        source="a rule of thumb",
        meaning="The older the policy that sampled, the less its rollouts say about this one.",
        action="Lower engine.lag.",
        needs=("staleness/max",),
        steps=1,
        check=_stale,
    ),
)
