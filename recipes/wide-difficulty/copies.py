"""Questions that hold their own answer, which the model gets right most of the time from the start."""

from __future__ import annotations

import random
from collections.abc import Iterator

TEXTS = ("Repeat the number {number}.", "The answer is {number}. What is the answer?")


def rows(size: int, seed: int) -> Iterator[dict[str, str]]:
    """`size` different questions in alternating words, about numbers of one to three digits."""
    numbers = random.Random(seed).sample(range(1, 1000), size)
    for place, number in enumerate(numbers):
        yield {"prompt": TEXTS[place % len(TEXTS)].format(number=number), "answer": str(number)}
