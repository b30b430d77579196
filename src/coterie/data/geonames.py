"""Questions about facts of GeoNames that need one search or two, with their answers.

Countries and cities are split between training and held-out questions by a hash of their names, so no held-out question
is about an entity of a training question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from coterie.data import assets
from coterie.data.facts import ASSET, CITY, COUNTRY
from coterie.errors import DataError

HELD_OUT = 0.3
"""Share of the entities that only held-out questions are about."""
TWO_HOPS = {
    "capital": "What is the capital of the country in which the city {name} lies?",
    "population": "What is the population of the country in which the city {name} lies?",
    "area": "What is the area of the country in which the city {name} lies?",
    "currency": "What is the currency code of the country in which the city {name} lies?",
    "phone": "What is the phone code of the country in which the city {name} lies?",
    "domain": "What is the internet domain of the country in which the city {name} lies?",
}
EXAMPLES: dict[int, tuple[tuple[str, str], ...]] = {
    1: (
        ("user", "What is the phone code of Ruritania?"),
        ("assistant", "<search>phone code of Ruritania</search>"),
        ("tool", "The phone code of Ruritania is 1894.\nThe capital of Ruritania is Strelsau."),
        ("assistant", "<answer>1894</answer>"),
    ),
    2: (
        ("user", "What is the phone code of the country in which the city Hentzau lies?"),
        ("assistant", "<search>country of the city Hentzau</search>"),
        ("tool", "The city Hentzau lies in Ruritania.\nThe population of the city Hentzau is 20816."),
        ("assistant", "<search>phone code of Ruritania</search>"),
        ("tool", "The phone code of Ruritania is 1894.\nThe capital of Ruritania is Strelsau."),
        ("assistant", "<answer>1894</answer>"),
    ),
}
"""(role, content) of one worked episode a number of hops, about a country that there is not."""


def is_held_out(name: str) -> bool:
    """True if held-out questions alone are about this entity."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < HELD_OUT * 2**32


def questions(
    hops: int = 1,
    split: Literal["train", "heldout"] = "train",
    size: int = 400,
    seed: int = 0,
    example: bool = False,
    role: Literal["tool", "user"] = "tool",
) -> list[dict[str, Any]]:
    """Rows of a `python` source: `question`, `answer`, and the facts that answer it; in ASCII, which a small model can
    copy.

    Args:
        hops: 1, about a fact of a country or city; 2, about a fact of the country in which a city lies.
        split: of the entities: of countries and cities alike, both hops belong to it.
        size: rows.
        seed: of their choice.
        example: put one worked episode, `EXAMPLES`, before each question: the column is then `prompt`, messages.
        role: of the messages with results in that episode, as `environment.params.role`.

    Raises:
        DataError: no such hops or split, or fewer questions than rows.
        AssetError: the facts cannot be fetched.
    """
    if hops not in (1, 2) or split not in ("train", "heldout"):
        raise DataError(f"hops = {hops!r} and split = {split!r}; expected 1 or 2, and train or heldout")
    facts = [fact for fact in _facts() if is_held_out(fact["subject"]) == (split == "heldout")]
    facts = [fact for fact in facts if fact["subject"].isascii() and fact["value"].isascii()]
    rows = list(_one_hop(facts) if hops == 1 else _two_hops(facts))
    # By hash, so that a longer list begins with the shorter one.
    rows.sort(key=lambda row: hashlib.sha256(f"{seed} {row['question']}".encode()).digest())
    chosen = _balanced(rows, size)
    if len(chosen) < size:
        raise DataError(f"there are {len(chosen)} questions of {hops} hops in {split}, fewer than size = {size}")
    return [_with_example(row, hops, role) for row in chosen] if example else chosen


def _with_example(row: dict[str, Any], hops: int, role: str) -> dict[str, Any]:
    messages = [{"role": role if by == "tool" else by, "content": content} for by, content in EXAMPLES[hops]]
    messages.append({"role": "user", "content": row["question"]})
    return {"prompt": messages, **{key: value for key, value in row.items() if key != "question"}}


def _facts() -> list[dict[str, str]]:
    with assets.ensure(ASSET).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _one_hop(facts: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    for fact in facts:
        if fact["relation"] == "country" or " and " in fact["value"]:
            continue  # few countries, which can be guessed; two phone codes, of which either would be right
        pattern = CITY["population"][1] if fact["kind"] == "city" else COUNTRY[fact["relation"]][2]
        family = f"{fact['kind']} {fact['relation']}"
        yield _row(pattern.format(name=fact["subject"]), fact["value"], family, [fact["text"]], 1)


def _two_hops(facts: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    of_country: dict[str, dict[str, dict[str, str]]] = {}
    for fact in facts:
        if fact["kind"] == "country":
            of_country.setdefault(fact["subject"], {})[fact["relation"]] = fact
    for fact in facts:
        if fact["relation"] == "country":
            for relation, second in of_country.get(fact["value"], {}).items():
                if " and " in second["value"]:
                    continue
                pattern, texts = TWO_HOPS[relation], [fact["text"], second["text"]]
                yield _row(pattern.format(name=fact["subject"]), second["value"], f"city {relation}", texts, 2)


def _row(question: str, answer: str, family: str, support: list[str], hops: int) -> dict[str, Any]:
    return {"question": question, "answer": answer, "family": family, "support": support, "hops": hops}


def _balanced(rows: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """The first rows with as many of each family as there are, families in turn."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    chosen: list[dict[str, Any]] = []
    for rank in range(max(map(len, families.values()), default=0)):
        for name in sorted(families):
            if rank < len(families[name]) and len(chosen) < size:
                chosen.append(families[name][rank])
    return chosen
