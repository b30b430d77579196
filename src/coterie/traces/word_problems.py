"""Word problems of reasoning-gym's gsm_symbolic with their own worked answers, and claims of any arithmetic text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from coterie.data import tasks
from coterie.rewards.steps import arithmetic
from coterie.traces.family import Lines, last_number

NAME = "gsm_symbolic"
_BULLET = re.compile(r"^\s*(?:[•\-*]|\d+\.)\s+")


def worked_problems(seed: int) -> Iterator[dict[str, Any]]:
    """Endless rows of `prompt`, `steps` and `answer`.

    A worked answer whose own arithmetic is wrong, or that does not lead to the gold answer, is left out.

    Raises:
        DataError: reasoning-gym is missing.
    """
    block = 0
    while True:
        for item in tasks.items(NAME, {}, size=500, seed=seed * 1000 + block):
            entry = tasks.decode(item.attributes[tasks.ATTRIBUTE]["entry"])
            steps = steps_of(entry["metadata"]["answer_cot"])
            if steps and item.answer is not None and 0.0 not in judge(steps) and conclude(steps) == item.answer:
                yield {"prompt": item.question, "steps": steps, "answer": item.answer}
        block += 1


def steps_of(text: str) -> list[str]:
    """Steps of a worked answer that ends in `#### NUMBER`: its lines, without bullets, numbers and the opening.

    >>> steps_of("Let's solve this step by step:\\n1. Apples:\\n  - 3 + 4 = 7\\n#### 7")
    ['Apples:', '3 + 4 = 7']
    """
    lines = (_BULLET.sub("", line).strip() for line in text.partition("####")[0].splitlines())
    return [line for line in lines if line and "step by step" not in line]


def judge(lines: Lines) -> list[float | None]:
    """1 for each step whose claims are true, 0 for one with a false claim, None for one that claims nothing.

    >>> judge(["3 + 4 = 7", "so", "7 + 1 = 9"])
    [1.0, None, 0.0]
    """
    verdicts: list[float | None] = []
    for (claims,) in (arithmetic([line]) for line in lines):
        verdicts.append(min(value for _, value in claims) if claims else None)
    return verdicts


def conclude(lines: Lines) -> str | None:
    """The last number of the last step that says one.

    >>> conclude(["3 + 4 = 7 apples", "so that is all"])
    '7'
    """
    numbers = [number for line in lines if (number := last_number(line.replace(",", ""))) is not None]
    return str(numbers[-1]) if numbers else None
