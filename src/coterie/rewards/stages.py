"""Step rewards for the layout of a completion."""

from __future__ import annotations

import re
from collections.abc import Sequence


def stages(
    completions: Sequence[str],
    completion_opening: Sequence[str] | None = None,
    *,
    tags: Sequence[str] = ("think", "answer"),
) -> list[list[tuple[int, float]]]:
    """One step per required stage `<tag>…</tag>`: 1 where it stands once, after the end of all stages before it in
    `tags`, else 0.

    A stage ends with its last closing tag. A stage that is missing or never closed is a step of value 0 at the end of
    the completion. Steps that end at the same place are one, with the lower value.

    Args:
        completion_opening: what the chat template wrote of each completion, which begins with it. Left out where that
            is not known: then a first stage that is closed but not opened counts as opened by the template.
        tags: names of the stages in their order, without brackets.

    Raises:
        ValueError: no tags, or one that is no name, or twice.
    """
    if not tags or isinstance(tags, str) or len(set(tags)) != len(tags):
        raise ValueError(f"tags = {tags!r}; expected a list of different names")
    for tag in tags:
        if not re.fullmatch(r"[\w-]+", tag):
            raise ValueError(f"tags holds {tag!r}; expected a name without brackets")
    return [_steps(completion, tags, lenient=completion_opening is None) for completion in completions]


def _steps(completion: str, tags: Sequence[str], *, lenient: bool) -> list[tuple[int, float]]:
    found: dict[int, float] = {}
    before = 0  # where the stages so far end; beyond the text once one of them is missing
    for tag in tags:
        opens = [match.start() for match in re.finditer(f"<{tag}>", completion)]
        closes = [match.end() for match in re.finditer(f"</{tag}>", completion)]
        if lenient and tag == tags[0] and not opens and closes:
            opens = [0]
        complete = bool(opens) and bool(closes) and opens[0] < closes[-1]
        end = closes[-1] if complete else len(completion)
        right = complete and len(opens) == len(closes) == 1 and opens[0] >= before
        before = max(before, end) if complete else len(completion) + 1
        if end > 0:
            found[end] = min(found.get(end, 1.0), float(right))
    return sorted(found.items())
