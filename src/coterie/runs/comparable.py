"""Whether the held-out results of two runs measure the same thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.observer import PASS

_EVALUATION = ("part", "correct_threshold", "temperature")
"""Settings under `eval` that change what is measured; `samples`, `k` and `limit` change how precisely."""


def differing(one: Mapping[str, Any], other: Mapping[str, Any], metric: str) -> list[str]:
    """Settings that keep two runs' held-out results from being compared; empty where they can be.

    Args:
        one: the settings of a run, as its config.toml holds them.
        other: those of the other run.
        metric: `PASS` is judged by the evaluated reward part alone, `REWARD` by all parts and their weights.
    """
    keys = ["environment.name", "environment.params", "data.heldout", *(f"eval.{name}" for name in _EVALUATION)]
    names = [key for key in keys if _at(one, key) != _at(other, key)]
    rewards = [_judging(config, metric) for config in (one, other)]
    return ([] if rewards[0] == rewards[1] else ["rewards.parts"]) + names


def _judging(config: Mapping[str, Any], metric: str) -> Any:
    parts = _at(config, "rewards.parts") or []
    if metric != PASS:
        return [(part.get("name"), part.get("params") or {}, part.get("weight", 1.0)) for part in parts]
    asked = _at(config, "eval.part")
    labels = [part.get("label") or str(part.get("name", "")).split(":")[-1] for part in parts]
    judging = [part for part, label in zip(parts, labels, strict=True) if label == asked] or parts[:1]
    return [(part.get("name"), part.get("params") or {}) for part in judging]


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value or None
