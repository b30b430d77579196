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
    own = [one.name for one in (*rewards.parts, *rewards.steps) if one.name not in BUILT_IN and one.name not in STEPS]
    own = [name for name in own if not is_by_value(name)]  # such a name has a hash of the code in it
    if environment is not None and environment.talks:
        settings["environment"] = environment.model_dump(mode="json")
        own += [environment.name] if ":" in environment.name else []
    sources = {name: _digest(name.partition(":")[0]) for name in sorted(set(own))}
    return hashlib.sha256(json.dumps([settings, sources], sort_keys=True).encode()).hexdigest()[:16]


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
