"""The final answer of a worked solution that marks it: `… so it is $\\boxed{42}$.`"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox) *\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is taken as a pair and does not count
_CLOSERS = re.compile(r"\\end\{\w+\*?\}|\\[\])]|\\qed\w*|[\s$.。]+|</?\w+>")
_NEW_SENTENCE = re.compile(r"[.!?。！？]\s*[^\W_]")


def boxed_at_end(text: str) -> str | None:
    r"""Content of the box in which a solution ends; None when it does not end in one, or in several that differ.

    A solution ends in its last box when the same sentence ends it: closing delimiters of LaTeX and a unit may follow,
    another sentence or line may not.

    >>> boxed_at_end("Two and two are $\\boxed{4}$ apples.")
    '4'
    >>> boxed_at_end("First $\\boxed{4}$. Then we add 3.") is None
    True
    """
    boxes = _boxes(text)
    if not boxes:
        return None
    start, end = boxes[-1]
    line, _, below = text[end + 1 :].partition("\n")
    if _NEW_SENTENCE.search(line) or _CLOSERS.sub("", below):
        return None
    begin = text.rfind("\n", 0, start) + 1
    last = {text[first:closing].strip() for first, closing in boxes if first >= begin}
    return last.pop() if len(last) == 1 else None


def _boxes(text: str) -> list[tuple[int, int]]:
    """Where the content of each outermost box begins and ends; braces nest, so no regular expression finds it."""
    boxes: list[tuple[int, int]] = []
    after = 0
    for match in _BOX.finditer(text):
        if match.start() < after:
            continue
        closing = _closing(text, match.end())
        if closing is None:  # nothing behind it closes this brace
            break
        boxes.append((match.end(), closing))
        after = closing
    return boxes


def _closing(text: str, start: int) -> int | None:
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None
