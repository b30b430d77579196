"""The environment seam: an episode yields messages and receives completions, so one body serves every engine."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from coterie.types import Message, Prompt

Episode = Generator[tuple[Message, ...], str, None]
"""Yields the messages the model is to answer, receives the completion's text, and returns when the episode is over."""


class Environment(Protocol):
    """Turns a prompt into an episode. An instance holds no state of an episode: each one is its own generator."""

    def episode(self, prompt: Prompt) -> Episode: ...
