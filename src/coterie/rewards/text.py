"""Rewards that look at the text alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from coterie.data.answers import extract_answer
from coterie.data.characters import plain_words

THINK_ANSWER = re.compile(
    r"\s*<think>((?!</?(?:think|answer)>).)*</think>\s*<answer>((?!</?(?:think|answer)>).)*</answer>\s*", re.DOTALL
)
"""The layout of DeepSeek-R1-Zero (table 1): each tag exactly once, in order, and nothing outside."""
_THINK = "<think>"


def exact(completions: Sequence[str], answer: Sequence[str | None], *, casefold: bool = False) -> list[float | None]:
    """1 where the completion's answer equals the gold answer, else 0; None without a gold answer.

    White space, the Unicode form of a character (full-width letters, dashes, digits of other scripts) and LaTeX's
    marks of text (`\\text{…}`, `$…$`) are not compared.

    Args:
        casefold: ignore upper and lower case.
    """
    return [
        None if gold is None else float(same_text(extract_answer(completion), gold, casefold=casefold))
        for completion, gold in zip(completions, answer, strict=True)
    ]


def same_text(one: str, other: str, *, casefold: bool = False) -> bool:
    """Equality after stripping and with every run of white space as one space, in plain characters."""
    one, other = " ".join(one.split()), " ".join(other.split())
    if casefold:
        one, other = one.casefold(), other.casefold()
    return one == other or (bool(one) and plain_words(one) == plain_words(other))


def format(
    completions: Sequence[str], completion_opening: Sequence[str] | None = None, *, pattern: str | None = None
) -> list[float]:
    r"""1 where the whole completion has the layout, else 0.

    Args:
        completion_opening: what the chat template wrote of each completion, which begins with it. Left out where that
            is not known: then a thought that is closed but not opened counts as opened by the template.
        pattern: regular expression for the whole completion without surrounding white space, in which `.` also stands
            for a new line; the default asks for `<think>…</think> <answer>…</answer>`.

    Raises:
        ValueError: the pattern is no regular expression.
    """
    try:
        layout = THINK_ANSWER if pattern is None else re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern = {pattern!r} is no regular expression: {error}") from error
    texts = [completion.strip() for completion in completions]
    if completion_opening is None:
        texts = [f"{_THINK}{text}" if _THINK not in text and "</think>" in text else text for text in texts]
    return [float(layout.fullmatch(text) is not None) for text in texts]


def length(
    completions: Sequence[str],
    completion_opening: Sequence[str] | None = None,
    *,
    unit: str = "characters",
    maximum: float | None = None,
    cache: float | None = None,
    low: float | None = None,
    high: float | None = None,
) -> list[float]:
    """A gentle push on how long completions are. Give either `maximum` (with `cache`), or `low` and/or `high`.

    `maximum`: the soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13): 0 up to maximum - cache, then falling
    linearly to -1 at `maximum`, and -1 beyond. `low`, `high`: 1 inside the range, falling linearly to 0 at length 0 and
    at twice `high`.

    Args:
        completion_opening: what the chat template wrote of each completion, which is not counted.
        unit: `characters` or `words`.
        cache: width of the falling part; a fifth of `maximum` when left out.

    Raises:
        ValueError: the parameters contradict each other.
    """
    if unit not in ("characters", "words"):
        raise ValueError(f"unit = {unit!r}; expected 'characters' or 'words'")
    if completion_opening is not None:
        pairs = zip(completions, completion_opening, strict=True)
        completions = [completion.removeprefix(opening) for completion, opening in pairs]
    sizes = [len(completion) if unit == "characters" else len(completion.split()) for completion in completions]
    if maximum is not None and low is None and high is None:
        width = maximum / 5 if cache is None else cache
        if not 0 < width <= maximum:
            raise ValueError(f"cache = {width}; expected more than 0 and at most maximum = {maximum}")
        return [-min(max((size - (maximum - width)) / width, 0.0), 1.0) for size in sizes]
    if maximum is not None or cache is not None or (low is None and high is None):
        raise ValueError("length needs params: either maximum (with cache), or low and/or high")
    if (low or 0) < 0 or (high is not None and high <= 0) or (low is not None and high is not None and low > high):
        raise ValueError(f"low = {low} and high = {high}; expected 0 <= low <= high and high > 0")
    return [_in_range(size, low or 0.0, high) for size in sizes]


def _in_range(size: int, low: float, high: float | None) -> float:
    if size < low:
        return size / low
    if high is not None and size > high:
        return max(2.0 - size / high, 0.0)
    return 1.0
