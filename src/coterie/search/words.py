"""Words of queries and passages: what a search reads, and how often what it gives holds the answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from coterie.search.index import Searcher

LONGEST = 1000
"""Characters of a query that are read."""
WORDS = 32
"""Words of a query that are read."""
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by did do does for from had has have how in into is it its of on or that the their this "
        "to was were what when where which who whose why will with",
    )
)


def query_words(query: str) -> list[str]:
    """Words of a query without stop words, each once.

    >>> query_words("What is the capital of the Azores?"), query_words("what is it")
    (['capital', 'azores'], ['what', 'is', 'it'])
    """
    words = list(dict.fromkeys(re.findall(r"\w+", query[:LONGEST].casefold())))
    return ([word for word in words if word not in _STOP] or words)[:WORDS]


def text_words(text: str) -> list[str]:
    """Words of a text as they come, without stop words, case and accents.

    >>> text_words("The Müritz is a lake")
    ['muritz', 'lake']
    """
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return [word for word in re.findall(r"\w+", plain.casefold()) if word not in _STOP]


def holds(text: str, gold: str) -> bool:
    """True if a text holds an answer: its words in this order, without regard to case, accents of punctuation apart.

    >>> holds("The area of Andorra is 468 square kilometres.", "468"), holds("It is 4,680.", "468")
    (True, False)
    """
    words, target = re.findall(r"\w+", text.casefold()), re.findall(r"\w+", gold.casefold())
    return bool(target) and any(words[at : at + len(target)] == target for at in range(len(words) - len(target) + 1))


def recall(searcher: Searcher, questions: Sequence[tuple[str, str]], ks: Sequence[int]) -> dict[int, float]:
    """Share of (question, answer) pairs of which one of the first k passages holds the answer, by k.

    The question itself is the query; an answer is held where its words follow each other in title or text.
    """
    hits = dict.fromkeys(ks, 0)
    for question, gold in questions:
        passages = searcher.search(question, max(ks))
        first = next((rank for rank, passage in enumerate(passages, 1) if holds(passage.contents, gold)), None)
        for k in ks:
            hits[k] += first is not None and first <= k
    return {k: count / len(questions) for k, count in hits.items()} if questions else {}
