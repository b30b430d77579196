"""A name for what scores: it changes when the settings do, and when the source of a function of your own does."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path

from coterie.config.environment import EnvironmentConfig
from coterie.config.functions import search_path
from coterie.config.rewards import RewardsConfig
from coterie.rewards.by_value import is_by_value
from coterie.rewards.registry import BUILT_IN, STEPS


def identity(rewards: RewardsConfig, environment: EnvironmentConfig | None = None) -> str:
    """Equal for equal parts and steps, and an equal environment, whose modules read the same; deadlines and workers do
    not matter.

    A module is found where a worker looks for it, and read without being imported. What it imports in turn is not
    looked at, and one that is no Python file counts by its name.
    """
    settings = rewards.model_dump(mode="json", include={"parts", "steps"})
    for part in (*settings["parts"], *settings["steps"]):
        for form in ("completions", "prompts"):
            if part[form] == "auto":  # follows from the function, whose source is part of the name
                del part[form]
    if environment is not None and environment.talks:
        settings["environment"] = environment.model_dump(mode="json")
    named = [settings, sources(rewards, environment)]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def sources(rewards: RewardsConfig, environment: EnvironmentConfig | None = None) -> dict[str, str]:
    """For each `module:function` that scores, the sha256 of its module's file; empty text where there is no such file.

    Built-in functions are left out, and functions of a Python session, whose names have a hash of the code in them.
    """
    names = {part.name for part in (*rewards.parts, *rewards.steps)} - {*BUILT_IN, *STEPS}
    names = {name for name in names if not is_by_value(name)}
    if environment is not None and environment.talks and ":" in environment.name:
        names.add(environment.name)
    return {name: _digest(name.partition(":")[0]) for name in sorted(names)}


def _digest(module: str) -> str:
    places: Iterable[str] = [*search_path(), *filter(None, sys.path)]
    spec = None
    for name in _parents(module):
        spec = PathFinder.find_spec(name, list(places))
        if spec is None:
            return ""
        places = spec.submodule_search_locations or ()
    try:
        return "" if spec is None or spec.origin is None else hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    except OSError:
        return ""


def _parents(module: str) -> list[str]:
    """`a.b.c` → a, a.b, a.b.c."""
    names = module.split(".")
    return [".".join(names[: count + 1]) for count in range(len(names))]
