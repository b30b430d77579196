"""Reward functions of a script, in a module of their own: a worker imports it, and needs no torch for that."""

from __future__ import annotations

from typing import Any


def rewards_a(prompts: Any, completions: Any, solution: Any, **kwargs: Any) -> list[float]:
    assert prompts[0][-1]["role"] == "user"
    texts = [completion[0]["content"] for completion in completions]
    return [text.count("a") / max(1, len(text)) for text in texts]


def rewards_nothing(completions: Any, **kwargs: Any) -> list[None]:
    return [None for _ in completions]
