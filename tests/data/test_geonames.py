"""Facts of GeoNames as sentences, and questions about them, from a small world made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coterie.data import assets, facts, geonames
from coterie.data.geonames import EXAMPLES, is_held_out, questions
from coterie.errors import AssetError, DataError


def nation(name: str, number: int) -> dict[str, object]:
    return {
        "name": name,
        "capital": f"{name} City",
        "population": 1000 + number,
        "areakm2": 10.0 + number,
        "currencycode": f"C{number}",
        "phone": "1 and 2" if number == 0 else str(number),
        "tld": f".x{number}",
    }


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    nations = {str(number): nation(f"Land{number}", number) for number in range(40)}
    cities = {
        str(number): {"name": f"Town{number % 95}", "countrycode": str(number % 40), "population": 500 + number}
        for number in range(100)
    }
    (tmp_path / "countries.json").write_text(json.dumps(nations))
    (tmp_path / "cities15000.json").write_text(json.dumps(cities))
    facts.convert(tmp_path / "countries.json", tmp_path)
    monkeypatch.setattr(assets, "ensure", lambda name: tmp_path / facts.FILE)
    return tmp_path / facts.FILE


def test_facts_are_sentences_about_what_has_one_name(world: Path) -> None:
    rows = [json.loads(line) for line in world.read_text().splitlines()]
    texts = {row["text"] for row in rows}
    assert {"The area of Land3 is 13 square kilometres.", "The internet domain of Land3 is x3."} <= texts
    assert {"The city Town9 lies in Land9.", "The population of the city Town9 is 509."} <= texts
    assert not any("Town3 " in text for text in texts)  # two cities have this name
    assert len(rows) == 40 * 6 + 90 * 2
    assert [row["id"] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    assert not (world.parent / "cities15000.json").exists()


def test_questions_are_split_by_entity(world: Path) -> None:
    names = {split: " ".join(row["question"] for row in questions(1, split, 40)) for split in ("train", "heldout")}
    for number in range(40):
        split = "heldout" if is_held_out(f"Land{number}") else "train"
        other = "train" if split == "heldout" else "heldout"
        assert f"Land{number}?" not in names[other]
    assert questions(1, "train", 40)[:10] == questions(1, "train", 10)
    assert questions(1, "train", 10, seed=1) != questions(1, "train", 10)


def test_two_hops_need_both_facts_of_one_split(world: Path) -> None:
    for row in questions(2, "train", 60):
        first, second = row["support"]
        town, land = first.removeprefix("The city ").removesuffix(".").split(" lies in ")
        assert not is_held_out(town)
        assert not is_held_out(land)
        assert row["answer"] in second
        assert town in row["question"]
        assert land not in row["question"]
        assert " and " not in row["answer"]


def test_an_example_comes_before_the_question(world: Path) -> None:
    for hops in (1, 2):
        (row,) = questions(hops, "heldout", 1, example=True)
        (plain,) = questions(hops, "heldout", 1)
        assert [message["content"] for message in row["prompt"][:-1]] == [content for _, content in EXAMPLES[hops]]
        assert row["prompt"][-1] == {"role": "user", "content": plain["question"]}
        assert (row["answer"], "question" in row) == (plain["answer"], False)
        assert [message["role"] for message in row["prompt"][:4]] == ["user", "assistant", "tool", "assistant"]
        (other,) = questions(hops, "heldout", 1, example=True, role="user")
        assert [message["role"] for message in other["prompt"][:4]] == ["user", "assistant", "user", "assistant"]


def test_bad_params_and_files_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected 1 or 2, and train or heldout"):
        questions(3)
    with pytest.raises(DataError, match="fewer than size = 100000"):
        questions(1, "train", 100_000)
    (tmp_path / "cities15000.json").write_text("{}")
    (tmp_path / "countries.json").write_text('{"a": {"name": "b"}}')
    with pytest.raises(AssetError, match="another form than expected"):
        facts.convert(tmp_path / "countries.json", tmp_path)
    assert geonames.HELD_OUT == 0.3
