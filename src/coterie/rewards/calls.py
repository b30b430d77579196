"""Rewards for tool calls: valid calls, calls that retrieved the answer, needed calls, and the cost of a call.

They read the column `completion_messages`, the episode's messages after its prompt, and apply to episodes of the
environment `tools` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coterie.search.words import holds

Messages = Sequence[Mapping[str, Any]]
"""Messages of an episode after its prompt."""
RAN = frozenset({None, "raised", "timeout", "crashed", "type"})
"""Kinds of results of calls that ran, whatever came of them: the call itself was valid."""


def call_valid(
    completions: Sequence[str], completion_messages: Sequence[Messages | None] | None = None
) -> list[float | None]:
    """Share of an episode's calls that could be run: well formed, of a tool that there is, with arguments of the right
    types, within the limits; 0 without any call, None without an episode."""
    return [
        None if messages is None else _share([kind in RAN for kind, _ in results(messages)])
        for messages in _rows(completions, completion_messages)
    ]


def call_useful(
    completions: Sequence[str],
    answer: Sequence[str | None],
    completion_messages: Sequence[Messages | None] | None = None,
) -> list[float | None]:
    """1 where the result of a call holds the gold answer, else 0; None without an episode or a gold answer.

    The model's own words never count, nor a call whose own arguments hold the answer: a search for the answer, or
    arithmetic on it, finds it.
    """
    values: list[float | None] = []
    for messages, gold in zip(_rows(completions, completion_messages), answer, strict=True):
        if messages is None or gold is None:
            values.append(None)
            continue
        asked = _asked(messages)
        useful = any(
            kind is None
            and holds(str(message["content"]), gold)
            and not holds(asked.get(message["tool_call_id"], ""), gold)
            for kind, message in results(messages)
        )
        values.append(float(useful))
    return values


def call_needed(
    completions: Sequence[str],
    support: Sequence[Sequence[str] | None],
    completion_messages: Sequence[Messages | None] | None = None,
) -> list[float | None]:
    """Share of an episode's calls that were needed: whose result holds a text of the row's column `support` that no
    earlier result held, nor the call itself. Without any call 0, or 1 where the row needs none (`support` is empty);
    None without an episode or that column.

    Args:
        support: the facts that answer each question.
    """
    values: list[float | None] = []
    for messages, facts in zip(_rows(completions, completion_messages), support, strict=True):
        if messages is None or facts is None:
            values.append(None)
            continue
        asked, missing, needed = _asked(messages), list(facts), []
        for kind, message in results(messages):
            text, query = str(message["content"]), asked.get(message["tool_call_id"], "")
            new = [fact for fact in missing if kind is None and holds(text, fact) and not holds(query, fact)]
            missing = [fact for fact in missing if fact not in new]
            needed.append(bool(new))
        values.append(_share(needed) if needed else float(not facts))
    return values


def call_cost(
    completions: Sequence[str],
    completion_messages: Sequence[Messages | None] | None = None,
    *,
    free: int = 0,
    most: int = 4,
) -> list[float | None]:
    """Cost of an episode's calls: 0 up to `free` calls, then falling linearly to -1 at `most` and beyond; None without
    an episode. A call that did not run costs as much as one that did.

    Args:
        free: calls that cost nothing: as many as the questions need.
        most: calls at which it is -1.

    Raises:
        ValueError: free is not within 0 … most - 1.
    """
    if not 0 <= free < most:
        raise ValueError(f"free = {free} and most = {most}; expected free of at least 0 and below most")
    values: list[float | None] = []
    for messages in _rows(completions, completion_messages):
        if messages is None:
            values.append(None)
            continue
        beyond = max(sum(len(message.get("tool_calls", ())) for message in messages) - free, 0)
        values.append(-min(beyond / (most - free), 1.0))
    return values


def results(messages: Messages) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    """(kind of failure or None, message) of each result in an episode."""
    for message in messages:
        if "tool_call_id" in message:
            yield message.get("error"), message


def _asked(messages: Messages) -> dict[str, str]:
    """Arguments of each call as text, by its id."""
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    return {call["id"]: " ".join(map(str, call["function"]["arguments"].values())) for call in calls}


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _rows(
    completions: Sequence[str], completion_messages: Sequence[Messages | None] | None
) -> Sequence[Messages | None]:
    return [None] * len(completions) if completion_messages is None else completion_messages
