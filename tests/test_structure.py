"""Rules of the source tree: the size of a file, names that occur once, the public names."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import pytest

import coterie

ROOT = Path(coterie.__file__).parent
FILES = sorted(file for file in ROOT.rglob("*.py") if file.name not in ("__init__.py", "__main__.py"))
SHORTEST, LONGEST = 60, 450
SHORT = {
    "algo/objective.py",
    "config/base.py",
    "rng.py",
    "data/complexity.py",
    "train/warnings.py",
    "train/schedules.py",
}
"""One noun each, of fewer lines."""
REPEATED = {"base.py", "registry.py", "metrics.py", "model.py", "memory.py", "objective.py", "optim.py", "learner.py"}
REPEATED |= {"prompts.py", "rows.py", "regions.py", "report.py", "assets.py", "algorithms.py", "export.py", "run.py"}
REPEATED |= {"missing.py"}
"""File names that several folders have, where the folder says which."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_size_of_a_file(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{lines} lines; split it by noun"
    assert lines >= SHORTEST or str(file.relative_to(ROOT)) in SHORT, f"{lines} lines; fold it into its neighbour"


def test_file_names_are_unique() -> None:
    count = collections.Counter(file.name for file in FILES)
    assert {name for name, number in count.items() if number > 1} == REPEATED


def test_the_public_names_are_sorted_and_documented() -> None:
    assert coterie.__all__ == sorted(coterie.__all__)
    page = (ROOT.parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    for name in coterie.__all__:
        assert getattr(coterie, name).__doc__, f"{name} has no docstring"
        assert re.search(rf"`(?:coterie\.)?{name}\b", page) or f"coterie.{name}" in page, f"docs/python.md: {name}"
