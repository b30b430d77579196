"""The source's own scorer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from coterie.data import tasks
from coterie.data.numerals import gold_number
from coterie.errors import DataError
from coterie.rewards.number import number
from coterie.rewards.text import exact


def task(
    completions: Sequence[str],
    answer: Sequence[str | None],
    reasoning_gym: Sequence[Any] | None = None,
) -> list[float | None]:
    """The score of a reasoning-gym item's own scorer; for the rows of other sources `number` or `exact`.

    `number` judges where the gold answer is a number, `exact` (without case) where it is other text; None without one.

    Raises:
        DataError: reasoning-gym is missing, or its scorer failed.
    """
    if reasoning_gym is None:
        reasoning_gym = [None] * len(completions)
    return [
        tasks.score({tasks.ATTRIBUTE: record}, completion) if tasks.is_item(record) else _general(completion, gold)
        for completion, gold, record in zip(completions, answer, reasoning_gym, strict=True)
    ]


def prepare(columns: Sequence[str]) -> None:
    """Import reasoning-gym (seconds on a busy machine) before the first deadline starts to run."""
    if tasks.ATTRIBUTE in columns:
        with suppress(DataError):  # a column of the data may have the same name where reasoning-gym is not installed
            tasks.names()


def _general(completion: str, gold: str | None) -> float | None:
    if gold is not None and gold_number(gold) is None:
        return exact([completion], [gold], casefold=True)[0]
    return number([completion], [gold])[0]
