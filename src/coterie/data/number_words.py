"""Numbers in English and Chinese words, read only where they are the whole answer: `twenty-one`, `七个苹果`."""

from __future__ import annotations

import re

from coterie.data.characters import plain_mathematics
from coterie.data.digits import HAN_NUMERAL, han_value

_ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_TEENS = ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: value for value, word in enumerate((*_ONES, *_TEENS), 1)}
_VALUES |= {word: 10 * value for value, word in enumerate(_TENS, 2)}
_DIGIT = rf"(?:{'|'.join(_ONES[:9])})"
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[- ]{_DIGIT})?|ten|{'|'.join(_TEENS)}|{_DIGIT})"
_BELOW_1000 = rf"(?:(?:{_DIGIT}|a)[- ]hundred(?:[ ](?:and[ ])?{_BELOW_100})?|{_BELOW_100})"
_ENGLISH = re.compile(
    rf"""(?P<sign>(?:minus|negative)[ ])?
    (?P<number>zero|(?P<thousands>{_BELOW_1000}|a)[- ]thousand(?:,?[ ](?:and[ ])?(?P<rest>{_BELOW_1000}))?
      |(?P<small>{_BELOW_1000}))
    (?:[ ](?P<unit>[a-z]{{3,20}}))?""",
    re.VERBOSE | re.IGNORECASE,
)
# A noun in the plural follows a count. These make another number of it, or go on with a sentence.
_NO_UNIT = re.compile(
    r"""thirds|halves|quarters
    |\w*(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|teen|tie|hundred|thousand|illion)ths
    |ones|twos|threes|fours|fives|sixes|sevens|eights|nines|tens|zeros|zeroes|\w+teens
    |pairs|couples|dozens|scores|hundreds|thousands|\w+illions|percents|plus|minus|times|less|was|has|does|this|thus
    |always|others""",
    re.VERBOSE | re.IGNORECASE,
)
_CHINESE = re.compile(
    rf"(?P<sign>[负負-]|零下)?(?P<number>{HAN_NUMERAL.pattern})"
    r"(?:(?:[个個只隻本枚页道条种位名张張辆輛件块塊支头頭朵棵颗顆元度岁歳天年])(?P<noun>[一-鿿]{0,6}))?"
)
_NO_NOUN = re.compile("[半多几幾余餘来來左右第分点點或到至和与與加减減乘除倍成负負零一二三四五六七八九十百千万萬亿億]")


def worded_number(text: str) -> int | None:
    """The number that the whole text says in words, with an optional unit or counted noun; None where it says more.

    >>> worded_number("Twenty-one apples."), worded_number("负五"), worded_number("one of them")
    (21, -5, None)
    """
    plain = plain_mathematics(text).strip(" $\n\t.。!！")
    if len(plain) > 80:
        return None
    if (match := _ENGLISH.fullmatch(plain)) is not None:
        return _english(match)
    match = _CHINESE.fullmatch(plain)
    if match is None or _NO_NOUN.search(match["noun"] or ""):
        return None
    value = han_value(match["number"])
    if match["noun"] and value == 1:  # 一个 before a noun is an article
        return None
    if match["number"] in set("百千万萬亿億"):  # part of a word: 百度, 万岁
        return None
    return -value if match["sign"] else value


def _english(match: re.Match[str]) -> int | None:
    unit = match["unit"]
    value = 1000 * _below_1000(match["thousands"] or "") + _below_1000(match["rest"] or match["small"] or "")
    # After one stands a noun in the singular, which cannot be told from the rest of a sentence.
    if unit and (value == 1 or not unit.lower().endswith("s") or _NO_UNIT.fullmatch(unit)):
        return None
    return -value if match["sign"] else value


def _below_1000(text: str) -> int:
    total = 0
    for word in re.findall(r"[a-z]+", text.lower()):
        if word == "hundred":
            total = 100 * total
        elif word != "and":
            total += 1 if word == "a" else _VALUES[word]
    return total
