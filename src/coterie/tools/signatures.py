"""Schemas of tools, made of a Python function's type hints and docstring as transformers makes them."""

from __future__ import annotations

import functools
import inspect
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from types import NoneType
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from coterie.config.user_functions import user_function
from coterie.errors import ConfigError
from coterie.tools.base import Tool

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
"""A tool's name, as OpenAI and vLLM allow it and a tag can have it."""
RESERVED = frozenset({"answer", "think", "tool_call", "tool_response", "tools", "result", "information"})
"""Names that the formats use themselves."""
HOOKS = ("reset", "get_reward")
"""Methods of a class that the environment calls, as in TRL's `environment_factory`."""


def schema_of(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """JSON schema of a function, as `transformers.utils.get_json_schema` makes it, without the return value.

    Raises:
        ConfigError: type hints or the docstring's `Args:` are missing.
    """
    from transformers.utils import get_json_schema  # a second, and half the installation

    try:
        schema = get_json_schema(function)
    except Exception as error:  # DocstringParsingException, TypeHintParsingException, and what inspect raises
        raise ConfigError(
            f"the tool {name!r} has no schema: {error}; a tool has a type hint for each parameter, and a docstring in "
            "Google's style with a line for each under `Args:`"
        ) from error
    function_schema = {key: value for key, value in schema["function"].items() if key != "return"}
    return {"type": "function", "function": {**function_schema, "name": name}}


def arguments_of(function: Callable[..., Any], name: str) -> type[BaseModel]:
    """Model of a function's parameters, which refuses unknown ones and converts `"3"` to 3 where a number is due."""
    hints = get_type_hints(function)
    fields: dict[str, Any] = {}
    for parameter in _parameters(function):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(f"the tool {name!r} takes {parameter}; expected parameters with names")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints.get(parameter.name, Any), default)
    return create_model(name, __config__=_CHECKS, **fields)


_TYPES = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": NoneType,
}
_CHECKS = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


def arguments_of_schema(schema: Mapping[str, Any], name: str) -> type[BaseModel]:
    """Model of the parameters of a JSON schema: names, and types where they are plain; a server checks the rest.

    >>> schema = {"properties": {"n": {"type": "integer"}}, "required": ["n"]}
    >>> arguments_of_schema(schema, "add").model_validate({"n": "3"}).model_dump(by_alias=True)
    {'n': 3}
    """
    fields: dict[str, Any] = {}
    for number, (parameter, facts) in enumerate(schema.get("properties", {}).items()):
        default = ... if parameter in schema.get("required", ()) else None
        # An alias: a name such as `schema` or `max-results` cannot be that of a field.
        fields[f"parameter_{number}"] = (_type(facts), Field(default, alias=parameter))
    return create_model(name, __config__=_CHECKS, **fields)


def _type(facts: Any) -> Any:
    if not isinstance(facts, Mapping):
        return Any
    values = facts.get("enum")
    if isinstance(values, list) and values and all(isinstance(value, str | int | None) for value in values):
        return Literal.__getitem__(tuple(values))
    names = facts.get("type", [part.get("type") for part in facts.get("anyOf", ()) if isinstance(part, Mapping)])
    names = [names] if isinstance(names, str) else names
    if not names or any(not isinstance(kind, str) or kind not in _TYPES for kind in names):
        return Any
    return functools.reduce(operator.or_, dict.fromkeys(_TYPES[kind] for kind in names))


def tool_of(function: Callable[..., Any], *, name: str = "", target: str = "", method: str = "") -> Tool:
    """The tool of a function.

    Args:
        name: the function's own when left out.
        target: where a worker process finds it; a built-in function is called as it is.
        method: of a class, the target.

    Raises:
        ConfigError: it has no schema, or a name that a call cannot have.
    """
    name = name or getattr(function, "__name__", "")
    check_name(name)
    return Tool(
        name=name,
        schema=schema_of(function, name),
        arguments=arguments_of(function, name),
        function=None if target else function,
        target=target,
        method=method,
    )


def check_name(name: str) -> None:
    """Refuse a name that a call cannot have."""
    if NAME.fullmatch(name) is None or name in RESERVED:
        raise ConfigError(f"a tool cannot be called {name!r}: expected letters, digits and _, and none of {RESERVED}")


def user_tools(target: str) -> list[Tool]:
    """The tools of `module:function`, or of the public methods of `module:Class`.

    Raises:
        ConfigError: it cannot be imported, or has no schema.
    """
    item = user_function(target)
    if not inspect.isclass(item):
        return [tool_of(item, target=target)]
    methods = dict(public_methods(item))
    if not methods:
        raise ConfigError(f"{target!r} has no public methods besides {', '.join(HOOKS)}; each one is a tool")
    return [tool_of(function, target=target, method=name) for name, function in methods.items()]


def public_methods(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(name, function) of the methods that are tools, in the order in which they are written."""
    for name, member in vars(kind).items():
        if inspect.isfunction(member) and not name.startswith("_") and name not in HOOKS:
            yield name, member


def described(tools: Mapping[str, Tool]) -> str:
    """The tools in words, a line each, for a system message."""
    lines = []
    for tool in tools.values():
        summary = " ".join(str(tool.schema["function"].get("description", "")).split())
        lines.append(f"{tool.signature}: {summary}")
    return "\n".join(lines)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    return parameters[1:] if parameters and parameters[0].name == "self" else parameters
