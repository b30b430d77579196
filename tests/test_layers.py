"""Imports point from the program down to the records, without circles; what must be fast stays free of torch.

Imports inside functions and those for type checkers count like any other.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import coterie

ROOT = Path(coterie.__file__).parent
LAYERS = [
    {"errors", "types"},
    {"text"},
    {"stats", "rng", "machine", "phases", "progress"},
    {"callbacks"},
    {"console"},
    {"config"},
    {"algo", "data"},
    {"runs", "web"},
    {"search", "sandbox"},
    {"batches", "rewards", "doctor", "trackers"},
    {"tools", "traces"},
    {"envs", "grouping"},
    {"policy"},
    {"engines"},
    {"cluster"},
    {"rollout"},
    {"train"},
    {"board", "build"},
    {"inference", "preflight", "sweep"},
    {"launch", "serve"},
    {"stages"},
    {"demo"},
    {"api"},
    {"cli", "compat"},
    {"__main__"},
]
"""From the ground up; parts of one layer do not import each other."""
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
LIGHT = ["cli.main", "config.load", "config.show", "machine", "console", "types", "batches.pack", "callbacks"]
LIGHT += ["api.verbs", "api.functions", "api.inputs", "api.run", "compat.trl", "board.routes", "board.regions"]
FILES = sorted(file for file in ROOT.rglob("*.py") if file != ROOT / "__init__.py")


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file) for file in FILES}


def imported_modules(file: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it, without the package's own name."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{file}: imports are absolute"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            deeper = {member for member in members if member.removeprefix("coterie.") in MODULES}
            modules |= deeper | ({node.module} if deeper != members else set())
    return {module.removeprefix("coterie.") for module in modules if module.startswith("coterie.")}


def part(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file):
    importer = part(module_name(file))
    assert importer in HEIGHT, f"{importer} has no place in the layers"
    for module in imported_modules(file):
        imported = part(module)
        if imported != importer:
            assert HEIGHT[imported] < HEIGHT[importer], f"{importer} must not import {module}"


def test_no_circular_imports():
    graph = {module_name(file): imported_modules(file) & MODULES - {module_name(file)} for file in FILES}
    packages = {module for module in MODULES if (ROOT / module.replace(".", "/")).is_dir()}
    try:
        TopologicalSorter({name: modules - packages for name, modules in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' → '.join(error.args[1])}")


def test_algo_is_pure():
    """It takes sections of the settings as records; it never sees the whole, or a file."""
    modules = {module for file in FILES if part(module_name(file)) == "algo" for module in imported_modules(file)}
    assert {part(module) for module in modules - {"config.objective"}} <= {"algo", "types", "errors", "stats", "rng"}


@pytest.mark.parametrize("module", LIGHT)
def test_no_torch_in(module):
    code = f"import sys, coterie.{module}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["config", "print"], ["--version"]])
def test_no_torch_for(words):
    code = f"import sys; from coterie.cli.main import main; main({words}); sys.exit('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout
