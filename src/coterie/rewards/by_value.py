"""Reward functions outside of modules (lambdas, closures, notebook cells), pickled by value for the workers.

Their name in the settings is `python:NAME#HASH`. The function itself is not stored with a run: this process keeps it,
and another process has to be given it again.
"""

from __future__ import annotations

import base64
import dis
import functools
import hashlib
import inspect
import io
import linecache
import os
import pickle
import re
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from coterie.errors import ConfigError, RewardError

PREFIX = "python:"
_payloads: dict[str, dict[str, str]] = {}


def is_by_value(name: str) -> bool:
    """True if a reward's name in the settings stands for such a function."""
    return name.startswith(PREFIX)


def label(name: str) -> str:
    """The function's readable name: `python:likes_a#0f3c…` → `likes_a`."""
    return name.removeprefix(PREFIX).partition("#")[0]


def fingerprint(name: str) -> str:
    """The hash in a name: `python:likes_a#0f3c…` → `0f3c…`."""
    return name.partition("#")[2]


def name_of(function: Callable[..., Any]) -> str:
    """The name in the settings. The hash is of the compiled code, the defaults, and the values that the function uses
    of its closure and its module, as far as those are plain data."""
    plain = re.sub(r"\W+", "", getattr(function, "__name__", type(function).__name__)) or "function"
    top = (
        _function_facts(function, frozenset()) if isinstance(function, FunctionType) else _facts(function, frozenset())
    )
    facts = repr(top)
    return f"{PREFIX}{plain}#{hashlib.sha256(facts.encode(errors='backslashreplace')).hexdigest()[:12]}"


def offer(function: Callable[..., Any], name: str | None = None) -> str:
    """Keep a function for the workers of this process.

    Args:
        name: in the settings; `name_of(function)` when left out.

    Returns:
        The name.
    """
    name = name or name_of(function)
    try:
        data = _pickled(function)
    except Exception as error:  # what it uses is pickled by the user's own methods
        raise RewardError(
            f"reward {label(name)!r} cannot be sent to a worker process: {type(error).__name__}: {error}; create what "
            "it uses inside the function, or write it in a module and name it `module:function`",
            function=name,
        ) from error
    file = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_filename", "")
    lines = [] if os.path.exists(file) else linecache.getlines(file)
    _payloads[name] = {"pickle": base64.b64encode(data).decode(), "file": file, "lines": "".join(lines)}
    return name


def _pickled(function: Callable[..., Any]) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.CloudPickler):
        def reducer_override(self, obj: Any) -> Any:
            if not isinstance(obj, CodeType):
                return super().reducer_override(obj)
            # cloudpickle leaves out the name of the file, which an error of the function is reported with.
            reduced: Any = self.dispatch_table[CodeType](obj)
            return reduced[0], tuple(obj.co_filename if item == "<dynamic-code>" else item for item in reduced[1])

    stream = io.BytesIO()
    Pickler(stream).dump(function)
    return stream.getvalue()


def require_offered(name: str) -> None:
    """Refuse a function that this process does not have."""
    if name not in _payloads:
        raise ConfigError(
            f"reward {label(name)!r} is a function of a Python session (a notebook, a script, a lambda) and is not "
            f"stored with the run: continue in Python with coterie.resume(run, reward={_argument(name)}), measure with "
            f"coterie.evaluate(run, reward={_argument(name)}); a function in a module works from the command line too"
        )


def payload(name: str) -> dict[str, str]:
    """Pickled function and source lines for a worker's `receive`."""
    return _payloads[name]


def receive(name: str, sent: Mapping[str, str]) -> None:
    """Keep a sent function in a worker, with the source lines for error messages."""
    _payloads[name] = dict(sent)
    file, lines = sent["file"], sent["lines"].splitlines(keepends=True)
    if lines:
        linecache.cache[file] = (len(sent["lines"]), None, lines, file)


def function_of(name: str) -> Callable[..., Any]:
    """The function, built anew."""
    try:
        return pickle.loads(base64.b64decode(_payloads[name]["pickle"]))
    except Exception as error:
        raise RewardError(
            f"reward {label(name)!r} cannot be built in a worker process: {type(error).__name__}: {error}; create what "
            "it uses inside the function, or write it in a module and name it `module:function`",
            function=name,
        ) from error


def _argument(name: str) -> str:
    return "…" if label(name) == "lambda" else label(name)


def _facts(value: Any, above: frozenset[int]) -> Any:
    """Facts about a value whose `repr` is the same in every process."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if id(value) in above:
        return "recursive"
    above |= {id(value)}
    if isinstance(value, tuple | list):
        return [_facts(item, above) for item in value]
    if isinstance(value, set | frozenset):
        return ["set", *sorted(repr(_facts(item, above)) for item in value)]
    if isinstance(value, Mapping):
        return ["table", *((repr(_facts(key, above)), _facts(item, above)) for key, item in value.items())]
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, CodeType):
        names = (value.co_varnames, value.co_freevars, value.co_names)
        return [value.co_code.hex(), names, [_facts(item, above) for item in value.co_consts]]
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}" if _importable(value) else _function_facts(value, above)
    if isinstance(value, MethodType):
        return [_facts(value.__func__, above), _facts(value.__self__, above)]
    if isinstance(value, functools.partial):
        return [_facts(item, above) for item in (value.func, value.args, value.keywords)]
    kind = value if isinstance(value, type) else type(value)
    name, call = f"{kind.__module__}.{kind.__qualname__}", vars(kind).get("__call__")
    if isinstance(value, type) or not isinstance(call, FunctionType):
        return name
    return [name, _function_facts(call, above), _facts(vars(value), above) if hasattr(value, "__dict__") else None]


def _importable(function: FunctionType) -> bool:
    """True if a value is pickled by its name."""
    return function.__module__ not in (None, "__main__") and "<" not in function.__qualname__


def _function_facts(function: FunctionType, above: frozenset[int]) -> list[Any]:
    closure = []
    for cell in function.__closure__ or ():
        try:
            closure.append(cell.cell_contents)
        except ValueError:  # not filled yet
            closure.append(None)
    table = function.__globals__
    used = {name: table[name] for name in sorted(_globals(function.__code__)) if name in table}
    parts = (function.__code__, function.__defaults__, function.__kwdefaults__, closure, used)
    return [_facts(part, above) for part in parts]


def _globals(code: CodeType) -> set[str]:
    """Global names that a piece of code reads, with the code defined in it."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals(const) for const in code.co_consts if isinstance(const, CodeType)))
