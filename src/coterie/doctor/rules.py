"""Table of all rules, and their evaluation on a record."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.doctor import exploration, forgetting, groups, hacking, lengths, mismatch, optimisation, throughput
from coterie.doctor.findings import Finding, Record, Rule, Severity

FAMILIES: dict[str, tuple[Rule, ...]] = {
    "optimisation": optimisation.RULES,
    "exploration": exploration.RULES,
    "mismatch": mismatch.RULES,
    "groups": groups.RULES,
    "lengths": lengths.RULES,
    "reward hacking": hacking.RULES,
    "forgetting": forgetting.RULES,
    "throughput": throughput.RULES,
}
RULES: tuple[Rule, ...] = tuple(rule for rules in FAMILIES.values() for rule in rules)
OF_REWARDS = frozenset({"zero_variance", "effective_groups", "reward_unmoved", "advantage_max"})
"""Rules that say nothing about a distillation in which rewards have no weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedRule:
    """A rule that the record lacks metrics for."""

    rule: str
    asks: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """Findings of all rules for one record."""

    findings: tuple[Finding, ...]
    """The most severe first, then in the order of the table."""
    quiet: tuple[str, ...]
    """Rules that were checked without an alarm."""
    unjudged: tuple[SkippedRule, ...]

    @property
    def serious(self) -> bool:
        return any(finding.severity is Severity.SERIOUS for finding in self.findings)


def examine(record: Record) -> Examination:
    """Check every rule whose metrics are there."""
    findings: list[Finding] = []
    quiet: list[str] = []
    unjudged: list[SkippedRule] = []
    for rule in RULES:
        if reason := missing(rule, record):
            unjudged.append(SkippedRule(rule=rule.name, asks=rule.asks, reason=reason))
            continue
        hits = [
            Finding(
                rule=rule.name,
                severity=alarm.severity,
                title=alarm.title,
                evidence=alarm.evidence,
                meaning=rule.meaning,
                action=alarm.action or rule.action,
            )
            for alarm in rule.check(record)
        ]
        findings += hits
        if not hits:
            quiet.append(rule.name)
    findings.sort(key=lambda finding: finding.severity.rank)
    return Examination(findings=tuple(findings), quiet=tuple(quiet), unjudged=tuple(unjudged))


def missing(rule: Rule, record: Record) -> str:
    """Reason to skip a rule, e.g. a missing metric; empty when it can be checked."""
    if rule.name in OF_REWARDS and record.setting("distill") and not record.setting("distill.reward_weight", 0):
        return "a teacher alone gives the advantages"
    for name in rule.needs:
        if name not in record.series:
            return f"{name} was not recorded"
        have = len(record.series[name])
        if have < rule.steps:
            return f"needs {rule.steps} steps with {name}, there {'is' if have == 1 else 'are'} {have}"
    if rule.any_of and not any(name in record.series for name in rule.any_of):
        return f"none of {', '.join(rule.any_of)} was recorded"
    evaluations = len({result.step for result in record.evals})
    if evaluations < rule.evals:
        return f"needs {rule.evals} held-out evaluations, there {'is' if evaluations == 1 else 'are'} {evaluations}"
    return ""
