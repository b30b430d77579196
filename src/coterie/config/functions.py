"""Functions of the user's own that a setting names: `module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from coterie.errors import ConfigError


def user_function(target: str) -> Callable[..., Any]:
    """The function, from an installed module or one in the folder that coterie was started from.

    Raises:
        ConfigError: it is not named like one, its module cannot be imported, or it is not a function.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{target!r} is not of the form `module:function`, e.g. `mine:questions`")
    try:
        with _importable(os.getcwd()):
            module = importlib.import_module(module_name)
    except Exception as error:  # the user's module runs on import
        raise ConfigError(
            f"{target!r}: importing {module_name!r} raised {type(error).__name__}: {error}; it must be installed or "
            "lie in the folder you start coterie from"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{target!r}: {module_name!r} has no function {name!r}")
    return function


@contextmanager
def _importable(folder: str) -> Generator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
