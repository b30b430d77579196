"""Meanings of metrics, read from the tables of docs/diagnostics.md: what each is, when to worry, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = "diagnostics.md"
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_NAME = re.compile(r"[a-z_]+(?:/[a-z0-9_…]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """A row of a table of metrics."""

    section: str
    """Heading that it stands under."""
    names: tuple[str, ...]
    """Of the metrics; `…` at the end of one stands for any rest."""
    means: str
    worry: str
    do: str

    def covers(self, metric: str) -> int:
        """Characters of the metric's name that a name here spells; 0 where none fits."""
        return max((len(name.rstrip("…")) for name in self.names if _fits(name, metric)), default=0)


@cache
def meanings() -> tuple[Meaning, ...]:
    """Every row of the page, in its order; none where coterie was installed without its pages."""
    here = Path(__file__)
    for file in (here.parents[3] / "docs" / PAGE, here.parent / PAGE):  # the checkout's, the wheel's
        if file.is_file():
            return tuple(_rows(file.read_text(encoding="utf-8")))
    return ()


def meaning_of(metric: str) -> Meaning | None:
    """The row that names a metric most exactly; None where no row does."""
    best = max(meanings(), key=lambda row: row.covers(metric), default=None)
    return best if best is not None and best.covers(metric) else None


def _fits(name: str, metric: str) -> bool:
    return metric.startswith(name[:-1]) if name.endswith("…") else metric == name


def _rows(page: str) -> Iterator[Meaning]:
    """The rows of the section `Metrics`."""
    body = page.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    heading, header = "", False
    for line in body.splitlines():
        if line.startswith("#"):
            heading, header = line.lstrip("# "), False
        elif line.startswith("| metric | means |"):
            header = True
        elif not line.startswith("|"):
            header = False
        elif header and not line.startswith("| ---"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            names = tuple(name for name in _CODE.findall(cells[0]) if _NAME.fullmatch(name))
            means, worry, do = (_text(cell) for cell in (*cells[1:], "", "", "")[:3])
            if names:
                yield Meaning(section=heading, names=names, means=means, worry=worry, do=do)


def _text(cell: str) -> str:
    """A cell without its links; code stays in backquotes."""
    return _LINK.sub(r"\1", cell).replace("**", "")
