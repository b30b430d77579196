"""The process in which users' tools run: `python -m coterie.tools.tool_worker FD PARENT`.

One request at a time, as in a reward worker: whoever started this process kills it at the deadline. Instances of
classes, one an episode, live here; after a kill they are made again from the episode's earlier calls.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from coterie.config.user_functions import search_in, search_path, user_function
from coterie.errors import CoterieError
from coterie.rewards.worker import describe, serve
from coterie.tools.base import as_text

_functions: dict[str, Callable[..., Any]] = {}
_instances: dict[tuple[str, str], Any] = {}
"""By episode and target."""


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Reply to a request: `load` imports tools, `call` calls one, `forget` ends an episode.

    Returns:
        `content` and `error` of a result; of `load`, `failed` with the cause.
    """
    if "load" in request:
        return _load(request)
    if "forget" in request:
        for key in [key for key in _instances if key[0] == request["forget"]]:
            del _instances[key]
        return {"content": "", "error": None}
    try:
        value = _called(request)
        result = as_text(value, request["limit"])
    except BaseException as error:
        return {"content": f"Error: {describe(error, None)}"[: request["limit"]], "error": "raised"}
    return {"content": result.content, "error": result.error}


def _called(request: Mapping[str, Any]) -> Any:
    function = _functions[request["target"]]
    if not request["method"]:
        return _finished(function(**request["arguments"]))
    key = (request["episode"], request["target"])
    if key not in _instances:
        instance = function()
        if hasattr(instance, "reset"):
            instance.reset(**_taken(instance.reset, request["row"]))
        _instances[key] = instance
        for method, arguments in request["before"]:
            try:
                getattr(instance, method)(**arguments)
            except Exception:  # as it did the first time
                continue
    return _finished(getattr(_instances[key], request["method"])(**request["arguments"]))


def _taken(function: Callable[..., Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the prompt that a `reset` takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(row)
    return {parameter.name: row[parameter.name] for parameter in parameters if parameter.name in row}


def _finished(value: Any) -> Any:
    if inspect.isawaitable(value):
        import asyncio  # few tools are async

        async def wait() -> Any:
            return await value

        return asyncio.run(wait())
    return value


def _load(request: Mapping[str, Any]) -> dict[str, Any]:
    search_in(request["folders"])
    sys.path[:0] = search_path()
    sys.path += [folder for folder in request["path"] if folder not in sys.path]
    for target in request["load"]:
        try:
            _functions[target] = user_function(target)
        except CoterieError as error:
            return {"failed": str(error)}
        except BaseException as error:
            return {"failed": f"importing the tool {target!r} {describe(error, None)}"}
    return {"loaded": True}


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), answer)
