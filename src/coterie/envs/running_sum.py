"""Environment of a sum of several terms, one step at a time, from the model's own partial results."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from coterie.envs.base import Episode, Observation
from coterie.errors import ConfigError
from coterie.rewards.number import answered_number
from coterie.types import Message, Prompt

LARGEST = 10**9
"""A total beyond this is no answer to go on from."""
_SUM = re.compile(r"-?\d+(?:\s*[+-]\s*\d+){2,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningSum:
    """Running sum of three or more whole numbers in the prompt's last message, such as `4 + 3 - 9 + 2`: asks for the
    first two terms in the same words, then for the model's own answer and the next term, and so on.

    A wrong answer is carried on, so the last one is right only if all are (or mistakes cancel). The state is the number
    of the step and the model's total: what came before does not matter for the rest.
    """

    instant: ClassVar[bool] = True
    share: float = 0.5
    """Part of the reward that is given for right steps, each the same; the rest for the right total at the end."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"environment.params has share = {self.share}; expected a number from 0 to 1")

    def episode(self, prompt: Prompt) -> Episode:
        *before, question = prompt.messages
        place, (total, *terms) = terms_of(question["content"])
        text, end = question["content"], sum((total, *terms))
        opening = f"{text[: place.start]}{_sum(total, terms[0])}{text[place.stop :]}"
        completion = yield Observation(
            messages=(*before, Message(role=question["role"], content=opening)), state=(0, total)
        )
        each, earned = self.share / len(terms), 0.0
        for step, term in enumerate(terms, 1):
            partial = whole_number(completion)
            if partial is None:
                return 0.0  # nothing to go on from
            earned = each * (partial == total + term)
            total = partial
            if step < len(terms):
                asked = Message(role="user", content=f"{_sum(total, terms[step])} =")
                completion = yield Observation(messages=(asked,), state=(step, total), reward=earned)
        return earned + (1 - self.share) * (total == end)


def terms_of(text: str) -> tuple[slice, list[int]]:
    """Span of the last sum of three or more terms in a text, and its terms with their signs.

    >>> terms_of("What is 4 + 3 - 9?")
    (slice(8, 17, None), [4, 3, -9])
    """
    matches = list(_SUM.finditer(text))
    if not matches:
        raise ValueError(
            f"{text[-80:]!r} holds no sum of three or more whole numbers, such as 4 + 3 - 9; use such data"
        )
    words = matches[-1].group().replace(" ", "")
    return slice(*matches[-1].span()), [int(term) for term in re.findall(r"[+-]?\d+", words)]


def whole_number(text: str) -> int | None:
    """Whole number of an answer; None without one.

    >>> whole_number("It is 12."), whole_number("a dozen"), whole_number("1/2")
    (12, None, None)
    """
    number = answered_number(text)
    if number is None or number.value.denominator != 1 or abs(number.value) > LARGEST:
        return None
    return int(number.value)


def _sum(total: int, term: int) -> str:
    return f"{total} {'-' if term < 0 else '+'} {abs(term)}"
