"""Exact values of written numbers: digits with separators, powers, fractions, currency and size."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from coterie.data.characters import CODES, CURRENCIES

MAX_DIGITS = 400
MAX_EXPONENT = 400
"""Bounds on what is read as a number: 1e999999999 would fill the memory."""
_PREFIX = 16
"""Characters before the first digit that may belong to a number: its sign and its currency."""

_RUN = r"(?:\d+(?:[.,']\d+|[ ]\d{3}(?!\d|[ ]?/[ ]?\d))*+|\.\d+)"
_POWER = r"(?:[-+]?\d+|\{[ ]?[-+]?\d+[ ]?\}|\([ ]?[-+]?\d+[ ]?\))(?!\d)"
_MONEY = rf"(?:(?:US|CA|AU|NZ|HK|NT|R|S|A|C)?[{CURRENCIES}]|(?<![A-Za-z])(?:{CODES})\.?)"
_BEFORE = re.compile(
    rf"""(?:(?P<word>(?:(?<![A-Za-z])(?:minus|negative)[ ]|零下[ ]?|[负負マ마][イ이]?[ナ너]?[ス스]?[ ]?))?
    (?P<sign>[-+][ ]?)?(?:(?P<money>{_MONEY})[ ]?(?P<inner>[-+][ ]?)?)?(?P<cent>百分之[ ]?)?)\Z""",
    re.VERBOSE | re.IGNORECASE,
)
_NOTHING: Any = _BEFORE.match("")
_BEFORE_ENDS = frozenset(f"+-.之负負下スー스{CURRENCIES}")
_BEFORE_WORDS = frozenset(CODES.lower().split("|")) | {"minus", "negative"}
_DIGIT = re.compile(r"(?<![\w.])\.\d|\d")
_QUANTITY = re.compile(
    rf"""(?:(?P<whole>\d+(?:[,']\d{{3}})*)(?:[ ]{{1,3}}|[ ](?:and|&)[ ]|又)(?=\d+[ ]?/[ ]?\d))?
    (?P<top>{_RUN})
    (?:(?P<exponent>[eE][-+]?\d+)(?!\w)|[ ]?\^[ ]?(?P<power>{_POWER}))?
    (?:[ ]?[×xX*][ ]?10[ ]?\^[ ]?(?P<ten>{_POWER}))?
    (?:[ ]?/[ ]?(?P<bottom>{_RUN})(?P<more>(?:[ ]?/[ ]?\d+)+)?)?
    (?P<unit>[ ]?(?:°|美元|日元|港元|欧元|[元円圆圓원]|(?:{CODES})(?![A-Za-z])|[{CURRENCIES}](?![ ]?[-.\d(\\])))?
    (?P<percent>[ ]?(?:%|per[ ]?cent(?![A-Za-z])|percentage[ ]points?|pct(?![A-Za-z])|Prozent|por[ ]ciento|pour[ ]cent
      |процент\w*|パーセント|퍼센트))?(?P<mille>[ ]?‰)?
    (?P<size>[ ]?(?:(?:hundred|thousand|million|billion|trillion|lakh|crore|dozen)s?|mn|bn)(?![A-Za-z])
      |[kKmMbB](?![A-Za-z\d'/^])|[十百千万萬亿億천만억]+(?![克米瓦卡帕赫焦分]))?
    (?P<ordinal>(?:st|nd|rd|th)(?![A-Za-z])|[ ]?번째|番目|位)?""",
    re.VERBOSE | re.IGNORECASE,
)
_SIZES = {"dozen": 12, "hundred": 100, "thousand": 1000, "k": 1000, "lakh": 10**5, "crore": 10**7, "million": 10**6}
_SIZES |= {"m": 10**6, "mn": 10**6, "billion": 10**9, "b": 10**9, "bn": 10**9, "trillion": 10**12}
HAN = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
HAN |= {"천": 1000, "만": 10**4, "억": 10**8}
"""Characters that multiply the number before them."""
_HAN_DIGITS = {character: value % 10 for value, character in enumerate("零一二三四五六七八九〇壹贰叁肆伍陆柒捌玖")}
_HAN_DIGITS |= {"两": 2, "兩": 2}
HAN_ANSWER = re.compile(
    r"(?:[是为為は共有得：:=]|等于)[ ]?"
    r"([零一二三四五六七八九〇两兩十百千万萬亿億]{2,40}|[零一二三四五六七八九〇两兩十百千](?=[。.!！\s]*\Z))"
)
"""A number in Chinese characters that is said to be something; a single one may be an article, so only at the end."""
HAN_NUMERAL = re.compile("[零一二三四五六七八九〇壹贰叁肆伍陆柒捌玖两兩十百千万萬亿億]{1,40}")

_SINGLE = re.compile(
    r"""(?:\d+|[1-9]\d{0,2}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?:'\d{3})+|\d{1,3}(?:[ ]\d{3})+)
    (?:\.(?:\d{3}(?:[' ]\d{3})+|\d+))?|\.\d+|\d{1,3}(?:\.\d{3}){2,}""",
    re.VERBOSE,
)
_COMMA = re.compile(r"\d{1,3}(?:([.' ])\d{3})(?:\1\d{3})*,\d+|(?:[1-9]\d*,(?:\d{1,2}|\d{4,})|0,\d+)")
"""A comma that can only be the decimal one: 1.234,5 and 3,5 and 0,125, but not 1,234."""


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number with its notation."""

    value: Fraction
    percent: bool = False
    """A per cent sign follows, which may or may not mean a hundredth."""

    def readings(self, *, strict: bool) -> set[Fraction]:
        """Possible values: 50% is one half, and, unless strict, fifty too."""
        if not self.percent:
            return {self.value}
        return {self.value / 100} if strict else {self.value / 100, self.value}


@dataclass(frozen=True, slots=True)
class Written:
    """A number in a text, with its sign, currency and size."""

    start: int
    core: re.Match[str]
    before: re.Match[str]

    @property
    def end(self) -> int:
        return self.core.end()


def find(plain: str, place: int) -> Written | None:
    """The next number from a position on, with its sign and currency."""
    digit = _DIGIT.search(plain, place)
    core = None if digit is None else _QUANTITY.match(plain, digit.start())
    if core is None:
        return None
    floor, start = max(place, core.start() - _PREFIX), core.start()
    tail = plain[floor:start].rstrip(" ")
    word = tail.rpartition(" ")[2]
    # Most numbers follow a plain word, and asking first whether it can matter is much cheaper than the pattern.
    if tail[-1:] in _BEFORE_ENDS or word.lstrip("+-").lower() in _BEFORE_WORDS:
        before = _BEFORE.search(plain, floor, start)
        if before is not None:
            return Written(before.start(), core, before)
    return Written(start, core, _NOTHING)


def value_of(match: Written) -> Number | None:
    """Value of a written number without its sign; None where that is too long, or a division by zero."""
    core = match.core
    if core.end() - core.start() > MAX_DIGITS:
        return None
    value, bottom = numeral(core["top"])[0], numeral(core["bottom"] or "1")[0]
    power, ten = _exponent(core["power"], 1), _exponent(core["ten"], 0)
    tens = _exponent((core["exponent"] or "e0")[1:], 0)
    if value is None or not bottom or power is None or ten is None or tens is None or (value == 0 and power < 0):
        return None
    if len(core["top"]) * abs(power) > MAX_DIGITS:
        return None
    value = value if power == 1 else value**power
    if ten or tens or bottom != 1:
        value = value * Fraction(10) ** (ten + tens) / bottom
    if core["whole"]:
        value += int(re.sub(r"\D", "", core["whole"]))
    if core["size"] or core["mille"]:
        value *= Fraction(_size(match), 1000 if core["mille"] else 1)
    return Number(value, percent=bool(core["percent"] or match.before["cent"]))


def _exponent(text: str | None, default: int) -> int | None:
    if text is None:
        return default
    digits = text.strip("{}() ")
    return int(digits) if len(digits) <= 5 and abs(int(digits)) <= MAX_EXPONENT else None


def _size(match: Written) -> int:
    """Size word of a number, as in `3 million` or `5万`.

    An upper-case K or M right behind the digits is a size, after a space a unit (300 K). An m or b is a size only
    beside a currency, since a metre is an m.
    """
    if match.core["size"] in ("K", "M") and not match.core["unit"]:
        return _SIZES[match.core["size"].lower()]
    word = (match.core["size"] or "").strip()
    if word and word[0] in HAN:
        return math.prod(HAN[character] for character in word)
    lower = word.lower().removesuffix("s")
    return _SIZES.get(lower, 1) if len(lower) > 1 or word == "k" or match.before["money"] else 1


@lru_cache(maxsize=4096)
def numeral(run: str) -> tuple[Fraction | None, str]:
    """The value of a run of digits and separators, and what it is: one number (an empty word), one with a decimal comma
    (`comma`), a list (`list`, the last one's value), or none of these (`broken`: a version, a date)."""
    if len(run) > MAX_DIGITS:
        return None, ""
    if _SINGLE.fullmatch(run):
        grouped = run.count(".") > 1
        return Fraction(re.sub(r"[,' ]", "", run.replace(".", "") if grouped else run)), ""
    if _COMMA.fullmatch(run):
        whole, _, part = run.partition(",")
        return Fraction(f"{re.sub(r'[^0-9]', '', whole)}.{part}"), "comma"
    if " " in run:
        value, kind = numeral(run.rpartition(" ")[2])
        return value, kind or "list"
    last = run.rpartition(",")[2]
    if "," in run and _SINGLE.fullmatch(last):
        return Fraction(re.sub(r"[' ]", "", last)), "list"
    return None, "broken"


def han_value(text: str) -> int:
    """Value of a number in Chinese characters: 三百二十 is 320, 二〇二四 is 2024."""
    if not set(text) & set(HAN) and len(text) > 1:
        return int("".join(str(_HAN_DIGITS[character]) for character in text))  # 二〇二四
    total = section = digit = 0
    for character in text:
        if character in _HAN_DIGITS:
            digit = _HAN_DIGITS[character]
        elif (size := HAN[character]) >= 10**4:
            part = section + digit
            total = (total + part) * size if total < size else total + part * size
            section = digit = 0
        else:
            section, digit = section + (digit or 1) * size, 0
    return total + section + digit
