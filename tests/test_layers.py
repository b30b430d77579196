"""Imports point from the program down to the records, and what must be fast stays free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import coterie

ROOT = Path(coterie.__file__).parent
LAYERS = [
    {"text", "types", "errors", "observer", "progress"},
    {"config", "algo", "diagnosis", "batches", "machine", "threads"},
    {"engines", "envs", "rewards", "data", "policy", "sandbox"},
    {"collect", "runs"},
    {"train"},
    {"assemble", "parts", "learning", "chatting", "checks", "demo", "drift", "one_off"},
    {"bench", "experience", "sweep"},
    {"console", "api", "commands", "cli", "__main__"},
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer} | {"__init__": len(LAYERS)}
LIGHT = ["cli", "threads", "config.load", "config.show", "machine", "console", "types", "batches.plan", "observer"]
LIGHT += ["api.verbs", "api.functions", "api.inputs", "api.run"]
FILES = sorted(ROOT.rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it, without the package's own name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{file}: imports are absolute"
            names = {alias.name for alias in node.names}
            found |= {f"{node.module}.{name}" for name in names} if node.module == "coterie" else {node.module}
    return {name.removeprefix("coterie.") for name in found if name.startswith("coterie.")} - {"__version__"}


def part(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_left(file):
    own = part(file)
    assert own in HEIGHT, f"{own} has no place in the layers"
    for name in imports(file):
        assert HEIGHT[name.split(".")[0]] <= HEIGHT[own], f"{own} must not import {name}"


def test_collect_and_policy_do_not_know_each_other():
    for one, other in (("collect", "policy"), ("policy", "collect")):
        seen = {name.split(".")[0] for file in FILES if part(file) == one for name in imports(file)}
        assert other not in seen


def test_algo_is_pure():
    seen = {name.split(".")[0] for file in FILES if part(file) == "algo" for name in imports(file)}
    assert seen <= {"algo", "types", "errors"}


@pytest.mark.parametrize("module", LIGHT)
def test_no_torch_in(module):
    code = f"import sys, coterie.{module}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["config", "print"], ["--version"]])
def test_no_torch_for(words):
    code = f"import sys; from coterie.cli import main; main({words}); sys.exit('torch' in sys.modules)"
    seen = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert seen.returncode == 0, seen.stderr
    assert seen.stdout
