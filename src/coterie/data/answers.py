"""Finding the final answer inside a completion: the one place that knows the layouts.

Where several marks stand in a completion the first kind in this list decides, and of that kind the last one:
`<answer>…</answer>`, `\\boxed{…}`, `#### …` (GSM8K). Nothing before `</think>` counts.
"""

from __future__ import annotations

import re

_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox) *\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is taken as a pair and does not count


def extract_answer(completion: str) -> str:
    """The marked answer, or, without a mark, everything that is said after thinking; stripped.

    >>> extract_answer("<think>2 + 2</think> <answer> 4 </answer>")
    '4'
    >>> extract_answer(" 4 ")
    '4'
    """
    marked = marked_answer(completion)
    return spoken(completion).strip() if marked is None else marked


def marked_answer(completion: str) -> str | None:
    """The text inside the last answer mark, stripped; None when there is no complete mark."""
    said = spoken(completion)
    tagged = _TAGGED.findall(said)
    if tagged:
        inner = _last_box(tagged[-1])
        return (tagged[-1] if inner is None else inner).strip()
    boxed = _last_box(said)
    if boxed is not None:
        return boxed.strip()
    hashes = _HASHES.findall(said)
    return hashes[-1].strip() if hashes else None


def spoken(completion: str) -> str:
    """The completion without its thinking: what follows the last `</think>`."""
    return completion.rpartition("</think>")[2]


def _last_box(text: str) -> str | None:
    """Content of the last box whose braces balance; braces nest in LaTeX, so no regular expression finds it."""
    closing = _closing_braces(text) if "box" in text else {}
    boxes = [match.end() - 1 for match in _BOX.finditer(text) if match.end() - 1 in closing]
    return text[boxes[-1] + 1 : closing[boxes[-1]]] if boxes else None


def _closing_braces(text: str) -> dict[int, int]:
    """Where each brace that closes does so, in one pass: a model can write thousands that never close."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing
