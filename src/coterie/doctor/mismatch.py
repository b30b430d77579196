"""Rules about the train-inference mismatch between sampler and learner."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from coterie.doctor.findings import Record, Rule, RuleHit, Severity, beyond

KL = 1e-2  # nats a token; rounding alone gives 1e-4 and less
CUT_SHARE = 0.05
ESS = 0.5
SOURCE = "Yao et al. 2025 (Your efficient RL framework secretly brings you off-policy RL training); a rule of thumb"
MEANING = (
    "Learner and sampler give the sampled tokens different probabilities: kernels, number formats or stale weights "
    "differ, and the update is off-policy unnoticed. This is a common cause of late collapse."
)
ACTION = (
    "Use the same number format on both sides; keep the mismatch correction on; see that the sampler's weights are "
    "those of this step."
)


def _limit_check(
    metric: str, limit: float, title: str, severity: Severity, *, high: bool = True
) -> Callable[[Record], Iterator[RuleHit]]:
    def check(record: Record) -> Iterator[RuleHit]:
        if alarm := beyond(record.series[metric], limit, high=high):
            yield RuleHit(severity=severity, title=title, evidence=(alarm[0],))

    return check


def _cut(record: Record) -> Iterator[RuleHit]:
    for metric, what in (("mismatch/masked", "left out"), ("mismatch/truncated", "weighed less")):
        if metric in record.series and (alarm := beyond(record.series[metric], CUT_SHARE)):
            title = f"More than {100 * CUT_SHARE:g} % of the tokens are {what} because sampler and learner disagree."
            yield RuleHit(severity=Severity.WARNING, title=title, evidence=(alarm[0],))


RULES = (
    Rule(
        name="mismatch_kl",
        asks="Do sampler and learner agree on the probabilities?",
        alarm=f"`mismatch/kl` above {KL:g} for 3 steps in a row",
        source=SOURCE,
        meaning=MEANING,
        action=ACTION,
        needs=("mismatch/kl",),
        check=_limit_check("mismatch/kl", KL, "Sampler and learner disagree about the same tokens.", Severity.SERIOUS),
    ),
    Rule(
        name="mismatch_cut",
        asks="Does the mismatch correction touch few tokens?",
        alarm=f"`mismatch/masked` or `mismatch/truncated` above {CUT_SHARE:g} for 3 steps in a row",
        source=SOURCE,
        meaning=MEANING,
        action=ACTION,
        any_of=("mismatch/masked", "mismatch/truncated"),
        check=_cut,
    ),
    Rule(
        name="mismatch_ess",
        asks="Do the importance weights of tokens stay even?",
        alarm=f"`mismatch/ess` below {ESS:g} for 3 steps in a row",
        source=SOURCE,
        meaning="The effective sample size: below a half, a few tokens carry the whole update.",
        action=ACTION,
        needs=("mismatch/ess",),
        check=_limit_check(
            "mismatch/ess", ESS, "A few tokens carry most of the importance weight.", Severity.WARNING, high=False
        ),
    ),
    Rule(
        name="mismatch_ess_sequence",
        asks="Do the importance weights of whole rollouts stay even?",
        alarm=f"`mismatch/ess_sequence` below {ESS:g} for 3 steps in a row",
        source=SOURCE,
        meaning="Small differences multiply along a rollout; below a half, a few rollouts carry the update.",
        action=ACTION,
        needs=("mismatch/ess_sequence",),
        check=_limit_check(
            "mismatch/ess_sequence",
            ESS,
            "A few rollouts carry most of the importance weight.",
            Severity.WARNING,
            high=False,
        ),
    ),
)
