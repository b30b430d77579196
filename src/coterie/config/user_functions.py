"""Functions of the user's own that a setting names: `module:function`. Imports no pydantic, for reward workers."""

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

from coterie.errors import ConfigError

FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""`module:function`."""


_folders: list[str] = []


def search_in(folders: Sequence[str]) -> None:
    """Have this process look for functions in these folders first: a configuration's `module_path`."""
    _folders[:] = folders


def search_path() -> list[str]:
    """Folders in which functions are looked for, in order; the installed modules come after them."""
    return list(dict.fromkeys((*_folders, os.getcwd())))


def user_function(target: str) -> Callable[..., Any]:
    """The function, from a module in one of the folders of `search_path`, or an installed one.

    Raises:
        ConfigError: it is not named like one, its module cannot be imported, or it is not a function.
    """
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
    """Why a module cannot be imported, as the end of a sentence, and where it was looked for."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        places = ", ".join(search_path())
        return f"importing {module!r} found no module {error.name!r} in {places} nor among the installed ones"
    return f"importing {module!r} raised {type(error).__name__}: {error}"


def _import(name: str) -> ModuleType:
    """The module from the first folder that has it, also where another of that name was imported from elsewhere."""
    top = name.partition(".")[0]
    importlib.invalidate_caches()
    spec, loaded = PathFinder.find_spec(top, search_path()), sys.modules.get(top)
    file = getattr(loaded, "__file__", None)
    if spec is not None and spec.origin is not None and file is not None and not _same(spec.origin, file):
        if top in sys.stdlib_module_names or "site-packages" in file:
            raise ConfigError(
                f"the module {top!r} of {os.path.dirname(spec.origin)} has the name of one that is in use already, "
                f"{file}; rename yours"
            )
        for other in [other for other in sys.modules if other == top or other.startswith(f"{top}.")]:
            del sys.modules[other]
    return importlib.import_module(name)


def _same(file: str, other: str) -> bool:
    return os.path.realpath(file) == os.path.realpath(other)


@contextmanager
def _importable(folders: Sequence[str]) -> Generator[None]:
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(folder)
