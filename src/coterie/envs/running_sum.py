"""A sum of several terms, asked one step at a time; each question goes on from what the model said before."""

from __future__ import annotations

import re
from dataclasses import dataclass

from coterie.envs.base import Episode, Observation
from coterie.errors import ConfigError
from coterie.rewards.number import answered_number
from coterie.types import Message, Prompt

LARGEST = 10**9
"""A total beyond this is no answer to go on from."""
_SUM = re.compile(r"-?\d+(?:\s*[+-]\s*\d+){2,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningSum:
    """Takes the sum of three or more whole numbers out of the prompt's last message, `4 + 3 - 9 + 2`, and asks for the
    first two terms in the same words; then for the model's own answer and the next term, and so on.

    A wrong answer is carried on, so the last one is right only if all are (or mistakes cancel). The state is the number
    of the step and the total that was said: what came before does not matter for what comes.

    Raises:
        ConfigError: `share` is out of bounds.
    """

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
        said = yield Observation(messages=(*before, Message(role=question["role"], content=opening)), state=(0, total))
        each, earned = self.share / len(terms), 0.0
        for step, term in enumerate(terms, 1):
            heard = whole_number(said)
            if heard is None:
                return 0.0  # nothing to go on from
            earned = each * (heard == total + term)
            total = heard
            if step < len(terms):
                asked = Message(role="user", content=f"{_sum(total, terms[step])} =")
                said = yield Observation(messages=(asked,), state=(step, total), reward=earned)
        return earned + (1 - self.share) * (total == end)


def terms_of(text: str) -> tuple[slice, list[int]]:
    """Where the last sum of three or more terms stands in a text, and its terms with their signs.

    >>> terms_of("What is 4 + 3 - 9?")
    (slice(8, 17, None), [4, 3, -9])

    Raises:
        ValueError: there is none.
    """
    found = list(_SUM.finditer(text))
    if not found:
        raise ValueError(
            f"{text[-80:]!r} holds no sum of three or more whole numbers, such as 4 + 3 - 9; use such data"
        )
    words = found[-1].group().replace(" ", "")
    return slice(*found[-1].span()), [int(term) for term in re.findall(r"[+-]?\d+", words)]


def whole_number(said: str) -> int | None:
    """The whole number that an answer gives; None where it gives none.

    >>> whole_number("It is 12."), whole_number("a dozen"), whole_number("1/2")
    (12, None, None)
    """
    found = answered_number(said)
    if found is None or found.value.denominator != 1 or abs(found.value) > LARGEST:
        return None
    return int(found.value)


def _sum(total: int, term: int) -> str:
    return f"{total} {'-' if term < 0 else '+'} {abs(term)}"
