"""One question, one answer."""

from __future__ import annotations

from coterie.envs.base import Episode
from coterie.types import Prompt


class SingleTurn:
    """Shows the prompt as it is and ends with the first completion."""

    def episode(self, prompt: Prompt) -> Episode:
        yield prompt.messages
