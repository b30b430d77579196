"""reasoning-gym: every generator, scored by its own rules from JSON alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.data import tasks
from coterie.data.tasks import decode, encode
from coterie.errors import DataError


def first(name: str, *, seed: int = 1, size: int = 2, **params: Any) -> tasks.Item:
    return next(iter(tasks.items(name, params, size, seed)))


def through_json(item: tasks.Item) -> dict[str, Any]:
    return json.loads(json.dumps(item.attributes, allow_nan=False))


def test_all_generators_are_there() -> None:
    names = tasks.names()
    assert len(names) >= 100
    assert {"leg_counting", "chain_sum", "gsm_symbolic"} <= set(names)
    assert set(names) >= tasks.HASH_ORDERED


SAMPLE = [
    "leg_counting",
    "chain_sum",
    "gsm_symbolic",
    "graph_color",
    "knights_knaves",
    "countdown",
    "bf",
    "tower_of_hanoi",
]


@pytest.mark.parametrize("name", SAMPLE)
def test_gold_answers_score_one_after_a_trip_through_json(name: str) -> None:
    for item in tasks.items(name, {}, 2, 5):
        if item.answer is not None:
            assert tasks.score(through_json(item), f"So <answer>{item.answer}</answer>") == 1
        assert tasks.score(through_json(item), "") < 1


def test_equal_arguments_give_equal_items_and_leave_the_global_generator_alone() -> None:
    random.seed(5)
    before = random.getstate()
    items = list(tasks.items("chain_sum", {"max_terms": 3}, 4, 9))
    assert random.getstate() == before
    assert items == list(tasks.items("chain_sum", {"max_terms": 3}, 4, 9))
    fewer = tasks.items("chain_sum", {"max_terms": 3}, 2, 9)
    assert [item.question for item in fewer] == [item.question for item in items[:2]]
    assert items[0].question != first("chain_sum", seed=10).question


ELSEWHERE = """
import json, sys
from coterie.data.tasks import items, score
attributes, completion = json.load(sys.stdin)
print(json.dumps([score(attributes, completion), next(iter(items("ransom_note", {}, 2, 7))).question]))
"""


def test_another_process_scores_alike_and_generates_alike_in_spite_of_the_hash_seed() -> None:
    assert "ransom_note" in tasks.HASH_ORDERED
    here, ordered = first("leg_counting"), first("ransom_note", seed=7)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE],
        input=json.dumps([here.attributes, here.answer]),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "0"},
    )
    assert json.loads(done.stdout) == [1.0, ordered.question]
    assert tasks.score(ordered.attributes, str(ordered.answer)) == 1


def test_neighbouring_seeds_share_no_items() -> None:
    questions = {item.question for item in tasks.items("chain_sum", {}, 50, 0)}
    assert not questions & {item.question for item in tasks.items("chain_sum", {}, 50, 1)}


def test_an_answer_in_other_characters_is_the_same_and_a_cut_thought_is_none() -> None:
    item = first("chain_sum", min_terms=2, max_terms=2, size=30)
    answer = str(item.answer)
    wide = answer.translate({ord("-"): "−"} | {48 + k: chr(0xFF10 + k) for k in range(10)})
    for text in (wide, f"\\boxed{{{wide}}}", f"${answer}$", f"7</think>{answer}", f"<answer>{wide}</answer>"):
        assert tasks.score(item.attributes, text) == 1, text
    for text in (f"<think>{answer}", f"<think>\\boxed{{{answer}}}", f"[THINK]<answer>{answer}</answer>"):
        assert tasks.score(item.attributes, text) == 0, text
    half = first("fraction_simplification")
    assert tasks.score(half.attributes, "２/４") < 1  # the form that the question asks for still counts


def test_partial_credit_is_kept_as_the_generator_gives_it() -> None:
    item = first("chain_sum")
    assert 0 < tasks.score(item.attributes, f"I think that it is {item.answer}, more or less") < 1


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("leg_countin", {}, "no generator 'leg_countin'; the nearest of its 1[0-9]+ are leg_counting"),
        ("zzzzzz", {}, "no generator 'zzzzzz'; the nearest"),
        (
            "leg_counting",
            {"max_animal": 3},
            "no parameter 'max_animal'; it has .*max_animals.*; did you mean 'max_animals'",
        ),
        ("leg_counting", {"seed": 3}, "no parameter 'seed'"),
        ("leg_counting", {"max_animals": 0}, "refuses .*max_animals must be >= min_animals; its parameters are"),
        ("leg_counting", {"max_animals": "x"}, "refuses {'max_animals': 'x'}: '>=' not supported"),
        ("leg_counting", {"min_animals": 2.5, "max_animals": 3}, "failed on item 0 with .*check its parameters"),
        ("composite", {}, "Must specify at least one dataset"),
        ("composite", {"datasets": [3]}, "composite needs datasets = .* got 3"),
    ],
)
def test_bad_recipes_are_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(tasks.items(name, params, 1, 1))


def test_a_composite_takes_tables_from_the_settings() -> None:
    item = first("composite", datasets=[{"name": "leg_counting", "config": {"max_animals": 3}}, {"name": "chain_sum"}])
    assert tasks.score(through_json(item), str(item.answer)) == 1


def test_prompts_of_other_sources_have_no_scorer_of_their_own() -> None:
    with pytest.raises(
        DataError, match=r"is not an item of a reasoning-gym source .*use another reward, such as `number`"
    ):
        tasks.score({"difficulty": 3}, "4")


def test_a_scorer_that_fails_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    item = first("chain_sum")
    broken = {**item.attributes["reasoning_gym"], "entry": {"question": "?"}}
    with pytest.raises(DataError, match="the scorer of chain_sum failed on '4': KeyError"):
        tasks.score({"reasoning_gym": broken}, "4")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks._gym.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match=r"need the package reasoning-gym .*train,tasks"):
        tasks.names()
    monkeypatch.undo()
    tasks._gym.cache_clear()


HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HASHABLE, inner, max_size=3) | st.tuples(inner),
    max_leaves=10,
)


@given(VALUES)
def test_tagged_json_comes_back_as_the_same_value(value: Any) -> None:
    assert repr(_ordered(decode(json.loads(json.dumps(encode(value)))))) == repr(_ordered(value))


def _ordered(value: Any) -> Any:
    """Sets print in any order; lists of their sorted members do not."""
    if isinstance(value, dict):
        return [(_ordered(key), _ordered(item)) for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted((_ordered(item) for item in value), key=repr)
    return type(value)(map(_ordered, value)) if isinstance(value, list | tuple) else value


def test_numpy_values_become_plain_ones() -> None:
    import numpy as np

    assert encode({"a": np.int64(3), "b": np.array([[1.5]]), "c": np.str_("x")}) == {"a": 3, "b": [[1.5]], "c": "x"}
    assert type(encode(np.str_("x"))) is str


WITHOUT = """
import importlib.machinery, sys
from coterie.data import tasks
from coterie.data.stand_ins import PACKAGES
from coterie.errors import DataError
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.partition(".")[0] in PACKAGES else find(name, *rest)
)
for name in tasks.names():
    if name == "composite":
        continue
    try:
        list(tasks._entries({"name": name, "params": {}, "size": 2, "seed": 0}))
    except DataError as error:
        print(name, next((package for package in PACKAGES if f"pip install {package}" in str(error)), error))
assert not set(PACKAGES) & set(sys.modules)
"""


@pytest.mark.slow
def test_without_the_packages_of_a_few_generators_the_others_work() -> None:
    from coterie.data.stand_ins import PACKAGES

    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    failed = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert failed == {
        name: package for package, users in PACKAGES.items() for name in users.split(", ") if package != "zss"
    }
