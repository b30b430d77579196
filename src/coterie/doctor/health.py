"""Diagnosis of a run from its records; the run is only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coterie.doctor.findings import Finding, Record, Severity
from coterie.doctor.groups import CAUSES, zero_gradient
from coterie.doctor.rules import SkippedRule, examine
from coterie.doctor.series import Series
from coterie.errors import RunError
from coterie.runs.directory import RunDirectory
from coterie.runs.inspect import COLLAPSE, comparable, compare, ends
from coterie.runs.metrics import MetricsDB
from coterie.text import safe_text

EARLY = 10
"""Steps below which a run is never called healthy: most rules need as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Diagnosis of a run."""

    run: Path
    steps: int
    """Steps that have metrics."""
    verdict: str
    """One sentence."""
    serious: bool
    ended: str
    """Message of the stop rule that ended the run; empty when none did."""
    findings: tuple[Finding, ...]
    """The most severe first."""
    quiet: tuple[str, ...]
    """Rules that were checked without an alarm."""
    unjudged: tuple[SkippedRule, ...]


def diagnose(path: Path, series: Mapping[str, Sequence[tuple[int, float]]] | None = None) -> Diagnosis:
    """Examine a run, also while it trains.

    Args:
        series: all metrics where they were read already, as `MetricsDB.all_series` gives them.
    """
    run = RunDirectory.at(path)
    if not run.metrics.exists():
        raise RunError(f"{run.path} has no metrics yet: there is nothing to diagnose before the first step")
    record, ended = read_record(run, series)
    examination = examine(record)
    steps = max((len(series) for series in record.series.values()), default=0)
    return Diagnosis(
        run=run.path,
        steps=steps,
        verdict=_verdict(examination.findings, len(examination.quiet), steps, bool(ended)),
        serious=examination.serious or bool(ended),
        ended=ended,
        findings=examination.findings,
        quiet=examination.quiet,
        unjudged=examination.unjudged,
    )


def read_record(
    run: RunDirectory, series: Mapping[str, Sequence[tuple[int, float]]] | None = None
) -> tuple[Record, str]:
    """The run's record, and the message of the stop rule that ended it (empty when none did)."""
    with MetricsDB.reader(run.metrics) as database:
        before, after = ends(database)
        collapses = database.events(COLLAPSE)
        record = Record(
            series={name: Series.of(name, points) for name, points in (series or database.all_series()).items()},
            evals=tuple(comparable(database)),
            paired=compare(database, before, database, after) if after else {},
            config=run.read_config(),
        )
    return record, collapses[-1].message if collapses else ""


def untrained(database: MetricsDB) -> str:
    """Message where every step had a gradient of exactly zero, with the cause; else empty."""
    norms = database.series("grad_norm")
    trained = not norms or any(norm for _, norm in norms)
    return "" if trained else f"nothing was trained: the gradient was {gradient_line(database)}"


def gradient_line(database: MetricsDB) -> str:
    """Number of steps with a gradient of exactly zero, and the cause; empty when none had."""
    return zero_gradient({name: Series.of(name, rows) for name in CAUSES if (rows := database.series(name))})


def _verdict(findings: tuple[Finding, ...], quiet: int, steps: int, ended: bool) -> str:
    serious = sum(finding.severity is Severity.SERIOUS for finding in findings)
    warnings = sum(finding.severity is Severity.WARNING for finding in findings)
    passed = f"{_count(quiet, 'check')} passed"
    if ended or serious:
        more = f" and {_count(warnings, 'warning')}" if warnings else ""
        what = f"{_count(serious, 'serious finding')}{more}" if serious else "a stop rule ended it"
        return f"unhealthy: {what} in {_count(steps, 'step')}; {passed}"
    if warnings:
        return f"needs attention: {_count(warnings, 'warning')} in {_count(steps, 'step')}; {passed}"
    if steps < EARLY or not quiet:
        return f"too early to tell after {_count(steps, 'step')}: {passed}, and most need {EARLY} steps or 20"
    return f"healthy after {steps} steps: {passed}, none with more than a note"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def health_lines(path: Path, most: int = 5) -> Iterator[str]:
    """The diagnosis in a few lines of Markdown, for the run's README."""
    diagnosis = diagnose(path)
    for line in _health_lines(diagnosis, most):
        yield safe_text(line).replace("<", "&lt;")


def _health_lines(diagnosis: Diagnosis, most: int) -> Iterator[str]:
    yield f"- {diagnosis.verdict[0].upper()}{diagnosis.verdict[1:]}."
    if diagnosis.ended:
        yield f"- {diagnosis.ended}."
    for finding in diagnosis.findings[:most]:
        yield f"- {finding.severity}: {finding.title} ({finding.evidence[0].text})"
    left = len(diagnosis.findings) - most
    more = f"{_count(left, 'more finding')}, remedies and " if left > 0 else "Remedies and "
    yield f"- {more}skipped checks: `coterie doctor {diagnosis.run.as_posix()}`."
