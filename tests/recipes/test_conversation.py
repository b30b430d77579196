"""Conversations by hand: every instruction kept and broken, memory, sense, courtesy, and attempts to game them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipe_modules import recipe

checks = recipe("conversation", "instruction_checks")  # which the next one imports
conversation = recipe("conversation", "conversation")
agreement = recipe("conversation", "agreement")
FACTS = {"topics": ["rivers", "bread"], "attribute": "favourite colour", "answer": "green"}
ASKED = [
    [{"id": "punctuation:no_comma", "kwargs": {}}],
    [{"id": "length_constraints:number_words", "kwargs": {"num_words": 8, "relation": "at most"}}],
    [],
]
GOOD = [
    "Rivers carry water to the sea.",
    "Bread is baked in an oven.",
    "You're welcome. Your favourite colour is green.",
]


def values(turns: list[str] | None, asked: list[Any] = ASKED) -> dict[str, float]:
    """Values of all parts for one conversation."""
    episode: dict[str, Any] = {
        "completions": [(turns or [""])[-1]],
        "completion_turns": [turns],
        "instructions": [asked],
    }
    facts = {name: [value] for name, value in FACTS.items()}
    memory = {name: facts[name] for name in ("answer", "attribute")}
    return {
        "followed": conversation.followed(**episode)[0],
        "sensible": conversation.sensible(**episode, topics=facts["topics"])[0],
        "remembered": conversation.remembered(**episode, **memory)[0],
        "polite": conversation.polite(**episode)[0],
        "strict": conversation.strict(**episode, **facts)[0],
    }


@pytest.mark.parametrize(
    ("kind", "kwargs", "kept", "broken"),
    [
        ("punctuation:no_comma", {}, "Rivers run.", "Rivers, they run."),
        (
            "length_constraints:number_words",
            {"num_words": 3, "relation": "at most"},
            "Rivers do run.",
            "No they do not.",
        ),
        ("length_constraints:number_words", {"num_words": 2, "relation": "at least"}, "It isn't.", "Isn't."),
        ("keywords:existence", {"keywords": ["sea"]}, "To the Sea.", "Seaside."),
        ("keywords:forbidden_words", {"forbidden_words": ["sea"]}, "Seaside.", "The SEA!"),
        ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "at least"}, "Sea to sea.", "Seas, sea."),
        ("startend:end_checker", {"end_phrase": "That is all."}, "Rivers run. that is all. ", "That is all. Bye."),
        ("change_case:english_lowercase", {}, "rivers run.", "Rivers run."),
        ("change_case:english_lowercase", {}, "i like 3 rivers!", "123!"),
        (
            "length_constraints:number_sentences",
            {"num_sentences": 1, "relation": "at most"},
            "A 1.5 m wave.",
            "No. Yes.",
        ),
    ],
)
def test_each_instruction(kind: str, kwargs: dict[str, Any], kept: str, broken: str) -> None:
    # A table of several kinds fills the arguments of the others with nothing.
    asked = [[{"id": kind, "kwargs": {"other": None, **kwargs}}], [], []]
    assert values([kept, "", ""], asked)["followed"] == 1
    assert values([broken, "", ""], asked)["followed"] == 0


@pytest.mark.parametrize(
    ("turns", "parts"),
    [
        (GOOD, (1, 1, 1, 1, 1)),
        (["Rivers, like lakes, hold water.", *GOOD[1:]], (0.5, 1, 1, 1, 0)),
        ([*GOOD[:2], "You're welcome. It is blue."], (1, 1, 0, 1, 0)),
        ([*GOOD[:2], "Green."], (1, 1, 1, 0, 1)),
        ([*GOOD[:2], "It is green or blue or red."], (1, 1, 0, 0, 0)),  # a list of all that it might be
        ([*GOOD[:2], "Evergreen."], (1, 1, 0, 0, 0)),
        ([*GOOD[:2], "Thank you please thanks of course, green."], (1, 1, 1, 0, 1)),  # courtesy heaped up
        (["Rivers.", "Bread.", "Green."], (1, 1 / 3, 1, 0, 0)),  # shortest text that breaks no rule
        (["Rivers rivers rivers rivers rivers.", *GOOD[1:]], (1, 2 / 3, 1, 1, 0)),
        (["Water flows to the sea.", *GOOD[1:]], (1, 2 / 3, 1, 1, 0)),  # not of the topic
        (["Rivers carry water to the", *GOOD[1:]], (1, 2 / 3, 1, 1, 0)),  # cut
        (["Rivers " + "carry water to many a sea and lake " * 4 + ".", *GOOD[1:]], (1, 2 / 3, 1, 1, 0)),
        (["", "", ""], (0, 0, 0, 0, 0)),
        ([GOOD[0]], (0.5, 1 / 3, 0, 0, 0)),  # ended after one turn
        (None, (0, 0, 0, 0, 0)),
    ],
)
def test_the_parts_of_a_conversation(turns: list[str] | None, parts: tuple[float, ...]) -> None:
    assert list(values(turns).values()) == pytest.approx(list(parts))


def test_held_out_conversations_share_no_topic_value_or_unseen_instruction() -> None:
    train = list(conversation.rows("train", size=200))
    heldout = list(conversation.rows("heldout", size=60))
    unseen = list(conversation.rows("heldout", "unseen", size=30))
    for name in ("topics", "answer"):
        sets = [{value for row in rows for value in row[name]} if name == "topics" else {row[name] for row in rows}
                for rows in (train, [*heldout, *unseen])]  # fmt: skip
        assert not sets[0] & sets[1]
    kinds = [
        {item["id"] for row in rows for items in row["instructions"] for item in items} for rows in (train, unseen)
    ]
    assert not kinds[0] & kinds[1]
    assert set().union(*kinds) == set(conversation.CHECKS)
    assert all(row["answer"] in row["prompt"][-1]["content"] and row["answer"] not in row["turns"][1] for row in train)
    assert list(conversation.rows("train", size=5)) == train[:5]
    example = [content for role, content in conversation.EXAMPLE if role == "assistant"]
    asked = [train[2]["instructions"][0], train[5]["instructions"][0], []]  # a keyword, small letters
    asked[0][0]["kwargs"]["keywords"] = ["fish"]
    facts = {"topics": [["lakes", "sugar"]], "answer": ["fox"], "attribute": ["favourite animal"]}
    assert conversation.strict([""], [asked], completion_turns=[example], **facts) == [1]


BATTERY = (
    *GOOD, *(content for role, content in conversation.EXAMPLE if role == "assistant"),
    "Rivers, like lakes, hold water.", "Seaside towns.", "The SEA!", "sea to sea", "That is all.", "is THAT clear?",
    "Any questions? ", "Any questions? Bye.", "bread and butter", "A ride on a horse; a well-known bride.", "123!", "",
)  # fmt: skip
"""Replies on which the checks are compared."""


@pytest.mark.parametrize("name", checks.FROM_PACKAGE)
def test_the_checks_that_are_lm_evals_agree_with_the_own_ones(name: str) -> None:
    pairs = [(text, kwargs) for text in BATTERY for kwargs in agreement.arguments(name)]
    flags = [checks.OWN[name](text, **kwargs) for text, kwargs in pairs]
    assert flags == [checks.CHECKS[name](text, **kwargs) for text, kwargs in pairs]
    assert set(flags) == {True, False}


@pytest.mark.parametrize(
    ("name", "text", "kwargs", "flag"),
    [
        ("keywords:existence", "Seaside.", {"keywords": ["sea"]}, False),  # lm-eval: also inside another word
        ("keywords:existence", "It is axb.", {"keywords": ["a.b"]}, False),  # and as a pattern
        ("keywords:frequency", "Seas, sea.", {"keyword": "sea", "frequency": 2, "relation": "at least"}, False),
        ("length_constraints:number_words", "It isn't.", {"num_words": 2, "relation": "at most"}, True),
        ("change_case:english_lowercase", "rivers run.", {}, True),  # by langdetect no English
    ],
)
def test_where_lm_evals_checks_are_wrong_the_own_ones_are_used(
    name: str, text: str, kwargs: dict[str, Any], flag: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("langdetect.DetectorFactory.seed", 0)  # else it draws at random
    assert checks.CHECKS[name] is checks.OWN[name]
    assert checks.CHECKS[name](text, **kwargs) is flag
    assert checks.packaged(name)(text, **kwargs) is not flag


def test_agreement_names_the_replies_on_which_the_checks_differ(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    messages = [{"role": role, "content": text} for role, text in (("assistant", "No."), ("assistant", "Seaside."))]
    rollouts = [{"completion": "Seaside.", "episode": messages, "turns": [{}]}, {"completion": "It isn't so."}]
    file = tmp_path / "rollouts.jsonl"
    file.write_text("\n".join(json.dumps(rollout) for rollout in rollouts), encoding="utf-8")
    assert agreement.main([str(file)]) == 0
    lines = capsys.readouterr().out
    assert lines.startswith("2 replies, 2 different\n")
    assert "punctuation:no_comma: 2 checks, own 2 followed, lm-eval 2, 0 differ" in lines
    assert "own False: 'Seaside.' {'keywords': ['sea']}" in lines


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "lm_eval" else name)
    with pytest.raises(ImportError, match=r"need lm_eval, not installed: pip install --no-deps lm-eval==0\.4\.13"):
        checks._registry()
