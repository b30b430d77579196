"""Procedural tasks of reasoning-gym, each with its own scorer.

An item carries its whole entry as JSON, so a worker process can score it without generating it again. No torch.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from io import StringIO
from types import ModuleType
from typing import Any, TypeGuard

from coterie.data.answers import cut_in_thought, extract_answer
from coterie.data.characters import plain_words
from coterie.data.numerals import parse_number
from coterie.data.stand_ins import stand_ins
from coterie.errors import DataError, install_command
from coterie.text import did_you_mean

# Python values as JSON and back: tuples, sets and tables with other than text keys carry a tag.


def encode(value: Any) -> Any:
    """JSON form of a Python value, from which `decode` restores it."""
    if value is None or isinstance(value, bool | int | float | str):
        # A subclass such as numpy's str_ or an IntEnum becomes the plain type.
        kinds = (bool, int, float, str)
        return next((kind(value) for kind in kinds if isinstance(value, kind)), None)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"__tuple__": [encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {
            "__frozenset__" if isinstance(value, frozenset) else "__set__": sorted(
                (encode(item) for item in value), key=repr
            )
        }
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {str(key): encode(item) for key, item in value.items()}
        return {"__pairs__": [[encode(key), encode(item)] for key, item in value.items()]}
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return encode(value.tolist())
    return str(value)


def decode(value: Any) -> Any:
    """Inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "__tuple__" in value:
        return tuple(decode(value["__tuple__"]))
    if "__set__" in value:
        return set(decode(value["__set__"]))
    if "__frozenset__" in value:
        return frozenset(decode(value["__frozenset__"]))
    if "__pairs__" in value:
        return {decode(key): decode(item) for key, item in value["__pairs__"]}
    return {key: decode(item) for key, item in value.items()}


ATTRIBUTE = "reasoning_gym"
"""Key of `Prompt.attributes` under which an item's entry travels."""

HASH_ORDERED = frozenset(
    {
        "codeio",
        "intermediate_integration",
        "isomorphic_strings",
        "knight_swap",
        "list_functions",
        "polynomial_multiplication",
        "ransom_note",
        "word_ladder",
    }
)
"""Generators of 0.1.25 that iterate over sets of text, so their items change with Python's hash seed (measured on 25
items each under two seeds). They run in a child process with a fixed hash seed, or no run could be repeated."""

_CHILD_DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One generated question."""

    index: int
    question: str
    answer: str | None
    """None where any answer that fulfils the conditions is right."""
    attributes: dict[str, Any]
    """JSON: under `reasoning_gym` the recipe, the index and the encoded entry, which is what `score` needs."""


def names() -> list[str]:
    """Every generator, sorted."""
    return sorted(_gym().factory.DATASETS)


def items(name: str, params: Mapping[str, Any], size: int, seed: int) -> Iterator[Item]:
    """Items 0 … size-1; equal arguments give equal items in any process, on any machine with the same package.

    Args:
        name: generator, e.g. `leg_counting`.
        params: the generator's own settings, e.g. {"max_animals": 3}.
        seed: different seeds give different random streams; the number is not reasoning-gym's own seed.

    Raises:
        DataError: reasoning-gym is missing, the generator or a setting is unknown, or a setting is refused.
    """
    recipe = {"name": name, "params": dict(params), "size": size, "seed": seed}
    _dataset(json.dumps(recipe, sort_keys=True))  # refuses a bad recipe before anything is generated
    parts = {name, *(part["name"] for part in params.get("datasets", []) if name == "composite")}
    elsewhere = parts & HASH_ORDERED and os.environ.get("PYTHONHASHSEED") != "0"
    return _items(recipe, _child_entries(recipe) if elsewhere else _entries(recipe))


def _items(recipe: Mapping[str, Any], entries: Iterator[dict[str, Any]]) -> Iterator[Item]:
    for index, entry in enumerate(entries):
        answer = entry["answer"]
        yield Item(
            index=index,
            question=entry["question"],
            answer=None if answer is None else str(answer),
            attributes={ATTRIBUTE: {**recipe, "index": index, "entry": entry}},
        )


def is_item(record: object) -> TypeGuard[Mapping[str, Any]]:
    """True for the record of an item, as opposed to a column of the data with the same name."""
    return isinstance(record, Mapping) and {"name", "params", "size", "seed", "entry"} <= record.keys()


def score(attributes: Mapping[str, Any], completion: str) -> float:
    r"""Score of a completion by the generator's own scorer: 0 … 1, often 0.01 or 0.05 for a well-formed wrong answer.

    The judged answer is that of `answers.extract_answer`: what stands in the last `<answer>…</answer>`, else in
    the last `\boxed{…}`, else after `####`, else the whole completion, stripped. An answer in LaTeX or in other
    characters than ASCII (`−5`, `４２`, `$42$`) is judged in the plain spelling too, and the higher score counts. A
    completion that ends inside its thought scores 0.

    Args:
        attributes: of the prompt; they may have been through JSON.
    """
    record = attributes.get(ATTRIBUTE)
    if not is_item(record):
        raise DataError(
            f"this prompt is not an item of a reasoning-gym source (its {ATTRIBUTE!r} is {record!r:.60}); use another "
            "reward, such as `number` or `exact`, for the other sources"
        )
    recipe = {key: record[key] for key in ("name", "params", "size", "seed")}
    dataset = _dataset(json.dumps(recipe, sort_keys=True))
    if cut_in_thought(completion):
        return 0.0
    try:
        with _quiet():
            return _score(dataset, extract_answer(completion), decode(record["entry"]))
    except Exception as error:  # somebody else's scorer on a model's text: it can raise anything
        raise DataError(
            f"the scorer of {record['name']} failed on {completion[:60]!r}: {type(error).__name__}: {error}"
        ) from error


def _score(dataset: Any, answer: str, entry: Mapping[str, Any]) -> float:
    """Score of the answer as it stands, and of its plain spelling where that differs."""
    value = float(dataset.score_answer(answer, entry))
    if value < 1 and (not answer.isascii() or any(sign in answer for sign in "\\$")):
        plain, number = plain_words(answer), parse_number(answer)
        # A fraction or a decimal stays as it is written: the question may ask for that form.
        if (
            number is not None
            and not number.percent
            and number.value.denominator == 1
            and not set(plain) & set("./^eE")
        ):
            plain = str(number.value)
        if plain != answer:
            value = max(value, float(dataset.score_answer(plain, entry)))
    return value


@lru_cache(maxsize=1)
def _gym() -> ModuleType:
    try:
        with _quiet(), stand_ins():
            import reasoning_gym
            import reasoning_gym.factory
    except ImportError as error:
        raise DataError(
            f"reasoning_gym sources need the package reasoning-gym ({error}): {install_command('train,tasks')}"
        ) from error
    return reasoning_gym


@lru_cache(maxsize=64)
def _dataset(recipe: str) -> Any:
    """Generator of a recipe in JSON."""
    request = json.loads(recipe)
    name, params = request["name"], dict(request["params"])
    registry = _gym().factory.DATASETS
    if name not in registry:
        near = get_close_matches(name, registry, n=3) or sorted(registry)[:5]
        raise DataError(
            f"reasoning-gym has no generator {name!r}; the nearest of its {len(registry)} are {', '.join(near)}"
        )
    parameters = sorted(field.name for field in fields(registry[name][1]) if field.name not in ("seed", "size"))
    for key in params:
        if key not in parameters:
            raise DataError(
                f"the generator {name} has no parameter {key!r}; it has {', '.join(parameters) or 'none'}"
                f"{did_you_mean(key, parameters)}"
            )
    if name == "composite":
        params["datasets"] = [_part(part) for part in params.get("datasets", [])]
    try:
        with _fixed_randomness(f"{name}/{request['seed']}"), _quiet():
            return _gym().create_dataset(name, size=request["size"], seed=_stream(request["seed"]), **params)
    except Exception as error:  # its validation asserts, and its code trusts the types
        raise DataError(
            f"the generator {name} refuses {params}: {str(error) or type(error).__name__}; its parameters are "
            f"{', '.join(parameters) or 'none'}"
        ) from error


def _stream(seed: int) -> int:
    """Seed for reasoning-gym, which draws item i from seed + i: its seeds 0 and 1 share all items but one."""
    return seed * 1_000_003 % 2**31


def _part(spec: Any) -> Any:
    from reasoning_gym.composite import DatasetSpec

    if not isinstance(spec, Mapping) or "name" not in spec:
        raise DataError(f"composite needs datasets = [{{name = …, weight = 1.0, config = {{}}}}, …], got {spec!r}")
    return DatasetSpec(name=spec["name"], weight=float(spec.get("weight", 1)), config=dict(spec.get("config", {})))


def _entries(recipe: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Encoded entries, one by one."""
    dataset = _dataset(json.dumps(recipe, sort_keys=True))
    for index in range(recipe["size"]):
        try:
            # Two generators draw from the global generator in spite of their seed.
            with _fixed_randomness(f"{recipe['name']}/{recipe['seed']}/{index}"), _quiet():
                entry = dataset[index]
        except Exception as error:  # somebody else's code on the user's parameters
            raise DataError(
                f"the generator {recipe['name']} failed on item {index} with {dict(recipe['params'])}: "
                f"{type(error).__name__}: {error}; check its parameters"
            ) from error
        yield encode({key: entry[key] for key in ("question", "answer", "metadata")})


def _child_entries(recipe: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-c", "from coterie.data.tasks import _child; _child()"]
    environment = os.environ | {
        "PYTHONHASHSEED": "0",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONWARNINGS": "ignore",
    }
    try:
        done = subprocess.run(
            command,
            input=json.dumps(recipe),
            capture_output=True,
            encoding="utf-8",
            env=environment,
            timeout=_CHILD_DEADLINE_S,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"{recipe['name']} did not generate {recipe['size']} items within {_CHILD_DEADLINE_S:.0f} s; lower size"
        ) from error
    lines = done.stdout.splitlines()
    if done.returncode != 0 or len(lines) != recipe["size"]:
        reason = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise DataError(f"the generator {recipe['name']} failed in its own process: {reason}")
    return map(json.loads, lines)


def _child() -> None:
    for entry in _entries(json.loads(sys.stdin.read())):
        print(json.dumps(entry))


@contextmanager
def _fixed_randomness(key: str) -> Generator[None]:
    state = random.getstate()
    random.seed(key)
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _quiet() -> Generator[None]:
    """Context without warnings and prints: dependencies warn of invalid syntax, and one generator prints dots."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
