"""Rules about the lengths of completions."""

from __future__ import annotations

from collections.abc import Iterator

from coterie.doctor.findings import Record, Rule, RuleHit, Severity, beyond, level
from coterie.doctor.series import WINDOW, change

TRUNCATED = 0.05
TRUNCATED_SERIOUS = 0.5
ALL = 0.999
WRONG_GROWTH = 1.25
DRIFT = 2.0
HEURISTIC = "a rule of thumb of practitioners"


def _truncated(record: Record) -> Iterator[RuleHit]:
    cut = record.series["truncated"]
    alarm = beyond(cut, TRUNCATED)
    if not alarm or cut.now() <= TRUNCATED:
        return
    limit = record.setting("sampling.max_tokens")
    ended = record.series.get("length/terminated")
    facts = ""
    if ended is not None and len(ended):
        facts = f" Completions that end by themselves take {ended.now():.0f} tokens on average."
    elif cut.now() > ALL:
        facts = " No completion ends by itself: does the model know its end token, and does the prompt ask for an end?"
    set_to = f"sampling.max_tokens from {limit} to about {int(limit) * 2}" if limit else "sampling.max_tokens"
    yield RuleHit(
        severity=Severity.SERIOUS if cut.now() > TRUNCATED_SERIOUS else Severity.WARNING,
        title=f"{100 * cut.now():.0f} % of the completions are cut by the token limit.",
        evidence=(alarm[0],),
        action=f"Raise {set_to}, or reward shorter completions (the `length` reward with `maximum`).{facts}",
    )


def _wrong_longer(record: Record) -> Iterator[RuleHit]:
    wrong, correct = record.series["length/wrong"], record.series["length/correct"]
    wrong_change, correct_change = change(wrong.values), change(correct.values)
    grown, kept = wrong_change.last / max(wrong_change.first, 1.0), correct_change.last / max(correct_change.first, 1.0)
    if wrong_change.clear() and grown > WRONG_GROWTH * max(kept, 1.0):
        texts = [
            f"{series.name} went from {moved.first:.0f} to {moved.last:.0f} tokens"
            for series, moved in ((wrong, wrong_change), (correct, correct_change))
        ]
        yield RuleHit(
            severity=Severity.WARNING,
            title="Wrong completions grow faster than correct ones.",
            evidence=(
                level(wrong, WRONG_GROWTH, grown, texts[0]),
                level(correct, None, kept, texts[1]),
            ),
        )


def _drift(record: Record) -> Iterator[RuleHit]:
    length, reward = record.series["length/mean"], record.series["reward/mean"]
    moved, earned = change(length.values), change(reward.values)
    factor = moved.last / max(moved.first, 1e-9)
    if moved.clear() and (factor > DRIFT or factor < 1 / DRIFT) and not (earned.difference > 0 and earned.clear()):
        yield RuleHit(
            severity=Severity.WARNING,
            title=f"Completions became {factor:.1f} times as long, and earn no more.",
            evidence=(
                level(length, DRIFT, factor, f"length/mean went from {moved.first:.0f} to {moved.last:.0f} tokens"),
                level(reward, None, earned.last, f"reward/mean from {earned.first:.3g} to {earned.last:.3g}"),
            ),
        )


RULES = (
    Rule(
        name="truncated",
        asks="Do completions end by themselves?",
        alarm=f"`truncated` above {TRUNCATED:g} for 3 steps in a row and on average over the last {WINDOW}; serious "
        f"above {TRUNCATED_SERIOUS:g}",
        source=HEURISTIC,
        meaning="A completion that is cut is judged without its end, so being long is punished at random.",
        action="Raise sampling.max_tokens, or reward shorter completions.",
        needs=("truncated",),
        check=_truncated,
    ),
    Rule(
        name="wrong_longer",
        asks="Do wrong completions stay as short as correct ones?",
        alarm=f"`length/wrong` grew {WRONG_GROWTH:g} times as much as `length/correct`, by more than 2 standard errors",
        source="Liu et al. 2025 (Dr. GRPO, arXiv 2503.20783, section 3.1)",
        meaning='The length bias of objective.loss_agg_mode = "seq-mean-token-mean": a wrong token of a long '
        "completion weighs less, "
        "so wrong completions grow.",
        action='Set objective.loss_agg_mode = "token-mean".',
        needs=("length/wrong", "length/correct"),
        steps=10,
        check=_wrong_longer,
    ),
    Rule(
        name="length_drift",
        asks="Does length change only when the reward rises?",
        alarm=f"`length/mean` changed by a factor of {DRIFT:g} or more while `reward/mean` did not rise by 2 standard "
        "errors",
        source=HEURISTIC,
        meaning="Length drifts under a reward that does not care; it often precedes repetition.",
        action="Read rollouts of the first and the last step; add a `length` part or some objective.kl_beta.",
        needs=("length/mean", "reward/mean"),
        steps=10,
        check=_drift,
    ),
)
