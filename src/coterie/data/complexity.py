"""Source, domain and complexity of a prompt."""

from __future__ import annotations

import re
from typing import Any

from coterie.types import Prompt

SUBJECTS = ("domain", "subject", "category", "topic")
"""Columns of a row that may name its domain; the first that does counts."""


def facts_of(prompt: Prompt) -> dict[str, Any]:
    """Source, domain and complexity: arguments of `Context`."""
    subjects = [prompt.attributes.get(name) for name in SUBJECTS]
    tools = prompt.attributes.get("tools")
    return {
        "source": prompt.source,
        "domain": next((text for text in subjects if isinstance(text, str) and text), None),
        "complexity": counts(prompt.messages[-1]["content"], len(tools) if isinstance(tools, list) else 0),
    }


def counts(text: str, tools: int = 0) -> dict[str, int]:
    """Counts of characters, numbers and other marks of complexity in a text.

    >>> counts("What is 12 + 3?")
    {'length': 15, 'digits': 3, 'operators': 1, 'numbers': 2, 'steps': 1, 'tools': 0}
    """
    return {
        "length": len(text),
        "digits": sum(character.isdigit() for character in text),
        "operators": len(_OPERATOR.findall(text)),
        "numbers": len(_NUMBER.findall(text)),
        "steps": len(_STEP.findall(text)),
        "tools": tools,
    }


_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


_OPERATOR = re.compile(r"[+*/=<>^%×÷≤≥]|(?<=[\w)\s])[-−](?=[\w(\s])")


_STEP = re.compile(r"[.?!;](?:\s|$)|\n|\bthen\b|\bafter\b|\bif\b", re.IGNORECASE)


COMPLEXITY = ("log length", "log digits", "log operators", "log numbers", "log steps", "log tools")
"""Names of `complexity`'s features; logarithms are of 1 + count."""
