"""Settings with one thing wrong, made from the schema: every one must be refused by the name of its key."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from coterie.config.keys import MISSING, Setting, bare, leaves, tag_of, union_members
from coterie.config.load import load
from coterie.config.toml import dumps
from coterie.errors import ConfigError
from faults.cases import Case

SLOWEST = 1.0
"""Seconds of processor time that a refusal may take."""
SOURCES: list[dict[str, Any]] = [
    {"type": "file", "path": "a.jsonl"},
    {"type": "reasoning_gym", "name": "leg_counting"},
    {"type": "hub", "name": "openai/gsm8k"},
    {"type": "asset", "name": "gsm8k-100"},
    {"type": "python", "target": "mine:rows"},
]
BASE: dict[str, Any] = {
    "data": {"train": SOURCES, "heldout": SOURCES},
    "model": {"name": "x", "lora": {"rank": 4}},
    "rewards": {"functions": [{"name": "exact"}], "steps": [{"name": "arithmetic"}]},
    "stop": {"rules": [{"name": "kl_above"}]},
}
WRONG: dict[Any, list[Any]] = {
    int: ["x", "3", 1.5, [], [1], {"a": 1}, math.nan, True],
    float: ["x", "1e-6", [], [0.5], {"a": 1}, math.nan, math.inf, -math.inf, True],
    bool: ["yes", "true", 1, 0.0, [], {"a": 1}],
    str: [3, 1.5, True, [], ["x"], {"a": 1}],
    list: ["x", 3, True, {"a": 1}, [[]]],
    dict: ["x", 3, True, [1]],
    Literal: ["nonsense", 3, True, [], {"a": 1}],
}
"""Kind of setting → values of other kinds."""
RULES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("more passes than attempts", {"eval": {"k": 9, "samples": 2}}, ["eval.k", "eval.samples"]),
    ("an evaluated part that is none", {"eval": {"reward": "absent"}}, ["eval.reward"]),
    (
        "more minibatches than rollouts",
        {"optim": {"minibatches": 99}, "collect": {"prompts_per_step": 2, "group_size": 2}},
        ["optim.minibatches"],
    ),
    ("no reward", {"rewards": {"functions": []}}, ["rewards.functions"]),
    (
        "two parts of one name",
        {"rewards": {"functions": [{"name": "exact"}, {"name": "exact"}]}},
        ["rewards.functions"],
    ),
    ("a source of no type", {"data": {"train": [{"path": "x"}]}}, ["data.train.0.type"]),
    ("a source of another type", {"data": {"train": [{"type": "fiel", "path": "x"}]}}, ["data.train.0.type"]),
    ("an empty stop string", {"sampling": {"stop": [""]}}, ["sampling.stop"]),
]
FILES: dict[str, tuple[bytes, str]] = {
    "a key twice": (b"steps = 1\nsteps = 2\n", "given twice"),
    "a table twice": (b"[optim]\nlr = 1\n[optim]\nlr = 2\n", "given twice"),
    "Latin-1": ('name = "né"'.encode("latin-1"), "not UTF-8"),
    "UTF-16": ('name = "x"'.encode("utf-16"), "UTF-16"),
    "a value without end": (b'name = "x', "not valid TOML"),
    "YAML": (b"steps: 3\n", "not valid TOML"),
    "JSON": (b'{"steps": 3}\n', "not valid TOML"),
    "nothing but a NUL": (b"\0", "not valid TOML"),
    "a date": (b"name = 2026-01-01\n", "name"),
    "lists without end": (b"steps = " + b"[" * 20_000 + b"]" * 20_000, "too deeply"),
    "tables without end": (b"a" + b".a" * 5_000 + b" = 1\n", "too deeply"),
    "a number of 10,000 digits": (b"steps = " + b"9" * 10_000 + b"\n", ""),
    "five MiB": (b"#" * (5 << 20), "larger than"),
    "20,000 keys": (b"".join(b"k%d = 1\n" % k for k in range(20_000)), "unknown setting k0"),
    "a key of 100,000 letters": (b"a" * 100_000 + b" = 1\n", "unknown setting"),
    "text of a million letters": (b'seed = "' + b"a" * 1_000_000 + b'"\n', "seed"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A file with one thing wrong."""

    name: str
    data: bytes
    keys: tuple[str, ...]
    """What the refusal must name."""


def mutants() -> Iterator[Mutant]:
    """Always the same ones, in the same order."""
    for setting in leaves():
        yield from _of_setting(setting, _place(setting))
    for name, table, keys in RULES:
        yield Mutant(name=name, data=dumps(table).encode(), keys=tuple(keys))
    for name, (data, key) in FILES.items():
        yield Mutant(name=name, data=data, keys=(key,))


def _place(setting: Setting) -> tuple[str, ...]:
    """Where the setting stands in `BASE`: a source's in the first source of its type."""
    number = 0
    if setting.key.startswith("data."):
        tags = [source["type"] for source in SOURCES]
        tag = tag_of(setting.section)
        number = tags.index(tag) if tag in tags else 0
    return tuple(str(number) if part == "*" else part for part in setting.key.split("."))


def _of_setting(setting: Setting, path: tuple[str, ...]) -> Iterator[Mutant]:
    key = ".".join(path)
    if path[-1] == "type":
        return
    for value in (*_wrong(setting), *_out_of_range(setting)):
        yield _mutant(f"{key} = {value!r:.40}", path, value, key)
    for other in (path[-1] + "s", path[-1][:-1] or "q", path[-1].upper(), "un" + path[-1]):
        misspelt = (*path[:-1], other)
        yield _mutant(f"{'.'.join(misspelt)} for {key}", misspelt, setting.default, ".".join(misspelt))
    if setting.default is MISSING:
        yield _mutant(f"{key} left out", path, None, key)


def _mutant(name: str, path: tuple[str, ...], value: Any, key: str) -> Mutant:
    table = copy.deepcopy(BASE)
    parent: Any = table
    for part in path[:-1]:
        parent = parent[int(part)] if isinstance(parent, list) else parent.setdefault(part, {})
    if value is None and path[-1] in parent:
        del parent[path[-1]]
    else:
        parent[path[-1]] = 1 if value is MISSING or value is None else value
    return Mutant(name=name, data=dumps(table).encode(), keys=(key,))


def _wrong(setting: Setting) -> list[Any]:
    kind = bare(setting.kind)
    members = [bare(member) for member in union_members(kind) if member is not type(None)]
    if len(members) > 1 or "module:function" in setting.expected:  # a list of names, or one word
        return ["nonsense", 3, True, [3]]
    if kind is Any:
        return []
    origin = get_origin(kind) or kind
    if origin is Literal:
        return WRONG[Literal]
    values = WRONG[origin]
    if origin is list and bare(get_args(kind)[0]) is str:
        values = [*values, [3], [True]]
    return values


def _out_of_range(setting: Setting) -> Iterator[Any]:
    field = setting.section.model_fields[setting.key.rsplit(".", 1)[-1]]
    step = 1 if bare(setting.kind) is int else 1e-9
    for item in field.metadata:
        if (low := getattr(item, "ge", None)) is not None:
            yield from (low - step, -(10**6))
        if (low := getattr(item, "gt", None)) is not None:
            yield from (low, -1 if step == 1 else -1.0)
        if (high := getattr(item, "le", None)) is not None:
            yield from (high + step, 10**6 if step == 1 else 1e6)
        if (high := getattr(item, "lt", None)) is not None:
            yield from (high, 10**6 if step == 1 else 1e6)


def refused() -> Iterator[Case]:
    """All of them, one after the other in this process."""
    load(["@", str(_write(dumps(BASE).encode()))], env={})  # the base itself is right
    problems, slowest, count = [], 0.0, 0
    for mutant in mutants():
        count += 1
        file = _write(mutant.data)
        began = time.process_time()  # this machine may have other things to do
        problem = _accepted(mutant, file)
        seconds = time.process_time() - began
        slowest = max(slowest, seconds)
        if problem is None and seconds > SLOWEST:
            problem = f"refused only after {seconds:.1f} s"
        if problem is not None:
            problems.append(f"{mutant.name}: {problem}")
            yield Case(section="configs", name=mutant.name, problem=problem, facts=_facts(1, 0, seconds))
    yield Case(section="configs", name="all", problem=None, facts=_facts(count, count - len(problems), slowest))


def _facts(count: int, good: int, seconds: float) -> dict[str, Any]:
    return {"mutants": count, "refused": good, "slowest_ms": round(1000 * seconds)}


def _write(data: bytes) -> Path:
    file = Path(tempfile.gettempdir()) / "coterie-mutant.toml"
    file.write_bytes(data)
    return file


def _accepted(mutant: Mutant, file: Path) -> str | None:
    try:
        load(["@", str(file)], env={})
    except ConfigError as error:
        missing = [word for word in mutant.keys if word not in str(error)]
        return f"the refusal does not name {missing[0]}: {str(error)[:200]}" if missing else None
    except Exception as error:
        return f"raised {type(error).__name__}: {str(error)[:200]}"
    return "accepted"
