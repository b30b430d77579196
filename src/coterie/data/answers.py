"""Extraction of final answers from completions and worked solutions.

Where several marks stand in a completion the first kind in this list decides, and of that kind the last one:
`<answer>…</answer>`, `\\boxed{…}`, `#### …` (GSM8K). Nothing inside a thought counts, and a thought that is never
closed has answered nothing.
"""

from __future__ import annotations

import re

from coterie.data.characters import plain_characters
from coterie.data.numerals import parse_number

THOUGHTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
}
"""The tags between which models think, as they are opened and closed."""

_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_HASHES = re.compile(r"^[ \t]*####(?!#)[ \t]*(\S.*)$", re.MULTILINE)
_OPENS = re.compile("|".join(map(re.escape, THOUGHTS)), re.IGNORECASE)
_CLOSES = re.compile("|".join(map(re.escape, THOUGHTS.values())), re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox) *\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is taken as a pair and does not count


def extract_answer(completion: str) -> str:
    """Final answer of a completion: the marked one, or, without a mark, all text after thinking; stripped.

    >>> extract_answer("<think>2 + 2</think> <answer> 4 </answer>")
    '4'
    >>> extract_answer(" 4 ")
    '4'
    """
    marked = marked_answer(completion)
    return spoken(completion).strip() if marked is None else marked


def marked_answer(completion: str) -> str | None:
    """The text inside the last answer mark, stripped; None when there is no complete mark."""
    text = spoken(completion)
    tagged = _TAGGED.findall(text)
    if tagged:
        inner = _last_box(tagged[-1])
        return (tagged[-1] if inner is None else inner).strip()
    boxed = _last_box(text)
    if boxed is not None:
        return boxed.strip()
    return hashed_answer(text)


def hashed_answer(text: str) -> str | None:
    """Text after the last `####` that marks an answer; None where there is none.

    GSM8K ends a solution with such a line. Markdown writes headings in the same way, so `#### Check` or
    `#### 2. Compute` marks an answer only as the last line, and words only where the text has no other such line. A
    number may be followed by more: models go on to the next question.

    >>> hashed_answer("2 + 40 = 42\\n#### 42"), hashed_answer("#### 1. Read\\nTwo piles.\\n#### 2. Add\\nIt is 42.")
    ('42', None)
    """
    lines = list(_HASHES.finditer(text))
    end = len(text.rstrip())
    counted = len(lines) > 1 and [line[1].strip(" .:)") for line in lines] == [str(k + 1) for k in range(len(lines))]
    for line in reversed(lines):
        answer = line[1].strip()
        last = line.end() >= end
        number = not counted and parse_number(answer) is not None and not plain_characters(answer).endswith((".", ":"))
        if number or (last and (len(lines) == 1 or any(character.isdigit() for character in answer))):
            return answer
    return None


def spoken(completion: str) -> str:
    """The completion without its thinking: the text after the last closed thought, up to one opened after it.

    Nothing, where the only thought is never closed. A closing tag needs no opening one: the chat template may have
    written that.

    >>> spoken("<think>2 + 2</think> 4"), spoken("2 + 2</think> 4"), spoken("<think> maybe 4")
    (' 4', ' 4', '')
    """
    closed = 0
    for match in _CLOSES.finditer(completion):
        closed = match.end()
    opened = _OPENS.search(completion, closed)
    return completion[closed : opened.start() if opened else None]


def cut_in_thought(completion: str) -> bool:
    """True if the completion ends inside a thought, without text before it."""
    return not spoken(completion).strip() and _OPENS.search(completion) is not None


def _last_box(text: str) -> str | None:
    """Content of the last box whose braces balance; braces nest in LaTeX, so no regular expression finds it."""
    closing = _closing_braces(text) if "box" in text else {}
    boxes = [match.end() - 1 for match in _BOX.finditer(text) if match.end() - 1 in closing]
    return text[boxes[-1] + 1 : closing[boxes[-1]]] if boxes else None


def _closing_braces(text: str) -> dict[int, int]:
    """Position of each closing brace, in one pass: a model can write thousands that never close."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


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
    """Span of the content of each outermost box; braces nest, so no regular expression finds it."""
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
