"""Notes on a source: recognised layouts and misleading columns, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from coterie.config.data import ColumnNames
from coterie.data.columns import Question
from coterie.data.layouts import Layout
from coterie.text import counted

Told = Callable[[int], None]
"""Told how many rows of a source have been read and tokenized."""
_SHOWN = 3


@dataclass(slots=True)
class SourceNotes:
    """Counts over the usable rows of a source."""

    source: str
    names: ColumnNames
    chosen: str = ""
    """Files that were chosen of a folder."""
    layouts: Counter[Layout] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    worked: int = 0
    """Rows whose gold answer is the end of a longer text in `answer`."""
    renumbered: int = 0
    """Rows whose id an earlier row has."""
    conflicting: int = 0
    """Duplicates with another gold answer than the prompt that was kept."""

    def add(self, question: Question) -> None:
        """Count a row."""
        self.layouts[question.layout] += 1
        self.dropped.update(question.dropped)
        answer = question.attributes.get("answer")
        self.worked += (
            question.layout.answer == "answer" and isinstance(answer, str) and answer.strip() != question.answer
        )

    @property
    def unmarked(self) -> int:
        """Rows whose worked solution ends in no marked answer."""
        return sum(count for layout, count in self.layouts.items() if layout.unmarked)

    def lines(self) -> list[str]:
        """Lines of the notes; none for a source that is as documented."""
        lines = [self.chosen] if self.chosen else []
        guessed = [(layout, count) for layout, count in self.layouts.most_common() if not layout.native(self.names)]
        for layout, count in guessed[:_SHOWN]:
            rows = "" if len(self.layouts) == 1 else f" ({counted(count, 'row')})"
            lines.append(f"{layout.describe()}{rows}")
        if self.worked:
            lines.append(
                f"{counted(self.worked, 'answer')} end in a `####` line or a box: built-in rewards compare with what "
                "stands there, the column `gold_answer`"
            )
        for name, count in self.dropped.items():
            lines.append(
                f"the column `{name}` of {counted(count, 'row')} was left out: it is not text, numbers or lists"
            )
        if self.renumbered:
            lines.append(
                f"{counted(self.renumbered, 'row')} have an id that an earlier row has; they are named by number"
            )
        if self.conflicting:
            lines.append(
                f"{counted(self.conflicting, 'dropped duplicate')} had another gold answer than the prompt that is kept"
            )
        return [f"{self.source}: {line}" for line in lines]
