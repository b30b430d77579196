"""What a prompt says of itself: where it came from, what it is about, how complex it looks."""

from __future__ import annotations

from typing import Any

from coterie.algo.grouping.features import counts
from coterie.types import Prompt

SUBJECTS = ("domain", "subject", "category", "topic")
"""Columns of a row that may name its domain; the first that does counts."""


def facts_of(prompt: Prompt) -> dict[str, Any]:
    """Source, domain and complexity: arguments of `Context`."""
    said = [prompt.attributes.get(name) for name in SUBJECTS]
    tools = prompt.attributes.get("tools")
    return {
        "source": prompt.source,
        "domain": next((text for text in said if isinstance(text, str) and text), None),
        "complexity": counts(prompt.messages[-1]["content"], len(tools) if isinstance(tools, list) else 0),
    }
