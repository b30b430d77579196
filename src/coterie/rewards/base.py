"""What a reward function is, and the check of what it returns."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

Values = Sequence[float | None]

LIMIT = 1e12
"""Largest magnitude of a reward. Beyond it the spread of a group drowns in rounding: always a bug, never a signal."""

EXPECTED = "expected a finite number, or None where the reward does not apply"


class Reward(Protocol):
    """Judges a list of completions; sync or async. The signature is TRL's.

    Called with keyword arguments only, and only with those that its parameters name (all of them under `**columns`):

    - `prompts`: list of n message lists, `[[{"role": …, "content": …}, …], …]`.
    - `completions`: list of n strings, the decoded text of the model. TRL gives message lists here for
      conversational prompts; a function written for those reads `completion[0]["content"]` and must read
      `completion` instead.
    - `answer`, `task`: lists of n gold answers (None where there is none) and task names.
    - every attribute of the prompts: a list of n values, None where a row lacks it.
    - the `params` of the configuration: as they stand, for all rows.

    Returns a list (or tuple) of exactly n values: a finite number, True or False (1 or 0), or None = not applicable to
    this row. Anything else is an error of the function, never a reward. It may be called with any part of a batch, with
    a single row, and twice with the same row, and it is started afresh after a time-out: it must not count on state.
    """

    def __call__(
        self, prompts: list[list[dict[str, str]]], completions: list[str], **columns: Any
    ) -> Values | Awaitable[Values]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the scorer says of one completion."""

    reward: float | None
    """Weighted sum of the parts that apply; None when there is an error."""
    parts: Mapping[str, float | None]
    """Unweighted value of each part by its label; None = not applicable, or failed."""
    error: str | None
    """Function, row and cause of each part that failed; None when all is well."""


class ContractError(Exception):
    """A reward function returned something that says nothing about any row."""


def check_values(returned: object, rows: int) -> tuple[list[float | None], dict[int, str]]:
    """Hold what a reward function returned against the contract.

    Returns:
        One value per row, and for each row whose value is unusable the cause.

    Raises:
        ContractError: it is no list, or not one value per row.
    """
    if not isinstance(returned, list | tuple):
        remedy = "call .tolist() on it" if hasattr(returned, "tolist") else "return one value per completion"
        raise ContractError(f"returned {_named(returned)}; expected a list of {rows} values: {remedy}")
    if len(returned) != rows:
        raise ContractError(
            f"returned {len(returned)} values for {rows} completions; expected exactly one each: "
            "return None for a row that it cannot judge"
        )
    values: list[float | None] = []
    bad: dict[int, str] = {}
    for row, value in enumerate(returned):
        cause = _fault(value)
        if cause is not None:
            bad[row] = cause
        # Adding zero turns -0.0 into 0.0, so that equal rewards have equal bits.
        values.append(None if value is None or cause else float(value) + 0.0)
    return values, bad


def _fault(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Real):
        remedy = "call .item() on it" if hasattr(value, "item") else "convert it with float(…)"
        return f"returned {_named(value)}; {EXPECTED}: {remedy}"
    try:
        size = float(value)
    except (OverflowError, ValueError):
        size = math.inf
    if not math.isfinite(size):
        return f"returned {size}; {EXPECTED}: check for division by zero and overflow"
    if abs(size) > LIMIT:
        return f"returned {size:g}, beyond ±{LIMIT:g}; {EXPECTED}: scale it down"
    return None


def _named(value: object) -> str:
    if value is None:
        return "None"
    try:
        text = repr(value)
    except Exception:
        text = "…"
    return f"{text[:80]}{'…' if len(text) > 80 else ''} (a {type(value).__name__})"
