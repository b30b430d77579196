"""Conversations of three turns with instructions that a program can check, and the rewards that check them.

First turn: the user tells something and asks about a topic under an instruction. Second: another topic, another
instruction. Third: the user thanks, and asks for what the first turn told. Instructions have the ids and arguments of
IFEval (Zhou et al., arXiv 2311.07911).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from instruction_checks import CHECKS, occurrences, words_of

Instruction = Mapping[str, Any]
"""{"id": of IFEval, "kwargs": its arguments}."""

TOPICS = {
    "rivers": ("water", "sea"), "bread": ("flour", "oven"), "horses": ("ride", "farm"), "winter": ("snow", "cold"),
    "trains": ("station", "travel"), "bees": ("honey", "flowers"), "coffee": ("drink", "morning"),
    "mountains": ("climb", "high"), "books": ("read", "story"), "gardens": ("plants", "grow"),
    "music": ("sound", "dance"), "bicycles": ("wheels", "ride"), "cheese": ("milk", "taste"), "owls": ("night", "eyes"),
    "forests": ("trees", "animals"), "cats": ("pets", "play"), "apples": ("fruit", "sweet"), "boats": ("water", "sail"),
    "deserts": ("sand", "hot"), "bridges": ("river", "cross"), "chess": ("game", "board"), "whales": ("ocean", "large"),
    "tea": ("leaves", "cup"), "clouds": ("sky", "rain"), "dogs": ("friend", "walk"), "markets": ("buy", "food"),
    "castles": ("king", "walls"), "soap": ("clean", "hands"), "football": ("team", "ball"), "islands": ("sea", "land"),
    "paper": ("write", "trees"), "tigers": ("stripes", "wild"), "lamps": ("light", "room"), "rice": ("eat", "grain"),
    "museums": ("art", "visit"), "volcanoes": ("lava", "hot"), "schools": ("learn", "write"), "wool": ("sheep", "warm"),
    "kites": ("wind", "fly"), "potatoes": ("eat", "soil"), "stars": ("night", "sky"), "shoes": ("feet", "walk"),
}  # fmt: skip
"""Topic, with two words that belong to it."""

FACTS = {
    "favourite colour": ["green", "blue", "orange", "purple", "yellow", "red", "white", "brown", "pink", "grey"],
    "home town": ["Oslo", "Lyon", "Porto", "Graz", "Leeds", "Turin", "Ghent", "Malaga", "Cork", "Bergen"],
    "sister's name": ["Mara", "Ines", "Ruth", "Clara", "Nadia", "Helen", "Olga", "Julia", "Alma", "Edith"],
    "job": ["baker", "nurse", "teacher", "pilot", "farmer", "lawyer", "painter", "driver", "waiter", "plumber"],
    "favourite food": ["soup", "pizza", "noodles", "salad", "curry", "pancakes", "fish", "beans", "cake", "eggs"],
    "lucky number": ["seven", "nine", "four", "twelve", "three", "eleven", "eight", "twenty", "six", "thirty"],
}
"""What the user may tell: a name, and its values. The last three values are of held-out conversations alone."""

EXAMPLE = (
    ("user", "Hello, my favourite animal is the fox. Tell me about lakes. Use the word fish."),
    ("assistant", "Lakes are calm waters that are full of fish."),
    ("user", "Now tell me about sugar. Write all in small letters, like this: i like sugar a lot."),
    ("assistant", "sugar makes cakes and tea sweet."),
    ("user", "Thank you. What is my favourite animal?"),
    ("assistant", "You're welcome. Your favourite animal is the fox."),
)
"""One worked conversation, of topics and a fact that no other has. It shows two kinds of instructions; the second one
the model never follows by itself."""
HELD_OUT_TOPICS, HELD_OUT_VALUES = 14, 3
TRAINED = ("no_comma", "at_most", "keyword", "ending", "forbidden", "lowercase")
UNSEEN = ("sentences", "frequency")
"""Kinds of instructions that training never shows."""
ENDINGS = ("Is that clear?", "That is all.", "Any questions?")
COURTESY = re.compile(
    r"\b(you're welcome|you are welcome|my pleasure|glad|happy to|of course|certainly|thank you|thanks|please)\b", re.I
)
FEWEST_WORDS, MOST_WORDS = 4, 30
"""Words of a reply to a request for information."""
LOOPED = 0.3
"""Share of repeated pairs of words from which a reply is a loop."""


def rows(split: str = "train", kinds: str = "trained", size: int = 200, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of a `python` source: `prompt` with one worked conversation, the user's later `turns`, `instructions` of
    each turn, `topics`, `attribute` and `answer`, what the user told.

    Args:
        split: train or heldout: their topics, and the values of what the user tells, are disjoint.
        kinds: of instructions: trained, or unseen, which no training row has.
        size: rows.
        seed: of their choice.
    """
    if split not in ("train", "heldout") or kinds not in ("trained", "unseen") or (split, kinds) == ("train", "unseen"):
        raise ValueError(f"split = {split!r} and kinds = {kinds!r}; expected train or heldout, trained or unseen")
    topics = sorted(TOPICS)[HELD_OUT_TOPICS:] if split == "train" else sorted(TOPICS)[:HELD_OUT_TOPICS]
    example = [{"role": role, "content": content} for role, content in EXAMPLE]
    names = TRAINED if kinds == "trained" else UNSEEN
    for number in range(size):
        draw = _Draw(f"{split} {kinds} {seed} {number}")
        attribute = draw.choice("attribute", sorted(FACTS))
        values = FACTS[attribute]
        values = values[:-HELD_OUT_VALUES] if split == "train" else values[-HELD_OUT_VALUES:]
        value = draw.choice("value", values)
        pair = [draw.choice("first topic", topics)]
        pair.append(draw.choice("second topic", [topic for topic in topics if topic != pair[0]]))
        # Kinds take turns, so that each is as frequent as the others.
        texts = [instruction(names[(number + place) % len(names)], topic, draw) for place, topic in enumerate(pair)]
        opening = f"Hello, my {attribute} is {value}. Tell me about {pair[0]}. {texts[0][1]}"
        yield {
            "prompt": [*example, {"role": "user", "content": opening}],
            "turns": [f"Now tell me about {pair[1]}. {texts[1][1]}", f"Thank you. What is my {attribute}?"],
            "instructions": [[texts[0][0]], [texts[1][0]], []],
            "topics": pair,
            "attribute": attribute,
            "answer": value,
        }


class _Draw:
    """Choices that depend on a key alone."""

    def __init__(self, key: str) -> None:
        self.key = key

    def number(self, name: str, count: int) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.key} {name}".encode()).digest()[:8], "big") % count

    def choice(self, name: str, options: Sequence[str]) -> str:
        return options[self.number(name, len(options))]


def instruction(kind: str, topic: str, draw: _Draw) -> tuple[Instruction, str]:
    """An instruction of a kind for a topic, and the sentence that gives it."""
    word = draw.choice(f"{topic} word", TOPICS[topic])
    most = 10 + draw.number(f"{topic} most", 6)
    ending = draw.choice(f"{topic} ending", ENDINGS)
    kinds: dict[str, tuple[str, dict[str, Any], str]] = {
        "no_comma": ("punctuation:no_comma", {}, "Do not use any commas."),
        "at_most": (
            "length_constraints:number_words",
            {"num_words": most, "relation": "at most"},
            f"Use at most {most} words.",
        ),
        "keyword": ("keywords:existence", {"keywords": [word]}, f"Use the word {word}."),
        "ending": ("startend:end_checker", {"end_phrase": ending}, f"End with the words: {ending}"),
        "forbidden": ("keywords:forbidden_words", {"forbidden_words": [word]}, f"Do not use the word {word}."),
        # An example shows the kind that the model never meets by itself.
        "lowercase": (
            "change_case:english_lowercase",
            {},
            f"Write all in small letters, like this: i like {topic} a lot.",
        ),
        "sentences": (
            "length_constraints:number_sentences",
            {"num_sentences": 1, "relation": "at most"},
            "Write one sentence and no more.",
        ),
        "frequency": (
            "keywords:frequency",
            {"keyword": word, "frequency": 2, "relation": "at least"},
            f"Use the word {word} at least twice.",
        ),
    }
    name, arguments, text = kinds[kind]
    return {"id": name, "kwargs": arguments}, text


def followed(
    completions: Sequence[str],
    instructions: Sequence[Sequence[Sequence[Instruction]]],
    completion_turns: Sequence[Sequence[str] | None] | None = None,
) -> list[float]:
    """Share of the conversation's instructions that the replies follow; an empty reply follows none."""
    values = []
    for replies, asked in zip(_replies(completions, completion_turns, instructions), instructions, strict=True):
        flags = [
            bool(reply.strip()) and CHECKS[item["id"]](reply, **_arguments(item))
            for reply, items in zip(replies, asked, strict=True)
            for item in items
        ]
        values.append(sum(flags) / len(flags))
    return values


def sensible(
    completions: Sequence[str],
    topics: Sequence[Sequence[str]],
    instructions: Sequence[Sequence[Sequence[Instruction]]],
    completion_turns: Sequence[Sequence[str] | None] | None = None,
) -> list[float]:
    """Share of the replies that say something of their topic: 4 to 30 words, a whole last sentence, no loop of words,
    and the topic's name beside words that the request did not hold. The last reply must only be whole and no loop."""
    values = []
    for replies, named in zip(_replies(completions, completion_turns, instructions), topics, strict=True):
        flags = [_tells(reply, topic) for reply, topic in zip(replies, named, strict=False)]
        flags.append(bool(replies[-1].strip()) and len(words_of(replies[-1])) <= MOST_WORDS and _whole(replies[-1]))
        values.append(sum(flags) / len(flags))
    return values


def remembered(
    completions: Sequence[str],
    answer: Sequence[str],
    attribute: Sequence[str],
    instructions: Sequence[Sequence[Sequence[Instruction]]],
    completion_turns: Sequence[Sequence[str] | None] | None = None,
) -> list[float]:
    """1 where the last reply names what the user told, and nothing else that it could have been."""
    values = []
    for replies, value, name in zip(
        _replies(completions, completion_turns, instructions), answer, attribute, strict=True
    ):
        others = [other for other in FACTS.get(name, ()) if other != value]
        values.append(
            float(occurrences(replies[-1], value) > 0 and not any(occurrences(replies[-1], other) for other in others))
        )
    return values


def polite(
    completions: Sequence[str],
    instructions: Sequence[Sequence[Sequence[Instruction]]],
    completion_turns: Sequence[Sequence[str] | None] | None = None,
) -> list[float]:
    """1 where the reply to the thanks holds one or two courteous phrases; more are no more polite, and earn 0."""
    values = []
    for replies in _replies(completions, completion_turns, instructions):
        values.append(float(1 <= len(COURTESY.findall(replies[-1])) <= 2))
    return values


def strict(
    completions: Sequence[str],
    instructions: Sequence[Sequence[Sequence[Instruction]]],
    topics: Sequence[Sequence[str]],
    answer: Sequence[str],
    attribute: Sequence[str],
    completion_turns: Sequence[Sequence[str] | None] | None = None,
) -> list[float]:
    """1 where all of it holds: every instruction followed, what the user told remembered, every reply sensible."""
    parts = zip(
        followed(completions, instructions, completion_turns),
        remembered(completions, answer, attribute, instructions, completion_turns),
        sensible(completions, topics, instructions, completion_turns),
        strict=True,
    )
    return [float(min(values) == 1) for values in parts]


def _replies(
    completions: Sequence[str],
    completion_turns: Sequence[Sequence[str] | None] | None,
    instructions: Sequence[Sequence[Sequence[Instruction]]],
) -> list[list[str]]:
    """Replies of each conversation, as many as it has turns: a turn that was not reached is empty."""
    turns = completion_turns or [None] * len(completions)
    episodes = []
    for text, replies, asked in zip(completions, turns, instructions, strict=True):
        episode = list(replies) if replies else [text]
        episodes.append([*episode, *[""] * (len(asked) - len(episode))])
    return episodes


def _arguments(item: Instruction) -> dict[str, Any]:
    """Arguments of an instruction; a table of several kinds fills the others' with nothing."""
    return {name: value for name, value in item["kwargs"].items() if value is not None}


def _tells(reply: str, topic: str) -> bool:
    words = words_of(reply)
    named = any(word.startswith(topic.removesuffix("s")) for word in words)
    return named and FEWEST_WORDS <= len(words) <= MOST_WORDS and len(set(words)) > FEWEST_WORDS - 1 and _whole(reply)


def _whole(reply: str) -> bool:
    """True for text that ends as a sentence does, and does not say the same again and again."""
    words = words_of(reply)
    pairs = list(pairwise(words))
    loop = bool(pairs) and 1 - len(set(pairs)) / len(pairs) >= LOOPED
    return bool(re.search(r"[.!?…][\"”')]*$", reply.strip())) and not loop
