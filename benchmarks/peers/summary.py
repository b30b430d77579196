"""From the rounds of a case to medians, spreads and ratios. A ratio is taken within a round, then summarised."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A few measurements of the same thing."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One measured quantity of one case."""

    what: str
    unit: str
    sides: dict[str, Spread]
    """Side → its values over the rounds."""
    better: dict[str, Spread]
    """Peer → how many times better coterie did: faster, or with less memory."""


def spread(values: Sequence[float]) -> Spread:
    """Median and range.

    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, low=1.0, high=3.0)
    """
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def ratios(top: Sequence[float], bottom: Sequence[float]) -> Spread:
    """Round by round, then summarised.

    >>> ratios([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])
    Spread(median=2.0, low=2.0, high=3.0)
    """
    return spread([a / b for a, b in zip(top, bottom, strict=True)])


def lines(result: dict[str, Any]) -> list[Line]:
    """Every quantity of one case's result (see `measure`)."""
    rounds = result["rounds"]
    if not rounds:
        return []
    quantities = [
        _line("generation", "tok/s", _column(rounds, _generation_rate), more_is_better=True),
        _line("update, same rollouts", "s", _column(rounds, _update_seconds)),
        _line("update, same rollouts", "tok/s", _column(rounds, _update_rate), more_is_better=True),
        _line("whole step", "s", _column(rounds, lambda answers, side: answers[side].get("step_s"))),
    ]
    peaks = {side: [peak / 1e9] for side, peak in result.get("peak", {}).items() if side != "vllm"}
    return [*quantities, *([_line("peak memory", "GB", peaks)] if peaks else [])]


def _generation_rate(answers: dict[str, Any], side: str) -> float:
    """Real completion tokens per second, the end token included, padding not."""
    return answers[side]["tokens"] / answers[side]["generate_s"]


def _update_of(answers: dict[str, Any], side: str) -> dict[str, Any]:
    """coterie's own update inside its step is on its own rollouts; the comparable one is beside it."""
    return answers["coterie_update"] if side == "coterie" else answers[side]


def _update_seconds(answers: dict[str, Any], side: str) -> float | None:
    return _update_of(answers, side).get("update_s")


def _update_rate(answers: dict[str, Any], side: str) -> float | None:
    update = _update_of(answers, side)
    return update["update_tokens"] / update["update_s"] if "update_s" in update else None


def _column(rounds: Sequence[dict[str, Any]], value: Any) -> dict[str, list[float]]:
    """Side → one value a round; a side without the quantity is left out."""
    table = {
        side: [value(answers, side) for answers in rounds] for side in ("coterie", "trl", "vllm") if side in rounds[0]
    }
    return {side: values for side, values in table.items() if None not in values}


def _line(what: str, unit: str, table: dict[str, list[float]], *, more_is_better: bool = False) -> Line:
    ours = table["coterie"]
    better = {
        side: ratios(ours, theirs) if more_is_better else ratios(theirs, ours)
        for side, theirs in table.items()
        if side != "coterie"
    }
    return Line(what=what, unit=unit, sides={side: spread(values) for side, values in table.items()}, better=better)


def circumstances(result: dict[str, Any]) -> dict[str, Any]:
    """What the numbers depend on: completion lengths of each side, the share of groups without variance, and the share
    of tokens that coterie trained."""
    rounds = result["rounds"]
    lengths = {
        side: [length for answers in rounds for length in answers[side]["lengths"]]
        for side in ("coterie", "trl", "vllm")
        if side in rounds[0]
    }
    trained = sum(answers["coterie_update"]["trained_tokens"] for answers in rounds)
    return {
        "lengths": {
            side: {"mean": statistics.fmean(counts), "min": min(counts), "max": max(counts)}
            for side, counts in lengths.items()
        },
        "zero_variance": statistics.fmean(answers["coterie"]["zero_variance"] for answers in rounds),
        "trained": trained / sum(answers["coterie_update"]["update_tokens"] for answers in rounds),
    }
