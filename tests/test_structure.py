"""Rules of the source tree: the size of a file, names that occur once, the public names."""

from __future__ import annotations

import ast
import collections
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import coterie

ROOT = Path(coterie.__file__).parent
FILES = sorted(file for file in ROOT.rglob("*.py") if file.name not in ("__init__.py", "__main__.py"))
SHORTEST, LONGEST = 60, 450
SHORT = {"config/base.py", "rng.py", "data/complexity.py"}
"""One noun each, of fewer lines."""
REPEATED = {"base.py", "registry.py", "metrics.py", "model.py", "memory.py", "objective.py", "optim.py", "learner.py"}
REPEATED |= {"prompts.py", "rows.py", "regions.py", "report.py", "assets.py", "algorithms.py", "export.py", "run.py"}
REPEATED |= {"missing.py", "pipeline.py", "sft.py"}
"""File names that several folders have, where the folder says which."""


KNOW_ALL_SETTINGS = {"config", "build", "api", "cli", "sweep", "launch.py", "preflight.py", "inference", "demo.py"}
KNOW_ALL_SETTINGS |= {"stages"}
KNOW_ALL_SETTINGS |= {"board/report.py", "__init__.py"}
"""Folders and files that may name `RunConfig`; below, a part takes its own section."""


def test_run_config_ends_where_the_parts_are_built() -> None:
    for file in ROOT.rglob("*.py"):
        path = file.relative_to(ROOT)
        if not {path.parts[0], str(path)} & KNOW_ALL_SETTINGS:
            text = file.read_text(encoding="utf-8")
            assert "RunConfig" not in text, f"{path} names RunConfig; let it take the section that it reads"


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


PRONOUNS = {"found", "one", "own", "held", "known", "said", "seen", "wanted"}
"""Words that are no names of variables: a variable is a noun of the domain."""
REPOSITORY = ROOT.parents[1]
NAMED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar


def bound_names(file: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of variables, parameters, attributes and functions that a file binds."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, NAMED) and node.name:
            yield node.lineno, node.name


@pytest.mark.parametrize("folder", ["src", "tests", "recipes", "benchmarks"])
def test_variables_are_nouns(folder: str) -> None:
    for file in sorted((REPOSITORY / folder).rglob("*.py")):
        for line, name in bound_names(file):
            assert name.strip("_") not in PRONOUNS, f"{file}:{line}: name {name!r} by its content"
