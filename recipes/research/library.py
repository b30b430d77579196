"""Answers with a citation: a search tool over facts with ids, of which some are missing, and rewards for what is cited.

Three facts in ten of GeoNames' are hidden from the tool, so that questions of the same form have an answer or none, and
only what was retrieved tells which.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from coterie.data import geonames
from coterie.data.answers import extract_answer
from coterie.rewards.builtin import same_text
from coterie.rewards.calls import results
from coterie.search.words import holds
from coterie.tools.registry import searcher_for

INDEX = "geonames-facts"
MISSING = 0.3
"""Share of the facts that the tool never shows."""
SHOWN = 3
"""Facts a search."""
UNKNOWN = "unknown"
"""The answer where no fact supports one."""
Messages = Sequence[Mapping[str, Any]]

EXAMPLES = (
    ("user", "What is the phone code of Ruritania?"),
    ("assistant", "<search>phone code of Ruritania</search>"),
    (
        "tool",
        "[52] The capital of Ruritania is Strelsau.\n[57] The phone code of Ruritania is 1894.\n"
        "[913] The population of Ruritania is 820816.",
    ),
    ("assistant", "<answer>1894 [57]</answer>"),
    ("user", "What is the area of Graustark?"),
    ("assistant", "<search>area of Graustark</search>"),
    (
        "tool",
        "[31] The population of Graustark is 70412.\n[38] The capital of Graustark is Edelweiss.\n"
        "[640] The area of Gondal is 5310 square kilometres.",
    ),
    ("assistant", f"<answer>{UNKNOWN}</answer>"),
    ("user", "What is the population of the city Hentzau?"),
    ("assistant", "<search>population of the city Hentzau</search>"),
    ("tool", "[4402] The city Hentzau lies in Ruritania.\n[4403] The population of the city Hentzau is 20816."),
    ("assistant", "<answer>20816 [4403]</answer>"),
)
"""Three worked episodes about countries that there are not: an answer with its source, a refusal, an answer. With the
refusal last, or one answer alone, the model refuses a third of all questions and answers hardly any."""
_CITED = re.compile(r"(.*?)\s*\[(\d+)\]\s*")
_FORM = re.compile(r"<answer>[^<>\[\]]+ \[\d+\]</answer>\s*")
_FACT = re.compile(r"\[(\d+)\] (.*)")


def is_missing(text: str) -> bool:
    """True for a fact that the tool never shows."""
    return int.from_bytes(hashlib.sha256(f"missing {text}".encode()).digest()[:4], "big") < MISSING * 2**32


def search(query: str) -> str:
    """Search the facts about countries and cities.

    Args:
        query: what to look for, in a few words
    """
    passages = searcher_for(INDEX).search(query, 4 * SHOWN)
    kept = [passage for passage in passages if not is_missing(passage.text)][:SHOWN]
    # In an order that tells nothing of the rank: the first fact is as often the wrong one as the others.
    kept.sort(key=lambda passage: hashlib.sha256(passage.text.encode()).digest())
    return "\n".join(f"[{passage.key}] {passage.text}" for passage in kept) or "nothing was found"


def rows(
    split: Literal["train", "heldout"] = "train",
    kind: str = "all",
    size: int = 300,
    seed: int = 0,
    examples: Sequence[int] = (0, 1, 2),
) -> list[dict[str, Any]]:
    """Rows of a `python` source: `prompt`, `answer` (`unknown` where the fact is missing) and the `fact` that supports
    it.

    Args:
        split: of the entities, train or heldout.
        kind: answerable, missing, or all.
        size: rows.
        seed: of their choice.
        examples: which worked episodes stand before each question.
    """
    if kind not in ("answerable", "missing", "all"):
        raise ValueError(f"kind = {kind!r}; expected answerable, missing or all")
    episodes = [EXAMPLES[4 * number : 4 * number + 4] for number in examples]
    opening = [{"role": role, "content": content} for episode in episodes for role, content in episode]
    chosen = []
    for row in geonames.questions(hops=1, split=split, size=6 * size, seed=seed):
        (fact,) = row["support"]
        missing = is_missing(fact)
        if kind == "all" or missing == (kind == "missing"):
            prompt = [*opening, {"role": "user", "content": row["question"]}]
            answer = UNKNOWN if missing else row["answer"]
            chosen.append({"prompt": prompt, "answer": answer, "fact": fact, "family": row["family"]})
    if len(chosen) < size:
        raise ValueError(f"there are {len(chosen)} such questions, fewer than size = {size}")
    return chosen[:size]


def right(
    completions: Sequence[str],
    answer: Sequence[str],
    fact: Sequence[str],
    completion_messages: Sequence[Messages | None] | None = None,
) -> list[float]:
    """1 for the gold answer with the id of the fact that supports it, which a search showed; where the fact is missing,
    for `unknown` after a search that showed something."""
    values = []
    for text, gold, support, shown in zip(
        completions, answer, fact, _shown(completions, completion_messages), strict=True
    ):
        value, source = cited(text)
        if gold == UNKNOWN:
            values.append(float(bool(shown) and source is None and same_text(value, UNKNOWN, casefold=True)))
        else:
            values.append(float(same_text(value, gold, casefold=True) and shown.get(source) == support))
    return values


def correct(completions: Sequence[str], answer: Sequence[str]) -> list[float | None]:
    """1 for the gold answer, whatever is cited; None where the fact is missing."""
    return [
        None if gold == UNKNOWN else float(same_text(cited(text)[0], gold, casefold=True))
        for text, gold in zip(completions, answer, strict=True)
    ]


def faithful(
    completions: Sequence[str], completion_messages: Sequence[Messages | None] | None = None
) -> list[float | None]:
    """1 where the cited fact was shown and holds what the answer says, 0 where not; None for `unknown`."""
    values: list[float | None] = []
    for text, shown in zip(completions, _shown(completions, completion_messages), strict=True):
        value, source = cited(text)
        if same_text(value, UNKNOWN, casefold=True):
            values.append(None)
        else:
            values.append(float(bool(value) and holds(shown.get(source, ""), value)))
    return values


def source(
    completions: Sequence[str],
    answer: Sequence[str],
    fact: Sequence[str],
    completion_messages: Sequence[Messages | None] | None = None,
) -> list[float | None]:
    """1 where the fact that supports the gold answer is cited, and was shown; None where it is missing."""
    return [
        None if gold == UNKNOWN else float(shown.get(cited(text)[1]) == support)
        for text, gold, support, shown in zip(
            completions, answer, fact, _shown(completions, completion_messages), strict=True
        )
    ]


def form(completions: Sequence[str], answer: Sequence[str]) -> list[float | None]:
    """1 for an answer in its tags with one id; None where the fact is missing: nothing but a refusal pays there."""
    return [
        None if gold == UNKNOWN else float(_FORM.fullmatch(text) is not None)
        for text, gold in zip(completions, answer, strict=True)
    ]


def refused(completions: Sequence[str]) -> list[float]:
    """1 where the answer is `unknown`."""
    return [float(same_text(cited(text)[0], UNKNOWN, casefold=True)) for text in completions]


def cited(completion: str) -> tuple[str, str | None]:
    """What an answer says, and the id that it cites; None without one, or with several.

    >>> cited("<answer>1894 [57]</answer>"), cited("<answer>unknown</answer>")
    (('1894', '57'), ('unknown', None))
    """
    text = extract_answer(completion)
    match = _CITED.fullmatch(text)
    return (match[1], match[2]) if match and "[" not in match[1] else (text, None)


def _shown(
    completions: Sequence[str], completion_messages: Sequence[Messages | None] | None
) -> Iterator[dict[str | None, str]]:
    """Facts that the searches of each episode showed, by their ids."""
    for messages in completion_messages or [None] * len(completions):
        texts = [str(message["content"]) for kind, message in results(messages or ()) if kind is None]
        yield {match[1]: match[2] for text in texts for match in map(_FACT.fullmatch, text.splitlines()) if match}


def worked(size: int = 160, seed: int = 1) -> list[dict[str, Any]]:
    """Rows of a `python` source for a fine-tuning: `messages` of episodes that search once, and then cite the fact that
    answers, or refuse where it is missing; answer and refusal in turn.

    What a search showed is what the tool shows; a question whose fact it does not show is left out.

    Args:
        size: most rows.
        seed: of their choice.
    """
    answered, refused = (
        [episode for row in rows("train", kind, size, seed, examples=()) if (episode := _worked(row))]
        for kind in ("answerable", "missing")
    )
    return [{"messages": episode} for pair in zip(answered, refused, strict=False) for episode in pair][:size]


def _worked(row: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """The episode of one row; None where the search does not show the fact."""
    question = row["prompt"][-1]["content"]
    query = question.removeprefix("What is the ").rstrip("?")
    shown = search(query)
    facts = {match[2]: match[1] for match in map(_FACT.fullmatch, shown.splitlines()) if match}
    answer = UNKNOWN
    if row["answer"] != UNKNOWN:
        if row["fact"] not in facts:
            return None
        answer = f"{row['answer']} [{facts[row['fact']]}]"
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"<search>{query}</search>"},
        {"role": "tool", "content": shown},
        {"role": "assistant", "content": f"<answer>{answer}</answer>"},
    ]
