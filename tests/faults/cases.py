"""One tried fault and its verdict: a row of the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the harness loads torch
    from faults.harness import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fault that was tried."""

    section: str
    name: str
    problem: str | None
    """None: as it must be. A case that could not be tried has a problem too: nothing is skipped in silence."""
    facts: dict[str, Any] = field(default_factory=dict)


def of_trial(section: str, trial: Trial, problem: str | None = None) -> Case:
    """The verdict on a trial: no divergence, no orphan."""
    left = f"{trial.orphans} processes outlived their run" if trial.orphans else None
    facts = {
        "deaths": trial.deaths,
        "refusals": trial.refusals,
        "recovery": [round(value, 3) for value in trial.recovery],
        "lost": trial.lost,
    }
    return Case(section=section, name=trial.name, problem=trial.divergence or problem or left, facts=facts)
