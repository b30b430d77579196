"""What was known of a prompt when its rollout was sent out, as columns of the rollout files, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from coterie.runs.durable import utf8
from coterie.types import Context, Dispatch

COUNTED = ("length", "digits", "operators", "numbers", "steps", "tools")
COMPLEXITY = pa.struct([(name, pa.int32()) for name in COUNTED])

_DISPATCH = {
    "policy_time": ("time", pa.float64()),
    "past_tries": ("tries", pa.int32()),
    "past_pass": ("passed", pa.float64()),
    "past_reward": ("reward", pa.float64()),
    "past_length": ("length", pa.float64()),
    "task_tries": ("task_tries", pa.int32()),
    "task_pass": ("task_passed", pa.float64()),
    "task_reward": ("task_reward", pa.float64()),
    "expected": ("expected", pa.float64()),
    "expected_std": ("expected_std", pa.float64()),
    "region": ("region", pa.string()),
}
"""Column → (field of `Dispatch`, type)."""

CONTEXT: list[tuple[str, pa.DataType]] = [
    ("source", pa.string()),
    ("domain", pa.string()),
    ("complexity", COMPLEXITY),
    *((name, kind) for name, (_, kind) in _DISPATCH.items()),
]
REPEATED_FACTS = ["source", "domain", "region"]


def to_columns(context: Context) -> dict[str, Any]:
    """The columns of `CONTEXT`."""
    known = context.dispatch
    found: dict[str, Any] = {
        "source": utf8(context.source),
        "domain": utf8(context.domain),
        "complexity": dict(context.complexity) or None,
    }
    for name, (field, _) in _DISPATCH.items():
        found[name] = None if known is None else getattr(known, field)
    return found | {"region": utf8(found["region"])}


def from_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Context`; a file of format 1 lacks the columns."""
    known = None
    if row.get("policy_time") is not None:
        known = Dispatch(**{field: row[name] for name, (field, _) in _DISPATCH.items()})
    return {
        "source": row.get("source") or "",
        "domain": row.get("domain"),
        "complexity": row.get("complexity") or {},
        "dispatch": known,
    }
