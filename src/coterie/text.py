"""Text for people: model output made safe to print, estimates with their intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Protocol

from coterie.types import PASS, Message

# A terminal acts on C0 (except tab and newline), DEL and C1; bidirectional marks and overrides, line and
# paragraph separators and the byte-order mark deceive the eye; lone surrogates cannot be encoded.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def safe_text(text: str) -> str:
    r"""Show control characters and bidirectional overrides as visible escapes; newline and tab stay.

    >>> print(safe_text("\x1b[31mred\u202e"))
    \x1b[31mred\u202e
    """
    return UNSAFE.sub(lambda match: _escape(match.group()), text)


def one_line(text: str, width: int) -> str:
    """`safe_text` on one line of at most `width` characters, ending in … where it was cut."""
    flat = " ".join(safe_text(text).split())
    return flat if len(flat) <= width else flat[: max(width - 1, 0)] + "…"


def counted(count: int, noun: str) -> str:
    """The count with its noun, in the plural unless it is 1.

    >>> counted(1, "step"), counted(12_000, "prompt")
    ('1 step', '12000 prompts')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Hint on the nearest name, for the end of a sentence; empty where none is near.

    >>> did_you_mean("lenght", ["length", "format"])
    "; did you mean 'length'?"
    """
    near = get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def before_stop(text: str, stop: Sequence[str]) -> str:
    r"""The text before its first stop string; all of it where there is none.

    >>> before_stop("apple pear\nUser:", ["\nUser:"])
    'apple pear'
    """
    return text[: min((place for word in stop if (place := text.find(word)) >= 0), default=len(text))]


def conversation(messages: Sequence[Message], ends: str = "\n") -> str:
    """Messages as lines of role and content, from the first question on; not yet made safe to print.

    >>> print(conversation([{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]))
    user: 1 + 1?
    assistant: 2
    """
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    first = max(answers[0] - 1, 0) if answers else 0
    return ends.join(f"{message['role']}: {message['content'].strip()}" for message in messages[first:])


class _Interval(Protocol):
    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def interval_text(estimate: _Interval | None, scale: float = 1, digits: int = 1, sign: str = "", unit: str = "") -> str:
    """`41.2 % [37.0, 45.3]`: each number times `scale`; `sign` is that of the format language. None is a dash."""
    if estimate is None:
        return "–"
    value, low, high = (
        f"{scale * number:{sign}.{digits}f}" for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}{unit} [{low}, {high}]"


def metric_text(metric: str, estimate: _Interval | None) -> str:
    """A held-out metric with its interval: `41.2 % [37.0, 45.3]` for pass@1 and pass@k, `0.412 [0.370, 0.453]` for a
    mean reward."""
    return interval_text(estimate, 1, 3) if metric != PASS else interval_text(estimate, 100, unit=" %")


class _Difference(Protocol):
    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def difference_text(metric: str, test: _Difference) -> str:
    """A difference in a held-out metric: `+12.0 points [+8.1, +15.9]` for pass@1, `+0.120 [+0.081, +0.159]` for a mean
    reward."""
    scale, digits, unit = (100, 1, " points") if metric == PASS else (1, 3, "")
    value, low, high = (f"{scale * number:+.{digits}f}" for number in (test.difference, test.low, test.high))
    return f"{value}{unit} [{low}, {high}]"


class _Test(Protocol):
    @property
    def p_value(self) -> float: ...
    @property
    def conclusive(self) -> bool: ...


def p_text(test: _Test, *, label: str = "") -> str:
    """`0.012`, `< 0.001`, or `too few prompts for a test`.

    Args:
        label: put before a number, e.g. `p = `.
    """
    if not test.conclusive:
        return "too few prompts for a test"
    if test.p_value < 0.001:
        return f"{label.replace('=', '').rstrip()} < 0.001".strip()
    return f"{label}{test.p_value:.3f}"


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
