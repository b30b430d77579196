"""Built-in rewards: exact, format, length, language, overlong, task and environment."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from coterie.algo.shaping import soft_overlong
from coterie.data import tasks
from coterie.data.answers import extract_answer
from coterie.data.characters import plain_words
from coterie.data.numerals import gold_number
from coterie.errors import DataError
from coterie.rewards.number import number

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


def same_text(text: str, other: str, *, casefold: bool = False) -> bool:
    """True for equal texts, up to white space and the spelling of characters."""
    text, other = " ".join(text.split()), " ".join(other.split())
    if casefold:
        text, other = text.casefold(), other.casefold()
    return text == other or (bool(text) and plain_words(text) == plain_words(other))


def format(
    completions: Sequence[str], completion_opening: Sequence[str] | None = None, *, pattern: str | None = None
) -> list[float]:
    r"""1 where the whole completion has the layout, else 0.

    Args:
        completion_opening: text of each completion that the chat template wrote, at its start. Left out where that
            is not known: then a thought that is closed but not opened counts as opened by the template.
        pattern: regular expression for the whole completion without surrounding white space, in which `.` also stands
            for a new line; the default asks for `<think>…</think> <answer>…</answer>`.
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
    """Length reward of completions. Give either `maximum` (with `cache`), or `low` and/or `high`.

    `maximum`: the soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13): 0 up to maximum - cache, then falling
    linearly to -1 at `maximum`, and -1 beyond. `low`, `high`: 1 inside the range, falling linearly to 0 at length 0 and
    at twice `high`.

    Args:
        completion_opening: text of each completion that the chat template wrote, which is not counted.
        unit: `characters` or `words`.
        cache: width of the falling part; a fifth of `maximum` when left out.
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


# Language consistency, as in DeepSeek-R1: the share of words in the language that was asked for.

SCRIPTS: dict[str, frozenset[str]] = {
    "latin": frozenset({"LATIN"}),
    "han": frozenset({"CJK"}),
    "japanese": frozenset({"CJK", "HIRAGANA", "KATAKANA"}),
    "korean": frozenset({"HANGUL"}),
    "cyrillic": frozenset({"CYRILLIC"}),
    "greek": frozenset({"GREEK"}),
    "arabic": frozenset({"ARABIC"}),
    "hebrew": frozenset({"HEBREW"}),
    "devanagari": frozenset({"DEVANAGARI"}),
    "thai": frozenset({"THAI"}),
}
"""Names of `script`; the values are first words of Unicode character names."""

_UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"})
"""Written without spaces: every letter counts as a word."""
_IGNORED = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\[A-Za-z]+|</?[A-Za-z_][\w:]*>|\[/?THINK\]|◁/?think▷|<\|\w+\|>",
    re.DOTALL,
)
"""Code, mathematics and tags belong to no language."""
_APOSTROPHES = "'’ʼ"


def language(completions: Sequence[str], *, script: str = "latin") -> list[float]:
    """Share of a completion's words that are written in `script`; 0 where there are no words.

    Told by Unicode script, so it sees Chinese in an English answer, but not French. Numbers, code, LaTeX and tags are
    no words; each character of a script without spaces is one.

    Args:
        script: a name in `SCRIPTS`.

    >>> language(["let us 计算 now", "", "1 + 1 = $x$"])
    [0.6, 0.0, 0.0]
    """
    if script not in SCRIPTS:
        raise ValueError(f"script = {script!r}; expected one of {', '.join(SCRIPTS)}")
    return [_share(completion, SCRIPTS[script]) for completion in completions]


def _share(completion: str, scripts: frozenset[str]) -> float:
    words = list(_words(_IGNORED.sub(" ", completion)))
    return sum(word in scripts for word in words) / len(words) if words else 0.0


def _words(text: str) -> Iterator[str]:
    """The script of each word; a word ends where the script changes."""
    inside = ""
    # Full-width and mathematical letters fold to the plain ones.
    for character in unicodedata.normalize("NFKC", text):
        kind = unicodedata.category(character)
        if kind.startswith("M") or (character in _APOSTROPHES and inside):
            continue  # marks and apostrophes belong to the word they stand in
        script = _script(character) if kind.startswith("L") else ""
        if script and (script != inside or script in _UNSPACED):
            yield script
        inside = script


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    first = unicodedata.name(letter, "UNKNOWN").split()[0]
    return "CJK" if first == "IDEOGRAPHIC" else first


def overlong(
    completions: Sequence[str], completion_length: Sequence[int | None], *, maximum: int, cache: int | None = None
) -> list[float | None]:
    """DAPO's soft overlong punishment in tokens; None where the token count is not known.

    0 up to maximum - cache tokens, then falling linearly to -1 at `maximum`. A reward part like any other, so that its
    weight, its record and its place in a per-part estimator are a part's; the token count comes with the text as the
    column `completion_length`.

    Args:
        maximum: tokens at which it is -1; usually sampling.max_tokens.
        cache: width of the falling part in tokens; a fifth of `maximum` when left out, as in DAPO.

    Raises:
        ValueError: cache is not within 1 … maximum.
    """
    width = max(maximum // 5, 1) if cache is None else cache
    shaped = soft_overlong([length or 0 for length in completion_length], maximum=maximum, cache=width)
    pairs = zip(completion_length, shaped.tolist(), strict=True)
    return [None if length is None else value for length, value in pairs]


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


def environment(
    completions: Sequence[str], environment_rewards: Sequence[Sequence[float] | None] | None = None
) -> list[float | None]:
    """Sum of the environment's rewards over the turns; None where there was no episode, as for a gold answer."""
    if environment_rewards is None:
        return [None] * len(completions)
    return [None if given is None else math.fsum(given) for given in environment_rewards]
