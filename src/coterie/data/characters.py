r"""Plain spelling of the characters and forms in which people write mathematics.

Rewards, gold answers and step checkers all read text through it: a minus is a minus in every one of them.
"""

from __future__ import annotations

import re
import unicodedata

MINUSES = "\u2212\u2010\u2011\u2012\u2013\u2014\u2015\ufe63\uff0d\u02d7\u2796"
"""Minus sign, hyphens, dashes, and their small, full-width, modifier and heavy forms; the plain one is the hyphen."""
PLUSES = "\uff0b\ufe62\u2795"
EQUALS = "\uff1d\ufe66"
TIMES = "×✕✖⨯⋅·∙∗＊"
SLASHES = "÷∕⁄／➗"
CURRENCIES = "$€£¥₹₩₽₺₫₱₦₪฿₴₡₵₸₼₾₲₭₮¢"
CODES = (
    "USD|EUR|GBP|JPY|CNY|RMB|INR|KRW|AUD|CAD|NZD|HKD|SGD|TWD|CHF|SEK|NOK|DKK|RUB|BRL|MXN|ZAR|TRY|PLN|CZK|THB|PHP|IDR|"
    "MYR|VND|AED|SAR|ILS|PKR|BDT|LKR|NPR|NGN|KES|EGP|Rs|Rp|RM|Tk|Kč|zł|kr"
)
"""Currencies that are written in letters."""
THIN = "\u00a0\u2002-\u200a\u202f\u205f"
"""Spaces that keep the digits of one number together, as a class of a regular expression."""
FRACTIONS = {mark: unicodedata.normalize("NFKC", mark).replace("\u2044", "/") for mark in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞↉"}
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")

_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if chr(code) not in "，．"}
_TABLE = str.maketrans(
    {chr(code): plain for code, plain in _FULL_WIDTH.items()}
    | dict.fromkeys(MINUSES, "-")
    | dict.fromkeys(PLUSES, "+")
    | dict.fromkeys(EQUALS, "=")
    | dict.fromkeys(TIMES, "×")
    | dict.fromkeys(SLASHES, "/")
    | dict.fromkeys(
        "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
    | {
        "’": "'",
        "ʼ": "'",
        "＇": "'",
        "٪": "%",
        "﹪": "%",
        "٫": ".",
        "．": ".",
        "٬": ",",
        "﹐": ",",
        "｡": "。",
        "〜": "~",
    }
    | {"￥": "¥", "￡": "£", "￦": "₩", "￠": "¢", "﹩": "$", "\u3000": " ", "º": "°", "˚": "°", "∘": "°"}
)
_FOREIGN_DIGIT = re.compile(r"[^\D0-9]")  # of any script, full-width and mathematical ones included
_FULL_WIDTH_COMMA = re.compile(r"(?<=[０-９])，(?=[０-９]{3}(?!\d))")
_LONG_DASH = re.compile(r"(?<=[A-Za-z])[—―](?=\d)")  # between a word and a number it is punctuation
_SMALL_FRACTION = re.compile(r"(\d?)([⁰¹²³⁴⁵⁶⁷⁸⁹]{1,9})[⁄/∕]([₀₁₂₃₄₅₆₇₈₉]{1,9})")
_VULGAR = re.compile(rf"(\d?)[ ]?([{''.join(FRACTIONS)}])")
_SUPERSCRIPT = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_SUBSCRIPT = re.compile(r"[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_RAISED = re.compile(r"<(su[pb])>\s*([-+]?\d{1,6})\s*</su[pb]>", re.IGNORECASE)
_GROUP = re.compile(
    rf"(?<=\d)(?:,?(?:\\[,!;:> ]|\\(?:thin|med|thick|negthin)space(?![A-Za-z])|\{{(?:,|\\[,!;:])?\}}|[_{THIN}]))+"
    r"(?=\d{3}(?!\d))"
)
_SPACE = re.compile(rf"\\[,!;:> ]|[{THIN}]|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick|negthin)space(?![A-Za-z])")
_STYLE = re.compile(
    r"\\(?:left|right|big[lr]?|Big[lr]?|bigg[lr]?|displaystyle|textstyle|limits|bf|rm|it|cal|mathrm|mathbf|boldsymbol|text\w*|mathit"
    r"|mathsf|mathtt|mathbb|mbox|hbox|operatorname|emph|underline|boxed|fbox)(?![A-Za-z])\*?"
)
_WORDS = re.compile(
    r"\\(?:text\w*|math(?:rm|bf|it|sf|tt|bb)|mbox|hbox|operatorname|emph|underline|boldsymbol|boxed|fbox)\*?\s*\{([^{}]*)\}"
)
_DEGREE = re.compile(
    r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\(?:degree|textdegree|circ)(?![A-Za-z])|\^\s*\{?°\}?"
)
_TOP = r"(?:\{\s*([-+]?[\d.,' ]{1,400})\s*\}|(\d))"
_NUMBERS = re.compile(rf"(\d?)\\(?:[dtcs]|nice)?frac\s*{_TOP}\s*{_TOP}")
_OVER = re.compile(r"\{\s*([-+]?[\d.,]+)\s*\\over\s*([\d.,]+)\s*\}")
_ROOT = re.compile(r"\\sqrt\s*(?:\[[^\[\]]{0,9}\])?\s*\{([^{}]*)\}")
_ANY_FRACTION = re.compile(r"\\(?:[dtcs]|nice)?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_SIGNS = (
    {
        "times": "×",
        "cdot": "×",
        "ast": "×",
        "div": "/",
        "pm": "±",
        "mp": "±",
        "minus": "-",
        "textminus": "-",
        "sim": "~",
    }
    | {"le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥", "geqslant": "≥", "ne": "≠", "neq": "≠", "lt": "<"}
    | {"gt": ">", "approx": "≈", "infty": "∞", "cup": "∪", "cap": "∩", "langle": "⟨", "rangle": "⟩", "lbrace": "{"}
    | {"rbrace": "}", "mid": "|", "colon": ":", "cdots": "…", "ldots": "…", "dots": "…", "percent": "%", "euro": "€"}
    | {"pounds": "£"}
    | dict.fromkeys(
        ("sqrt", "ln", "log", "exp", "sin", "cos", "tan", "frac", "dfrac", "tfrac", "binom", "overline"), "√"
    )
    | dict.fromkeys(("dot", "lfloor", "lceil", "sum", "int", "lim", "gcd", "lcm", "max", "min"), "√")
    | dict.fromkeys(
        ("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta"), "π"
    )
    | dict.fromkeys(("iota", "kappa", "lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "phi", "varphi"), "π")
    | dict.fromkeys(("chi", "psi", "omega", "ell", "Gamma", "Delta", "Theta", "Lambda", "Sigma", "Phi", "Psi"), "π")
)
"""Signs of LaTeX commands; `√` for anything that takes an argument, `π` for any Greek letter."""
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_PASSES = 4
"""Depth of LaTeX in LaTeX that is unwrapped; what lies deeper is not plain."""


def plain_characters(text: str) -> str:
    """Text with one character for each sign, whatever its width, script or form; LaTeX stays as it is.

    Digits of every script become 0-9, a raised number `^{2}`, a lowered one `_{2}`, a vulgar fraction `1/2` with a
    space after a whole number. Invisible characters go.

    >>> plain_characters("－３½ cm²")
    '-3 1/2 cm^{2}'
    """
    if text.isascii() and "<su" not in text:
        return text
    text = _FULL_WIDTH_COMMA.sub(",", text)
    text = _LONG_DASH.sub(" - ", text)
    text = _SMALL_FRACTION.sub(_small_fraction, text)
    text = _VULGAR.sub(lambda match: f"{match[1]} {FRACTIONS[match[2]]}" if match[1] else FRACTIONS[match[2]], text)
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match.group().translate(SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT.sub(lambda match: f"_{{{match.group().translate(SUBSCRIPTS)}}}", text)
    text = _RAISED.sub(lambda match: f"{'^' if match[1].lower() == 'sup' else '_'}{{{match[2]}}}", text)
    return _FOREIGN_DIGIT.sub(lambda match: str(unicodedata.decimal(match.group())), text.translate(_TABLE))


def plain_spaces(text: str) -> str:
    r"""Text with digits of a number joined: thousands separators other than comma and point become apostrophes.

    >>> plain_spaces(r"10,\!080 and 1\;234")
    "10'080 and 1'234"
    """
    return _SPACE.sub(" ", _GROUP.sub("'", text))


def plain_mathematics(text: str) -> str:
    r"""Text with characters, spaces and LaTeX in plain spelling, for reading numbers; not for computer algebra.

    A root, logarithm or other function becomes `√` before its argument, a Greek letter `π`.

    >>> plain_mathematics(r"$\dfrac{1}{2} \text{ cm}^2$")
    '$1/2 cm^2$'
    """
    text = plain_spaces(plain_characters(text))
    if "\\" in text or "{" in text:
        text = _plain_latex(text)
    text = re.sub(r"(?<![A-Za-z])(?:sqrt|log|ln)[ ]?(?=[(\d])", "√", text)
    text = re.sub(r"(?<!\d)(\d{1,9})[ ]?分[之の][ ]?(\d{1,9})", r"\2/\1", text)
    text = re.sub(r"(?<=\d)\*\*(?=[-\d(])", "^", text)
    text = re.sub(r"[ ]{2,}", " ", text)
    text = re.sub(r"\*\*|`|(?<![\w_])__|__(?![\w_])", "", text)
    return re.sub(r"(?<![\w*)])\*([^\s*](?:[^*\n]{0,60}[^\s*])?)\*(?![\w*])", r"\1", text)  # emphasis


def plain_words(text: str) -> str:
    r"""Text for comparison: plain characters, what LaTeX marks as text without the mark, single spaces, no delimiters.

    >>> plain_words(r"$\text{New  York}$")
    'New York'
    """
    text = plain_characters(text)
    for _ in range(_PASSES):
        text, count = _WORDS.subn(r"\1", text)
        if not count:
            break
    text = " ".join(_SPACE.sub(" ", text).split())
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inner = text[len(opening) : -len(closing)]
        if len(text) > len(opening + closing) and text == f"{opening}{inner}{closing}" and opening not in inner:
            return inner.strip()
    return text


def _plain_latex(text: str) -> str:
    text = text.replace("\\$", "$").replace("\\%", "%").replace("\\#", "#").replace("\\&", "&")
    text = text.replace("\\{", "⦃").replace("\\}", "⦄")
    text = _DEGREE.sub("°", text)
    for _ in range(_PASSES):
        before = text
        text = _WORDS.sub(r" \1", text)
        text = _NUMBERS.sub(_fraction, text)
        text = _OVER.sub(r"\1/\2", text)
        text = _ROOT.sub(r"√(\1)", text)
        text = _ANY_FRACTION.sub(r"(\1)/(\2)", text)
        if text == before:
            break
    text = re.sub(r"\\[()\[\]]", " ", _STYLE.sub(" ", text))
    return _COMMAND.sub(_sign, text).replace("⦃", "{").replace("⦄", "}")


def _sign(match: re.Match[str]) -> str:
    return _SIGNS.get(match[1], " ")


def _fraction(match: re.Match[str]) -> str:
    r"""A digit before a fraction makes a mixed number: 1\frac{1}{2} is one and a half."""
    top, bottom = (match[2] or match[3]).replace(" ", ""), (match[4] or match[5]).replace(" ", "")
    return f"{match[1]} {top}/{bottom}" if match[1] else f"{top}/{bottom}"


def _small_fraction(match: re.Match[str]) -> str:
    text = f"{match[2].translate(SUPERSCRIPTS)}/{match[3].translate(SUBSCRIPTS)}"
    return f"{match[1]} {text}" if match[1] else text
