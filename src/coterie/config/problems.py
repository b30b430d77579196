"""Problems of a validation in a line each: key, value, source, and what was expected."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from coterie.config.keys import (
    MISSING,
    bare,
    child,
    is_section,
    kind_at,
    kind_below,
    nearest,
    settings,
    tag_of,
    union_members,
)
from coterie.config.objective import UserFunction
from coterie.config.renamed import present_value
from coterie.config.schema import RunConfig
from coterie.config.user_functions import FUNCTION
from coterie.text import did_you_mean

Sources = Mapping[tuple[str, ...], str]
OWN = "module:function"
MOST = 30
"""Problems that are explained; a file that is none of settings could have a million."""

BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}
KINDS = {
    "int": "an int",
    "float": "a number",
    "bool": "true or false",
    "string": "a string",
    "list": "a list",
    "dict": "a table",
    "model": "a table",
    "finite_number": "a finite number",
}


def explain(error: ValidationError, data: Mapping[str, Any], sources: Sources) -> str:
    """All problems of one validation, one line each, in the order of the schema."""
    merged: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for problem in error.errors(include_url=False):
        merged.setdefault(key_path(problem["loc"], data), []).append(problem)
    lines = [_line(path, problems, data, sources) for path, problems in islice(merged.items(), MOST)]
    more = len(merged) - len(lines)
    return "\n".join([*lines, f"… and {more:,} more"] if more else lines)


def to_json(value: Any) -> bytes:
    """JSON as UTF-8.

    Raises:
        TypeError, ValueError: a date, or text with half of a surrogate pair (a terminal's broken UTF-8).
    """
    return json.dumps(value, ensure_ascii=False).encode()


def not_json(data: Mapping[str, Any], sources: Sources, error: Exception) -> str:
    """Message that names the leaf without a JSON form: a date of TOML, or broken text."""
    for path, source in sources.items():
        value = _look_up(data, path)
        try:
            to_json(value)
        except UnicodeEncodeError:
            return f"{'.'.join(path)} = {value!a} (from {source}): expected text in UTF-8"
        except (TypeError, ValueError, RecursionError):
            kind = type(value).__name__
            return f"{'.'.join(path)} = {value} (from {source}): a {kind} is not expected here; quote it"
    return f"the settings cannot be read: {error}"


def key_path(loc: tuple[int | str, ...], data: Any) -> tuple[str, ...]:
    """A location of pydantic's without the tags of unions, which are no part of the key."""
    kind: Any = RunConfig
    path: list[str] = []
    for part in map(str, loc):
        members = [member for member in union_members(bare(kind)) if is_section(member)]
        if len(members) > 1 and part in {tag_of(member) for member in members}:
            kind = next(member for member in members if tag_of(member) == part)
            continue
        if not members and len(union_members(bare(kind))) > 1:
            break
        kind = kind_below(kind, part, data) if kind is not MISSING else MISSING
        data = child(data, part)
        path.append(part)
    return tuple(path)


def _line(path: tuple[str, ...], problems: list[ErrorDetails], data: Mapping[str, Any], sources: Sources) -> str:
    problem = problems[0]
    key, kind = ".".join(path), problem["type"]
    origin = source_of(path, sources)
    if kind == "extra_forbidden":
        source = (_look_up(data, path[:-1]) or {}).get("type")
        within = f" in a source of type {source!r}" if isinstance(source, str) else ""
        return f"unknown setting {key}{within} (from {origin}){nearest(path, _look_up(data, path))}"
    if kind == "value_error":
        return _cross_field(problem["msg"].removeprefix("Value error, "), sources)
    if kind == "union_tag_not_found":
        return f"{key}.type is missing (from {origin}): expected one of {', '.join(_tags(path))}"
    if kind == "union_tag_invalid":
        value = _look_up(data, (*path, "type"))
        origin = source_of((*path, "type"), sources)
        return f"{key}.type = {shown(value)} (from {origin}): expected {_one_of(value, _tags(path))}"
    if kind == "missing":
        setting = settings().get(".".join("*" if part.isdecimal() else part for part in path))
        meaning = f": {setting.description}" if setting is not None else ""
        return f"{key} is missing (from {origin}){meaning}"
    expected = dict.fromkeys(_expected(problem, data, path) for problem in problems)
    if len(expected) > 1:
        expected.pop(OWN, None)  # is among the choices of the other
    return f"{key} = {shown(_look_up(data, path))} (from {origin}): expected {' or '.join(expected)}"


def _expected(problem: ErrorDetails, data: Mapping[str, Any], path: tuple[str, ...]) -> str:
    kind = problem["type"]
    if kind in BOUNDS:
        return BOUNDS[kind].format(**problem.get("ctx", {}))
    if kind == "unknown_name":
        return _one_of(_look_up(data, path), problem["ctx"]["names"].split(", "))
    if kind == "literal_error":
        members = [member for member in union_members(bare(kind_at(path, data))) if get_origin(member) is Literal]
        value, choices = _look_up(data, path), [str(choice) for member in members for choice in get_args(member)]
        choices += [OWN] * (UserFunction in union_members(bare(kind_at(path, data))))
        return _one_of(value, choices, near=present_value(".".join(path), value))
    if kind == "string_pattern_mismatch" and problem["ctx"]["pattern"] == FUNCTION:
        return OWN
    stem = next((stem for stem in KINDS if kind.startswith(stem)), None)
    if stem is None:
        return problem["msg"]
    text = "; write it without quotes" if isinstance(_look_up(data, path), str) and _numeric(problem, stem) else ""
    return f"{KINDS[stem]}{text}"


def _numeric(problem: ErrorDetails, stem: str) -> bool:
    """True if the text would have been right unquoted: `lr = "1e-6"` in a file."""
    try:
        number = float(problem["input"])
        return stem == "float" or (stem == "int" and number.is_integer())
    except (TypeError, ValueError):
        return False


def _one_of(value: Any, choices: list[str], near: Any = None) -> str:
    hint = f"; did you mean {near!r}?" if near in choices else did_you_mean(str(value), choices, cutoff=0.5)
    return f"{'one of ' if len(choices) > 1 else ''}{', '.join(choices)}{hint}"


def _tags(path: tuple[str, ...]) -> list[str]:
    members = (member for member in union_members(bare(kind_at(path))) if is_section(member))
    return [tag for member in members if (tag := tag_of(member)) is not None]


def _cross_field(message: str, sources: Sources) -> str:
    """Message of a rule over several settings, with the sources of those that were set."""
    named = [tuple(word.split(".")) for word in dict.fromkeys(re.findall(r"[a-z_]+(?:\.[a-z_]+)+", message))]
    paths = [path for path in named if ".".join(path) in settings()]
    origins = "; ".join(f"{'.'.join(path)} from {source_of(path, sources, beside=False)}" for path in paths)
    return f"{message} ({origins})" if origins else message


def source_of(path: tuple[str, ...], sources: Sources, *, beside: bool = True) -> str:
    """Source of a value, of the table it stands in, or (`beside`) of another key of that table."""
    for length in range(len(path), 0, -1):
        if path[:length] in sources:
            return sources[path[:length]]
    for length in range(len(path), 0, -1) if beside else ():
        below = (source for key, source in sources.items() if key[:length] == path[:length])
        if (source := next(below, None)) is not None and length >= len(path) - 1:
            return source
    return "default"


def _look_up(data: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        data = child(data, part)
    return data


def shown(value: Any) -> str:
    """Text of a value, cut to one short line."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = "none" if value is None else text
    return text if len(text) <= 80 else text[:77] + "…"
