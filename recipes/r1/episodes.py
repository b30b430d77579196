"""Worked episodes for a cold start: searches and an answer, with what the tool really showed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.data import geonames
from coterie.search.index import Searcher
from coterie.tools.registry import searcher_for

INDEX = "geonames-facts"
SHOWN = 2
"""Passages a search, as in config.toml."""


def worked(hops: int = 1, size: int = 24, seed: int = 1) -> list[dict[str, Any]]:
    """Rows of a `python` source for a fine-tuning: `messages` of episodes about training entities, with a search a hop
    and then the answer.

    A question whose facts the searches do not show is left out.

    Args:
        hops: 1 or 2, searches of an episode.
        size: rows.
        seed: of the choice of questions.

    Raises:
        ValueError: fewer such episodes than rows.
    """
    rows = geonames.questions(hops=hops, split="train", size=size + 24, seed=seed)
    searcher = searcher_for(INDEX)
    episodes = [episode for row in rows if (episode := _worked(row, searcher))]
    if len(episodes) < size:
        raise ValueError(f"there are {len(episodes)} such episodes, fewer than size = {size}")
    return [{"messages": episode} for episode in episodes[:size]]


def _worked(row: Mapping[str, Any], searcher: Searcher) -> list[dict[str, str]] | None:
    """The episode of one question; None where a search does not show its fact."""
    messages = [{"role": "user", "content": row["question"]}]
    for query, fact in zip(_queries(row), row["support"], strict=True):
        shown = [passage.text for passage in searcher.search(query, SHOWN)]
        if fact not in shown:
            return None
        messages.append({"role": "assistant", "content": f"<search>{query}</search>"})
        messages.append({"role": "tool", "content": "\n".join(shown)})
    return [*messages, {"role": "assistant", "content": f"<answer>{row['answer']}</answer>"}]


def _queries(row: Mapping[str, Any]) -> list[str]:
    """What to search for, one query a hop: `population of Peru`, or `country of the city Lima` before it."""
    query = row["question"].removeprefix("What is the ").rstrip("?")
    if row["hops"] == 1:
        return [query]
    asked, city = query.split(" of the country in which the city ")
    city = city.removesuffix(" lies")
    country = row["support"][0].removeprefix(f"The city {city} lies in ").rstrip(".")
    return [f"country of the city {city}", f"{asked} of {country}"]
