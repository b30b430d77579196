"""Answers with sources by hand: right, wrong, cited badly, made up, refused, and attempts to game the citation."""

from __future__ import annotations

from typing import Any

import pytest
from recipe_modules import recipe

from coterie.data import assets
from coterie.search.index import Passage

library = recipe("research", "library")
AREA = "The area of Yemen is 527970 square kilometres."
SHOWN = f"[1452] The capital of Yemen is Sanaa.\n[1454] {AREA}\n[1460] The area of Oman is 212460 square kilometres."
CALL = {"id": "call_0_0", "type": "function", "function": {"name": "search", "arguments": {"query": "area of Yemen"}}}


def episode(*texts: str, error: str | None = None) -> list[dict[str, Any]]:
    """Messages of an episode in which each search showed a text."""
    messages: list[dict[str, Any]] = []
    for text in texts:
        shown = {"role": "tool", "content": text, "tool_call_id": "call_0_0", **({"error": error} if error else {})}
        messages += [{"role": "assistant", "content": "<search>…</search>", "tool_calls": [CALL]}, shown]
    return messages


def values(text: str, gold: str, messages: list[dict[str, Any]] | None) -> tuple[float, float | None, float | None]:
    """(right, correct, faithful) of one answer about the area of Yemen."""
    return (
        library.right([text], [gold], [AREA], [messages])[0],
        library.correct([text], [gold])[0],
        library.faithful([text], [messages])[0],
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>527970 [1454]</answer>", (1, 1)),
        ("<answer>9 [1454]</answer>", (1, 1)),
        ("<answer>527970 [1452]</answer>", (0, 1)),
        ("<answer>527970[1454]</answer>", (1, 0)),
        ("527970 [1454]", (1, 0)),
        ("<answer>527970 [1454] [1452]</answer>", (0, 0)),
        ("<answer>unknown</answer>", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_source_and_form_pay_for_an_answer_alone(text: str, expected: tuple[float, float]) -> None:
    assert library.source([text], ["527970"], [AREA], [episode(SHOWN)]) == [expected[0]]
    assert library.form([text], ["527970"]) == [expected[1]]
    # Where the fact is missing they say nothing, so that no other answer earns more than another.
    assert library.source([text], ["unknown"], [AREA], [episode(SHOWN)]) == library.form([text], ["unknown"]) == [None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>527970 [1454]</answer>", (1, 1, 1)),
        ("<answer>527970[1454]</answer>", (1, 1, 1)),
        ("<answer>527970 [1452]</answer>", (0, 1, 0)),  # a source that does not say so
        ("<answer>527970 [7]</answer>", (0, 1, 0)),  # a source that was not shown
        ("<answer>527970</answer>", (0, 1, 0)),  # no source
        ("<answer>527970 [1454] [1452]</answer>", (0, 0, 0)),  # all sources
        ("<answer>[1454]</answer>", (0, 0, 0)),
        ("<answer>212460 [1460]</answer>", (0, 0, 1)),  # a fact of another country: faithful, and beside the point
        ("<answer>Sanaa [1452]</answer>", (0, 0, 1)),
        ("<answer>527971 [1454]</answer>", (0, 0, 0)),
        ("<answer>is [1454]</answer>", (0, 0, 1)),
        ("<answer>unknown</answer>", (0, 0, None)),
        ("527970 [1454]", (1, 1, 1)),  # the form is another part's
        ("", (0, 0, 0)),
    ],
)
def test_an_answer_with_its_source(text: str, expected: tuple[float, ...]) -> None:
    assert values(text, "527970", episode(SHOWN)) == expected


@pytest.mark.parametrize(
    ("text", "messages", "right"),
    [
        ("<answer>unknown</answer>", episode(SHOWN), 1),
        ("<answer>Unknown</answer>", episode(SHOWN), 1),
        ("<answer>unknown</answer>", [], 0),  # refused without having looked
        ("<answer>unknown</answer>", None, 0),
        ("<answer>unknown</answer>", episode("nothing was found"), 0),
        ("<answer>unknown</answer>", episode(SHOWN, error="raised"), 0),
        ("<answer>unknown [1452]</answer>", episode(SHOWN), 0),
        ("<answer>212460 [1460]</answer>", episode(SHOWN), 0),
    ],
)
def test_a_refusal(text: str, messages: list[dict[str, Any]] | None, right: float) -> None:
    assert values(text, library.UNKNOWN, messages)[:2] == (right, None)


def test_a_source_that_the_model_wrote_itself_counts_nothing() -> None:
    told = [{"role": "assistant", "content": f"[9] {AREA}"}, *episode("[1452] The capital of Yemen is Sanaa.")]
    assert values("<answer>527970 [9]</answer>", "527970", told)[0] == 0


def test_the_tool_hides_what_is_missing_and_its_order_tells_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"The area of country {number} is {number}." for number in range(100)]
    passages = [Passage(key=str(number), title="", text=text, score=-number) for number, text in enumerate(texts)]

    class Searcher:
        def search(self, query: str, k: int) -> list[Passage]:
            return passages[int(query) : int(query) + k]

    monkeypatch.setattr(library, "searcher_for", lambda index: Searcher())
    places = []
    for start in range(80):
        lines = library.search(str(start)).splitlines()
        assert len(lines) <= library.SHOWN
        assert not any(library.is_missing(line.split("] ")[1]) for line in lines)
        best = next(text for text in texts[start:] if not library.is_missing(text))
        places.append(next(place for place, line in enumerate(lines) if line.endswith(best)))
    assert all(15 <= places.count(place) <= 40 for place in range(library.SHOWN))  # 27 expected
    assert 15 <= sum(map(library.is_missing, texts)) <= 45
    assert library.search("100") == "nothing was found"


@pytest.mark.skipif(assets.locate("geonames-facts") is None, reason="the asset geonames-facts has not been fetched")
def test_worked_episodes_cite_what_was_shown_or_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {
        "answerable": [("What is the area of Yemen?", "527970", AREA), ("What is the area of Oman?", "1", "not shown")],
        "missing": [("What is the area of Chad?", "unknown", "The area of Chad is 1284000 square kilometres.")],
    }

    def rows(split: str, kind: str, size: int, seed: int, examples: tuple[int, ...]) -> list[dict[str, Any]]:
        assert (split, examples) == ("train", ())
        columns = [
            {"prompt": [{"role": "user", "content": question}], "answer": answer, "fact": fact}
            for question, answer, fact in asked[kind]
        ]
        return columns[:size]

    monkeypatch.setattr(library, "rows", rows)
    monkeypatch.setattr(library, "search", lambda query: SHOWN)
    first, second = (row["messages"] for row in library.worked(size=8))
    assert [message["content"] for message in first] == [
        "What is the area of Yemen?",
        "<search>area of Yemen</search>",
        SHOWN,
        "<answer>527970 [1454]</answer>",
    ]
    assert second[-1]["content"] == "<answer>unknown</answer>"
    for messages, gold in ((first, "527970"), (second, "unknown")):
        assert library.right([messages[-1]["content"]], [gold], [AREA], [episode(SHOWN)]) == [1.0]


def test_questions_of_held_out_entities_with_and_without_an_answer() -> None:
    train = library.rows("train", size=100)
    heldout = [*library.rows("heldout", "answerable", size=60), *library.rows("heldout", "missing", size=40)]
    asked = [{row["prompt"][-1]["content"] for row in rows} for rows in (train, heldout)]
    assert not asked[0] & asked[1]
    assert {row["answer"] == library.UNKNOWN for row in heldout[:60]} == {False}
    assert {row["answer"] for row in heldout[60:]} == {library.UNKNOWN}
    assert 15 <= sum(row["answer"] == library.UNKNOWN for row in train) <= 45
    assert all(library.is_missing(row["fact"]) == (row["answer"] == library.UNKNOWN) for row in train)
    assert library.rows("train", size=10) == train[:10]
