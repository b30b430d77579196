"""Rules about entropy: exploration and divergence."""

from __future__ import annotations

from collections.abc import Iterator

from coterie.doctor.findings import Record, Rule, RuleHit, Severity, level
from coterie.doctor.series import change

HEURISTIC = "a rule of thumb of practitioners; tune it on your own runs"
ENTROPY_LOW = 0.1  # nats a token
ENTROPY_FALL = 10.0
ENTROPY_RISE = 1.5
SOLVED = 0.8


def _entropy_low(record: Record) -> Iterator[RuleHit]:
    entropy = record.series["entropy"]
    start, now = entropy.start(5), entropy.now(5)
    fell = start / max(now, 1e-12) >= ENTROPY_FALL
    low = now < ENTROPY_LOW
    if not (low or fell):
        return
    solved = record.correctness("groups/all_correct")
    done = solved is not None and solved.now() > SOLVED
    text = f"entropy was {start:.3g} nats in the first 5 steps and is {now:.3g} in the last 5"
    proof = level(entropy, ENTROPY_LOW, now, text)
    if done:
        title = "Entropy is low because the task is solved: nearly every group is right in every attempt."
        yield RuleHit(
            severity=Severity.NOTE,
            title=title,
            evidence=(proof,),
            action="Stop here, or go on with harder prompts.",
        )
    elif fell and _reward_rose(record):
        yield RuleHit(
            severity=Severity.WARNING,
            title="Entropy is used up: the reward rose while it fell, and little more can come from here.",
            evidence=(proof,),
            action="Stop here, or start again with a lower optim.lr, a higher objective.clip_high or harder prompts to "
            "get further.",
        )
    elif fell:
        title = f"Entropy collapsed: it is {start / max(now, 1e-12):.0f} times smaller than at the start."
        yield RuleHit(severity=Severity.SERIOUS, title=title, evidence=(proof,))
    else:
        title = "Entropy is low: the attempts at a prompt hardly differ, so there is little to learn from."
        yield RuleHit(severity=Severity.WARNING, title=title, evidence=(proof,))


def _reward_rose(record: Record) -> bool:
    reward = record.series.get("reward/mean")
    moved = change(reward.values) if reward is not None else None
    return moved is not None and moved.difference > 0 and moved.clear()


def _entropy_rise(record: Record) -> Iterator[RuleHit]:
    entropy, reward = record.series["entropy"], record.series["reward/mean"]
    moved = change(reward.values)
    start, now = entropy.start(), entropy.now()
    if now > ENTROPY_RISE * start and moved.difference < 0 and moved.clear():
        yield RuleHit(
            severity=Severity.SERIOUS,
            title="Entropy rises while the reward falls: the policy is coming apart.",
            evidence=(
                level(entropy, ENTROPY_RISE * start, now, f"entropy went from {start:.3g} to {now:.3g} nats"),
                level(
                    reward,
                    None,
                    moved.last,
                    f"reward/mean went from {moved.first:.3g} to {moved.last:.3g} (± {2 * moved.error:.2g})",
                ),
            ),
        )


RULES = (
    Rule(
        name="entropy_low",
        asks="Does the policy still explore?",
        alarm=f"`entropy` of the last 5 steps below {ENTROPY_LOW:g} nats, or {ENTROPY_FALL:g} times smaller than in "
        f"the first 5 (serious, unless `reward/mean` rose); a note only where `groups/all_correct` is above {SOLVED:g}",
        source=f"Cui et al. 2025 (The entropy mechanism, arXiv 2505.22617); {HEURISTIC}",
        meaning="When all attempts are the same there is nothing to compare, and no way back.",
        action="Resume from before the fall with a lower optim.lr, a higher objective.clip_high, or some "
        "objective.kl_beta.",
        needs=("entropy",),
        steps=10,
        check=_entropy_low,
    ),
    Rule(
        name="entropy_rise",
        asks="Is training free of divergence?",
        alarm=f"`entropy` of the last 10 steps above {ENTROPY_RISE:g} times that of the first 10 while `reward/mean` "
        "fell by more than 2 standard errors",
        source=HEURISTIC,
        meaning="A policy that gets less certain and worse is diverging.",
        action="Stop; go back to an earlier checkpoint with a lower optim.lr; look at the mismatch metrics.",
        needs=("entropy", "reward/mean"),
        steps=20,
        check=_entropy_rise,
    ),
)
