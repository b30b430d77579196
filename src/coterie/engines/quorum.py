"""Stopping a call when enough prompts have all their turns: stragglers are not waited for.

What is finished when depends on tokens alone, never on time, so a re-run stops at the same token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from coterie.engines.base import Quorum, Request


class Attendance:
    """Counts whole prompts against a quorum; without one, nothing is ever enough."""

    def __init__(self, quorum: Quorum | None, requests: Sequence[Request]) -> None:
        self.quorum = quorum
        self.missing = Counter(request.key.prompt for request in requests)
        self.whole: set[str] = set()

    def finished(self, request: Request) -> None:
        """One of its prompt's turns has ended."""
        name = request.key.prompt
        self.missing[name] -= 1
        if not self.missing[name]:
            self.whole.add(name)

    @property
    def reached(self) -> bool:
        if self.quorum is None:
            return False
        return len(self.whole) >= self.quorum.prompts and self.quorum.required <= self.whole
