"""Language consistency, as in DeepSeek-R1: the share of words in the language that was asked for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

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
"""What `script` may name; the values are first words of Unicode character names."""

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

    Raises:
        ValueError: the script is not known.

    >>> language(["let us 计算 now", "", "1 + 1 = $x$"])
    [0.6, 0.0, 0.0]
    """
    if script not in SCRIPTS:
        raise ValueError(f"script = {script!r}; expected one of {', '.join(SCRIPTS)}")
    return [_share(completion, SCRIPTS[script]) for completion in completions]


def _share(completion: str, wanted: frozenset[str]) -> float:
    words = list(_words(_IGNORED.sub(" ", completion)))
    return sum(word in wanted for word in words) / len(words) if words else 0.0


def _words(text: str) -> Iterator[str]:
    """The script of each word; a word ends where the script changes."""
    inside = ""
    # Full-width and mathematical letters fold to the plain ones.
    for character in unicodedata.normalize("NFKC", text):
        kind = unicodedata.category(character)
        if kind.startswith("M") or (character in _APOSTROPHES and inside):
            continue  # marks and apostrophes belong to the word they stand in
        own = _script(character) if kind.startswith("L") else ""
        if own and (own != inside or own in _UNSPACED):
            yield own
        inside = own


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    first = unicodedata.name(letter, "UNKNOWN").split()[0]
    return "CJK" if first == "IDEOGRAPHIC" else first
