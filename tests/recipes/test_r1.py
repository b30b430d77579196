"""Worked episodes of the cold start, over a small set of facts."""

from __future__ import annotations

from typing import Any

import pytest
from recipe_modules import recipe

from coterie.data import geonames
from coterie.search.index import Passage

episodes = recipe("r1", "episodes")
COUNTRIES = [f"Land{number}" for number in range(30)]
FACTS = [
    {"kind": kind, "relation": relation, "subject": subject, "value": value, "text": text}
    for name in COUNTRIES
    for kind, relation, subject, value, text in (
        ("country", "capital", name, f"Main{name}", f"The capital of {name} is Main{name}."),
        ("city", "country", f"Port{name}", name, f"The city Port{name} lies in {name}."),
    )
]


class Shown:
    """A searcher that shows the facts about the last word of a query."""

    missing = ""
    """Relation of facts that it does not show."""

    def search(self, query: str, count: int) -> list[Passage]:
        facts = [fact for fact in FACTS if fact["subject"] == query.split()[-1] and fact["relation"] != self.missing]
        return [Passage(key="0", title="", text=fact["text"], score=1.0) for fact in facts][:count]


@pytest.fixture
def searcher(monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown = Shown()
    monkeypatch.setattr(episodes, "searcher_for", lambda index: shown)
    monkeypatch.setattr(geonames, "_facts", lambda: FACTS)
    monkeypatch.setattr(geonames, "is_held_out", lambda name: False)
    return shown


def contents(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row["messages"]]


def test_an_episode_searches_once_a_hop_and_answers(searcher: Shown) -> None:
    rows = episodes.worked(hops=2, size=5)
    assert len(rows) == 5
    question = rows[0]["messages"][0]["content"]
    country = question.removeprefix("What is the capital of the country in which the city Port").removesuffix(" lies?")
    second = [
        ("assistant", f"<search>capital of {country}</search>"),
        ("tool", f"The capital of {country} is Main{country}."),
        ("assistant", f"<answer>Main{country}</answer>"),
    ]
    assert contents(rows[0]) == [
        ("user", question),
        ("assistant", f"<search>country of the city Port{country}</search>"),
        ("tool", f"The city Port{country} lies in {country}."),
        *second,
    ]
    single = [contents(row) for row in episodes.worked(hops=1, size=6)]
    assert all(len(episode) == 4 for episode in single)
    assert single == [contents(row) for row in episodes.worked(hops=1, size=6)]


@pytest.mark.parametrize(("hops", "missing"), [(1, "capital"), (2, "capital"), (2, "country")])
def test_a_question_whose_fact_is_not_found_is_left_out(searcher: Shown, hops: int, missing: str) -> None:
    searcher.missing = missing
    with pytest.raises(ValueError, match="there are 0 such episodes, fewer than size = 1"):
        episodes.worked(hops=hops, size=1)
