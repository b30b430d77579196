"""Base class of the sections of settings, and the import of users' functions."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict

from coterie.errors import ConfigError


class Section(BaseModel):
    """Base class of sections. An unknown key is an error, never a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""`module:function`."""


# Functions of the user's own that a setting names: `module:function`.

_folders: list[str] = []


def search_in(folders: Sequence[str]) -> None:
    """Set the folders in which this process looks for functions first: a configuration's `module_path`."""
    _folders[:] = folders


def search_path() -> list[str]:
    """Folders in which functions are looked for, in order, before the installed modules."""
    return list(dict.fromkeys((*_folders, os.getcwd())))


def user_function(target: str) -> Callable[..., Any]:
    """Import the function `module:function` from the folders of `search_path` or the installed modules."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{target!r} is not of the form `module:function`, e.g. `mine:questions`")
    require_module_name(target)
    try:
        with _importable(search_path()):
            module = _import(module_name)
    except ConfigError:
        raise
    except Exception as error:  # the user's module runs on import
        raise ConfigError(f"{target!r}: {import_problem(module_name, error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{target!r}: {module_name!r} has no function {name!r}")
    return function


def require_module_name(target: str) -> None:
    """Refuse a path where a module's name is expected."""
    module, _, name = target.partition(":")
    if module.endswith(".py") or "/" in module or "\\" in module:
        dotted = ".".join(filter(None, re.split(r"[/\\]+", module.removesuffix(".py")))).lstrip("~.")
        raise ConfigError(
            f"{target!r} names a file, expected `module:function`: write `{dotted}:{name}`, without .py and with dots "
            "between folders"
        )


def import_problem(module: str, error: BaseException) -> str:
    """Error message for a failed import, with the folders that were searched."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        places = ", ".join(search_path())
        return f"importing {module!r} found no module {error.name!r} in {places} nor among the installed ones"
    return f"importing {module!r} raised {type(error).__name__}: {error}"


def _import(name: str) -> ModuleType:
    """Import a module from the first folder that has it, also where another of that name was imported before."""
    top = name.partition(".")[0]
    importlib.invalidate_caches()
    spec, loaded = PathFinder.find_spec(top, search_path()), sys.modules.get(top)
    file = getattr(loaded, "__file__", None)
    if spec is not None and spec.origin is not None and file is not None and not _same_file(spec.origin, file):
        if top in sys.stdlib_module_names or "site-packages" in file:
            raise ConfigError(
                f"the module {top!r} of {os.path.dirname(spec.origin)} has the name of one that is in use already, "
                f"{file}; rename yours"
            )
        for other in [other for other in sys.modules if other == top or other.startswith(f"{top}.")]:
            del sys.modules[other]
    return importlib.import_module(name)


def _same_file(path: str, other_path: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other_path)


@contextmanager
def _importable(folders: Sequence[str]) -> Generator[None]:
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(folder)
