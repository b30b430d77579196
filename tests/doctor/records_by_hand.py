"""Records made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coterie.doctor.findings import Finding, Record
from coterie.doctor.rules import examine
from coterie.doctor.series import Series
from coterie.stats import PairedTest
from coterie.types import EvalResult, Interval


def series(name: str, values: Sequence[float], first: int = 1) -> Series:
    return Series.of(name, enumerate(values, first))


def record(
    metrics: Mapping[str, Sequence[float]],
    *,
    evals: Sequence[EvalResult] = (),
    paired: Mapping[str, PairedTest] | None = None,
    config: dict[str, Any] | None = None,
) -> Record:
    by_name = {name: series(name, values) for name, values in metrics.items()}
    return Record(series=by_name, evals=tuple(evals), paired=paired or {}, config=config or {})


def findings(made: Record) -> dict[str, Finding]:
    """By rule; each speaks at most once here."""
    return {finding.rule: finding for finding in examine(made).findings}


def interval(value: float, half: float = 0.03) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def evaluation(step: int, pass_at_1: float, pass_at_k: float, *, task: str = "legs", half: float = 0.03) -> EvalResult:
    return EvalResult(
        step=step,
        task=task,
        prompts=100,
        samples=4,
        k=4,
        pass_at_1=interval(pass_at_1, half),
        pass_at_k=interval(pass_at_k, half),
        mean_length=20.0,
        truncated=0.0,
    )


def paired_by_hand(difference: float, half: float) -> PairedTest:
    return PairedTest(difference=difference, low=difference - half, high=difference + half, p_value=0.01)
