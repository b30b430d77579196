"""Rules about what there is to learn: groups that differ, a reward that moves."""

from __future__ import annotations

from collections.abc import Iterator

from coterie.diagnosis.findings import Alarm, Evidence, Record, Rule, Severity, beyond, level
from coterie.diagnosis.series import WINDOW, change

ZERO_VARIANCE = 0.6
DEAD = 0.95
SOLVED = 0.8
EFFECTIVE = 2.0
UNMOVED_STEPS = 20
ROUNDING = 1e-9  # of a mean of equal values
HEURISTIC = "a rule of thumb of practitioners"


def _ends(record: Record) -> list[Evidence]:
    """What the useless groups are: all right, or all wrong."""
    found = []
    for name, words in (("groups/solved", "all right"), ("groups/none", "all wrong")):
        if name in record.series:
            now = record.series[name].now()
            found.append(level(record.series[name], None, now, f"{100 * now:.0f} % of the groups are now {words}"))
    return found


def _easier_or_harder(record: Record) -> str:
    solved, none = record.series.get("groups/solved"), record.series.get("groups/none")
    if solved is None or none is None:
        return ""
    if solved.now() > none.now():
        return "Most of them are all right: take harder prompts, or a longer chain of them."
    return (
        "Most of them are all wrong: take easier prompts, show the layout of the answer in the prompt, raise "
        "collect.group_size, or reward parts of the way."
    )


def _zero_variance(record: Record) -> Iterator[Alarm]:
    if found := beyond(record.series["groups/zero_variance"], ZERO_VARIANCE, steps=WINDOW):
        now = record.series["groups/zero_variance"].now()
        solved = record.series.get("groups/solved")
        if solved is not None and solved.now() > SOLVED:
            yield Alarm(
                severity=Severity.NOTE,
                title="There is little left to learn: nearly every group is right in every attempt.",
                evidence=(found[0], *_ends(record)),
                action="Stop here, or go on with harder prompts.",
            )
            return
        yield Alarm(
            severity=Severity.SERIOUS if now > DEAD - ROUNDING else Severity.WARNING,
            title="Most groups teach nothing: all attempts at a prompt earn the same."
            if now <= DEAD - ROUNDING
            else "Nothing is learned: in practically every group all attempts earn the same.",
            evidence=(found[0], *_ends(record)),
            action=_easier_or_harder(record),
        )


def _effective(record: Record) -> Iterator[Alarm]:
    effective = record.series["groups/effective"]
    if effective.now() < EFFECTIVE <= record.setting("collect.prompts", EFFECTIVE):
        text = f"{effective.now():.2g} groups a step had rewards that differ (mean of the last {WINDOW} steps)"
        yield Alarm(
            severity=Severity.WARNING,
            title="The gradient of a step rests on one or two prompts.",
            evidence=(level(effective, EFFECTIVE, effective.now(), text),),
        )


def _unmoved(record: Record) -> Iterator[Alarm]:
    reward = record.series["reward/mean"]
    moved = change(reward.values)
    if moved.clear():
        return
    solved = record.series.get("groups/solved")
    if solved is not None and solved.start() > DEAD:
        return  # there was nothing to gain
    flat = bool(reward.values.max() - reward.values.min() < 1e-8)
    text = (
        f"reward/mean is {moved.first:.4g} in the first and {moved.last:.4g} in the last quarter "
        f"(± {2 * moved.error:.2g} for the difference)"
    )
    yield Alarm(
        severity=Severity.SERIOUS if flat else Severity.WARNING,
        title="The reward never moved at all." if flat else "The reward has not moved by more than its noise.",
        evidence=(level(reward, None, moved.last, text), *_ends(record)),
        action=_easier_or_harder(record) if flat else "",
    )


def _fell(record: Record) -> Iterator[Alarm]:
    reward = record.series["reward/mean"]
    moved = change(reward.values)
    if moved.difference < 0 and moved.clear(3):
        text = f"reward/mean went from {moved.first:.4g} to {moved.last:.4g} (± {2 * moved.error:.2g})"
        yield Alarm(
            severity=Severity.SERIOUS,
            title="The reward is lower at the end than at the start.",
            evidence=(level(reward, None, moved.last, text),),
        )


RULES = (
    Rule(
        name="zero_variance",
        asks="Do most groups teach something?",
        alarm=f"`groups/zero_variance` above {ZERO_VARIANCE:g} for {WINDOW} steps in a row; serious when it is now "
        f"{DEAD:g} or more, a note where `groups/solved` is now above {SOLVED:g}",
        source=HEURISTIC,
        meaning="Attempts that all earn the same have no advantage over each other; their rollouts are paid for and "
        "teach nothing.",
        action="Choose prompts that the model solves sometimes.",
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
        action="Raise collect.prompts, or choose prompts that the model solves sometimes.",
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
