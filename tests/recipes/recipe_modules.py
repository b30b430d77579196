"""Modules of the recipes, which belong to no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def recipe(name: str, module: str) -> ModuleType:
    """A module of a recipe's folder."""
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, ROOT / "recipes" / name / f"{module}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    return sys.modules[module]
