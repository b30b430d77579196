"""Parsing of numbers as people write them, for rewards, gold answers and environments. No computer algebra.

The rules are those of docs/rewards.md, "How an answer is read".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from coterie.data.characters import plain_mathematics
from coterie.data.digits import HAN, HAN_ANSWER, HAN_NUMERAL, Number, Written, find, han_value, numeral, value_of

_TAIL = 600
"""Characters from the end in which the last number of a long text is sought first."""
_LONGEST_JOINER = 40
"""Characters between two numbers that may make one thing of them."""

_LATIN, _GREEK = "A-Za-zÀ-ÖØ-öø-ɏ", "Ͱ-ϿЀ-ӿ"
_LETTER = _LATIN + _GREEK
"""Alphabets in which words are spaced. A Latin letter right before a digit makes it part of a name, as in x2 or CO2, a
Greek or Cyrillic one where it stands alone."""
_NAME = re.compile(rf"[{_LATIN}_][.-]?\Z|(?<![{_LETTER}])[{_GREEK}][.-]?\Z|[\^_][ ]?[{{(]?[ ]?[-+]?\Z|\d\.\Z")
# Right before or after a number, these make it a part of something else: 2π, √3, x + 5, π/2, x > 5, (-∞, 5], |-5|.
_SYMBOL_BEFORE = re.compile(
    r"""(?:√[ ]?_?[\d{}]*[ ]*[({\[]?[ ]*|[∪∩±≤≥≠][ ]*[({\[$]*[ ]*|[}|][ ]?\{[ ]?|[^\s|]\|
    |[^\s=≈:<>(\[{,;/][ ]?/[ ]?[({]?|[^\s=≈:<>(\[{,;+×*-](?:[ ]?×[ ]?|[ ][+*][ ]|[+*])[({]?
    |(?<![\w])[xyznt][ ]?-[ ]?|[\[(][ ]*[-+]?∞[ ]*,[ ]*|[\w\s][ ][<>][ ]|(?<![</A-Za-z])[A-Za-z][<>])\Z""",
    re.VERBOSE,
)
_SYMBOLS = frozenset("√∪∩±≤≥≠/×+*-∞<>{|")
_SYMBOL_AFTER = re.compile(
    r"""[)}]*[ ]?(?:[×*.]?[ ]?[√π∞]|\^|±)|\||_|[xyznqruvabi](?![\w'])|\([^()]{0,20}(?<![A-Za-z])[xyz√π](?![A-Za-z])
    |[)}]*[ ]?[×*/+][ ]?[({]?-?[ ]?(?:[√π(]|[a-z](?!\w))|[)}]*[ ]?-[ ]?(?:[√π]|[xyznt](?!\w))|[)}]*/\(
    |[ ]?,[ ]*[-+]?∞|[ ]?[≤≥≠]|[ ][<>][ ]?[A-Za-z]""",
    re.VERBOSE,
)
_LABELS = {"step", "equation", "eq", "eq.", "example", "question", "part", "problem", "figure", "fig", "fig.", "table"}
_LABELS |= {"case", "section", "chapter", "line", "footnote", "ref"}
_EQUATION = re.compile(r"[ ]?=[ ]?-?[\d.,]+(?:[ ]?[-+×*/][ ]?[\d.,]+)+[ ]?(?:[.\n]|\Z)")
_MARKER = re.compile(r"[.)][ \t]+\S")
_JOINER = re.compile(
    r""":|[ ]:[ ]|["'%°$)\]}]{0,2}(?:[ ]{0,2}(?:[×*/^±~→]|\.\.\.?|…)[ ]{0,2}|[ ]?x[ ]?|[ ](?:plus|minus|times|over)[ ]
    |[ ](?:to|through|out[ ]of|bis|до|a|o|à)[ ]|[ ](?:and|und|et|и|y)[ ](?:[A-Za-z][ ]?=[ ]?)?
    |[ ]?[A-Za-z.]{0,12}[ ](?:or|oder|ou|или|and/or)[ ](?:[A-Za-z][ ]?=[ ]?)?
    |[ ]?[元円个個人岁歳개명]?[ ]?(?:或者?|至|到|和|与|與|または|もしくは|か|と|から|또는|에서|와|과)[ ]?)""",
    re.VERBOSE | re.IGNORECASE,
)
_LIST = re.compile(r"[ \t]*[,;、，；|&][ \t]*(?:(?:and|or|und|et|y)[ ])?(?:[A-Za-z][ ]?=[ ]?)?|[ ](?:and|or)[ ]")
_NEGATED = re.compile(r"(?:(?<![A-Za-z])not|instead of|rather than|不是)[ ]?\Z", re.IGNORECASE)
# 2 hours 30 minutes: a number with a unit before a number with a lesser one.
_PARTS = re.compile(
    r"""[ ]?(?:°|hours?|hrs?|h|minutes?|mins?|days?|weeks?|months?|years?|feet|foot|ft|pounds?|lbs?|dollars?|euros?
    |met(?:er|re)s?|m|小时|小時|時間|시간|分钟|分鐘|分|元|天|日|月|年)[ ]?,?[ ]?(?:and[ ]|又)?""",
    re.VERBOSE | re.IGNORECASE,
)
_LESSER = re.compile(
    r"[ ]?(?:['′]|min|(?:m|s|h|in)(?![A-Za-z])|sec|hour|inch|ounce|oz|cent|cm|month|day|week|分|秒|角|日|月|초|분)",
    re.IGNORECASE,
)
_UNSPACED_SIGN = re.compile(rf"[{_LETTER}\d)\]}}%°'\u0590-\u06ff\u0750-\u077f]\Z")
_UNITS = re.compile(
    r"""(?:\s|square|cubic|sq\.?|cu\.?|per|/|·|×|°|\^\{?-?\d\}?|(?:[kcmdnμ]?m|[kmμ]?g|[mkcd]?[lL]|[mnμ]?s|h|hrs?|hours?|minutes?
    |mins?|min|seconds?|secs?|days?|weeks?|months?|years?|km/h|mph|kph|in(?:ch(?:es)?)?|ft|feet|foot|yd|yards?|miles?|mi
    |(?:kilo|centi|milli)?(?:met(?:er|re)s?|grams?)|lit(?:er|re)s?|lbs?|pounds?|oz|ounces?|degrees?|radians?|rad|units?
    |dollars?|cents?|euros?|[kM]?[JWNV]|Hz|Pa|mol|K|C|F)(?![A-Za-z])|平方|立方|厘米|毫米|千米|公里|分米|千克|公斤|毫升|小时|小時
    |分钟|分鐘|時間|分|秒|米|克|吨|升|元|円|원|个|個|只|人|岁|歳|天|日|年|月|개|명|점|시간|次|本|枚|页|道|条|种|倍)+\.?""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class _Quantity:
    """A quantity in a text."""

    start: int
    end: int
    number: Number | None
    """None where it is no plain number: a coefficient, an argument, a date, or too long."""
    several: bool = False
    """It is a list of numbers in one run of digits, 1,2,3; the number is the last of them."""
    decimal_comma: bool = False
    label: bool = False
    """It counts or names something: 3rd, Step 3."""
    joined: bool = False
    """With the number before it: 5 or 6, 3-5, 2 + 3, 12:30."""
    listed: bool = False
    """It follows another number after a comma."""


@lru_cache(maxsize=4096)
def parse_number(text: str) -> Number | None:
    """Number of a text that is nothing but a number; else None.

    A currency, a degree or a per cent sign belongs to the number, a unit of measure does not.

    >>> parse_number("$1,234.50").value
    Fraction(2469, 2)
    >>> parse_number("12 apples") is None
    True
    """
    plain = _bare(plain_mathematics(text))
    quantity = _whole(plain)
    if quantity is not None:
        return quantity.number if quantity.end == len(plain) else None
    return Number(Fraction(han_value(plain))) if HAN_NUMERAL.fullmatch(plain) else None


@lru_cache(maxsize=4096)
def gold_number(text: str) -> Number | None:
    r"""Number of a gold answer: as `parse_number`, and with a unit of measure after it.

    >>> gold_number(r"12 \text{ cm}^2").value
    Fraction(12, 1)
    """
    number = parse_number(text)
    if number is not None:
        return number
    plain = _bare(plain_mathematics(text))
    quantity = _whole(plain)
    return quantity.number if quantity is not None and _UNITS.fullmatch(plain, quantity.end) is not None else None


def last_number(text: str, *, marked: bool = False) -> Number | None:
    """Last number of a text; None without one, or when it is a part of something else.

    It does not when it is one of several (`5 or 6`, `3-5`, `(1, 2)`), a term or an argument (`2 + 3`, `2x`, `√3`), a
    date or a time. Exponents, indices and digits in names are no numbers at all; ordinals and labels (`3rd`, `Step 3`)
    count only where nothing else does.

    Args:
        marked: the text is an answer as a whole, so that a list of numbers is no answer: `1, 2`.
    """
    if len(text) > 2 * _TAIL:
        word, space, tail = text[-_TAIL:].partition(" ")
        # What was cut in the middle goes: a word, or the rest of a number where words are not spaced.
        last = _last(
            plain_mathematics(tail if space and len(word) < _TAIL // 4 else text[-_TAIL:].lstrip("0123456789.,'"))
        )
        if last is not None and not last.label:
            return None if last.joined or (marked and (last.several or last.listed)) else last.number
    plain = plain_mathematics(text)
    last = _last(_bare(plain) if marked else plain)
    if last is None and (words := HAN_ANSWER.findall(plain[-_TAIL:])):
        return Number(Fraction(han_value(words[-1])))
    return None if last is None or last.joined or (marked and (last.several or last.listed)) else last.number


def _last(plain: str) -> _Quantity | None:
    """The last quantity that does not only label something, else the last one."""
    last: _Quantity | None = None
    left: _Quantity | None = None  # what stands before the first term of a sum or product: 42 = 6 × 7
    for quantity in _quantities(plain):
        if not quantity.joined:
            left = last
        if not quantity.label or last is None or last.label:
            last = quantity
    if last is not None and last.joined and left is not None and _EQUATION.match(plain, left.end):
        return left
    return last


def _bare(plain: str) -> str:
    """Text without the delimiters of mathematics and the full stop around a whole answer."""
    plain = plain.strip().rstrip(".。!！").strip()
    for mark in ("$$", "$", "{"):
        inner = plain[len(mark) : -len(mark)]
        closing = "}" if mark == "{" else mark
        if (
            len(plain) > 2 * len(mark)
            and plain == f"{mark}{inner}{closing}"
            and not set(inner) & {mark[0], closing[0], ","}
        ):
            return inner.strip().rstrip(".。").strip()
    return plain


def _whole(plain: str) -> _Quantity | None:
    """The single number with which a text begins."""
    match = find(plain, 0)
    quantity = None if match is None or match.start > 0 else _quantity(match, plain, whole=True)
    while quantity is not None and (match := find(plain, quantity.end)) is not None:
        longer = _chained(quantity, match, plain)
        if longer is None:
            break
        quantity = longer
    if quantity is None or quantity.several or quantity.decimal_comma or quantity.label:
        return None
    return quantity


def _quantities(plain: str) -> Iterator[_Quantity]:
    """All quantities of a text in order, each with what binds it to the one before."""
    before: _Quantity | None = None
    opened = counted = place = 0
    while (match := find(plain, place)) is not None:
        place = match.end
        quantity = _quantity(match, plain)
        if quantity is None:
            continue
        if before is not None and (longer := _chained(before, match, plain)) is not None:
            quantity = longer
        elif (number := _marker(quantity, plain)) == 1 or number == counted + 1:
            counted = number
            quantity = replace(quantity, label=True)
        elif before is not None and not before.label and quantity.start - before.end <= _LONGEST_JOINER:
            between = plain[before.end : quantity.start]
            if _joined(between, match, plain):
                quantity = replace(quantity, joined=True)
            elif _LIST.fullmatch(between):
                opened = opened if before.listed else before.start
                quantity = replace(quantity, listed=True, joined=_enclosed(opened, quantity.end, plain))
        if (quantity.several or quantity.decimal_comma) and _enclosed(quantity.start, quantity.end, plain):
            quantity = replace(quantity, joined=True)
        before = quantity
        yield quantity


def _enclosed(start: int, end: int, plain: str) -> bool:
    """True for brackets around a list of numbers: a tuple, an interval, a set."""
    before, after = plain[max(start - 3, 0) : start].rstrip(), plain[end : end + 3].lstrip()
    return before[-1:] in tuple("([{⟨") and after[:1] in tuple(")]}⟩")


def _joined(between: str, match: Written, plain: str) -> bool:
    """True for two numbers that form a range, an alternative, a sum, a ratio or a date."""
    signed = match.before["sign"] or match.before["word"]
    if signed and not between.strip(" )]%°元円个個人月日") and "\n" not in between:
        return True
    if _JOINER.fullmatch(between):
        return True
    return _PARTS.fullmatch(between) is not None and _LESSER.match(plain, match.core.end("top")) is not None


def _marker(quantity: _Quantity, plain: str) -> int:
    """The number of a list's item at the start of a line, `2. ` or `(2) `; 0 where it is none."""
    before = plain[max(quantity.start - 8, 0) : quantity.start].rstrip(" \t(#*-")
    if (before and not before.endswith("\n")) or quantity.end - quantity.start > 2 or quantity.number is None:
        return 0
    return int(quantity.number.value) if _MARKER.match(plain, quantity.end) else 0


def _chained(before: _Quantity, match: Written, plain: str) -> _Quantity | None:
    """A number of Chinese, Japanese or Korean parts, 3万5千; None where the two are not parts of one."""
    size = HAN.get(plain[before.end - 1])
    value = value_of(match) if size and not plain[before.end : match.core.start()].strip() else None
    if size is None or value is None or value.percent or value.value >= size or before.number is None or before.several:
        return None
    total = before.number.value + (-value.value if before.number.value < 0 else value.value)
    return replace(before, end=match.end, number=Number(total))


def _quantity(match: Written, plain: str, *, whole: bool = False) -> _Quantity | None:
    """Quantity of a match; None where its digits belong to a name, an exponent or an index."""
    before = plain[max(match.start - 24, 0) : match.start]
    sign = match.before["sign"] or ""
    signed = bool(sign) and not match.before["word"] and _is_sign(sign, before, whole)
    lead = before if signed or match.before["word"] or not sign else before + sign
    if (lead[-1:] not in " =" or not {"^", "_"}.isdisjoint(lead[-4:])) and _NAME.search(lead):
        return None
    if _NEGATED.search(lead[-13:]):
        return None
    number, kind = _number(match, plain, negative=signed and sign[0] == "-"), numeral(match.core["top"])[1]
    symbolic = _SYMBOL_AFTER.match(plain, match.end) is not None
    symbolic = symbolic or (not _SYMBOLS.isdisjoint(lead) and _SYMBOL_BEFORE.search(lead) is not None)
    if symbolic or match.core["more"] or kind == "broken":
        return _Quantity(match.start, match.end, None)
    label = bool(match.core["ordinal"]) or _labelled(lead)
    return _Quantity(match.start, match.end, number, kind == "list", kind == "comma", label)


def _labelled(lead: str) -> bool:
    """True for a number that labels something, by the words before it: Step 3, 第3."""
    words = lead.rstrip(" (#")
    return (
        words[-1:] in ("第", "№") or words[-12:].replace("\n", " ").rpartition(" ")[2].lstrip("([").lower() in _LABELS
    )


def _is_sign(sign: str, before: str, whole: bool) -> bool:
    """True for a sign of the number behind it: neither a hyphen, a bullet nor an operation."""
    if _UNSPACED_SIGN.search(before):
        return False
    if len(sign) > 1:  # a space follows
        return (whole and not before) or before.rstrip()[-1:] in tuple("=≈$")
    return True


def _number(match: Written, plain: str, *, negative: bool) -> Number | None:
    number = value_of(match)
    minuses = negative + (match.before["inner"] or "").count("-")
    minuses += bool(match.before["word"]) and not plain[max(match.start - 8, 0) : match.start].rstrip()[-1:].isdigit()
    return Number(-number.value, number.percent) if number is not None and minuses % 2 else number


# Numbers in English and Chinese words, read only where they are the whole answer: `twenty-one`, `七个苹果`.

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
    """Number of a text in words, with an optional unit or counted noun; None where it says more.

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
