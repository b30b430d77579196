"""Progress of the current activity as a line of text: with a count, a bar or a speed where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from coterie.text import one_line

BAR = 20
"""Characters of a bar."""


@dataclass(slots=True, kw_only=True)
class Activity:
    """An activity with its progress."""

    name: str
    """E.g. `loading the model`."""
    done: int = 0
    total: int = 0
    """0 where it cannot be counted."""
    unit: str = ""
    """Of both, e.g. `completions`; `bytes` are shown as MB and with their speed."""
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    began: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.clock()

    def update(self, done: int, total: int, unit: str) -> None:
        """Later figures of the same activity."""
        self.done, self.total, self.unit = done, total, unit

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self.clock() - self.began

    def text(self, *, drawn: bool = False) -> str:
        """E.g. `evaluating: 40 of 120 completions`; `drawn` adds a bar where the end is known."""
        name = one_line(self.name, 200)
        if not self.total and not self.done:
            return f"{name} …"
        picture = f" {bar(self.done, self.total)}" if drawn and self.total else ""
        return f"{name}{picture}: {self._count()}"

    def _count(self) -> str:
        if self.unit == "bytes":
            speed = f", {self.done / self.seconds / 1e6:.1f} MB/s" if self.seconds > 1 else ""
            size = f"{self.done / 1e6:.0f}" + (f" of about {self.total / 1e6:.0f}" if self.total else "")
            return f"{size} MB{speed}"
        size = f"{self.done} of {self.total}" if self.total else f"{self.done}"
        return f"{size} {self.unit}".rstrip()


def bar(done: float, total: float, width: int = BAR) -> str:
    """`━━━━━───────────────`."""
    filled = round(width * min(max(done / total, 0.0), 1.0)) if total else 0
    return "━" * filled + "─" * (width - filled)
