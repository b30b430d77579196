"""Dotted keys of the schema: lookup, parsing of text, nearest keys and error messages."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from coterie.config.foreign import foreign
from coterie.config.objective import UserFunction
from coterie.config.parts import Named
from coterie.config.renamed import present_key, present_value
from coterie.config.schema import RunConfig
from coterie.config.user_functions import FUNCTION
from coterie.text import did_you_mean

MISSING: Any = object()
"""Result of `kind_at` where the schema has no such key."""

TRUTH = {word: word in ("true", "yes", "on", "1") for word in ("true", "yes", "on", "1", "false", "no", "off", "0")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One leaf of the schema."""

    key: str
    """Dotted, with `*` for a list's index, e.g. `data.train.*.size`."""
    section: type[BaseModel]
    """The class that declares it."""
    kind: Any
    """Its annotation."""
    default: Any
    """`MISSING` where a value must be given."""
    description: str
    expected: str
    """The type and its bounds, e.g. `float > 0`."""


def bare(kind: Any) -> Any:
    """The annotation without `Annotated` and without `| None`."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    members = [member for member in union_members(kind) if member is not type(None)]
    return bare(members[0]) if len(members) == 1 and members[0] is not kind else kind


def union_members(kind: Any) -> tuple[Any, ...]:
    """The members of a union; the annotation itself where it is none."""
    if get_origin(kind) is Annotated:
        return union_members(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def tag_of(section: type[BaseModel]) -> str | None:
    """The value of a source's `type`, e.g. `file`; None for other sections."""
    field = section.model_fields.get("type")
    return get_args(field.annotation)[0] if field is not None else None


def nullable(kind: Any) -> bool:
    return type(None) in union_members(kind) or kind is Any


def kind_below(kind: Any, part: str, value: Any = None) -> Any:
    """The annotation one step down; the `type` in `value`, the table so far, picks a union's member."""
    kind = bare(kind)
    if is_section(kind):
        field = kind.model_fields.get(part)
        return field.annotation if field is not None else MISSING
    if kind is Any:
        return Any
    if get_origin(kind) is list:
        return get_args(kind)[0] if part.isdecimal() else MISSING
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    sections = [member for member in union_members(kind) if is_section(member)]
    tag = value.get("type") if isinstance(value, dict) else None
    sections.sort(key=lambda section: tag_of(section) != tag)
    kinds = (kind_below(section, part) for section in sections)
    return next((below for below in kinds if below is not MISSING), MISSING)


def kind_at(path: Sequence[str], data: Any = None) -> Any:
    """The annotation at a dotted path, or `MISSING`; `data` is the configuration so far."""
    kind: Any = RunConfig
    for part in path:
        kind = kind_below(kind, part, data)
        if kind is MISSING:
            return MISSING
        data = child(data, part)
    return kind


def child(data: Any, part: str) -> Any:
    """`data[part]` for tables and lists alike; None where there is none."""
    if isinstance(data, dict):
        return data.get(part)
    if isinstance(data, list) and part.isdecimal() and int(part) < len(data):
        return data[int(part)]
    return None


def parse_text(text: str, kind: Any) -> Any:
    """Value of a flag's or an environment variable's text for a setting of this kind.

    Text that does not fit comes back as it is, so that validation reports it with its key and source.
    """
    if nullable(kind) and text.strip().lower() in ("none", "null"):
        return None
    kind = bare(kind)
    try:
        if kind is bool:
            return TRUTH[text.strip().lower()]
        if kind is int:
            return _whole(text)
        if kind is float:
            return float(text)
        if kind is Any:
            return json.loads(text)
        structured = text.lstrip()[:1] in ("[", "{")
        if structured and kind is not str and get_origin(kind) is not Literal:
            return json.loads(text)
    except (KeyError, ValueError, OverflowError, RecursionError):
        return text
    return text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


@cache
def settings() -> dict[str, Setting]:
    """Every leaf of the schema by its dotted key, in the schema's order."""
    return {setting.key: setting for setting in leaves()}


def leaves() -> Iterator[Setting]:
    """Every leaf of the schema; a key that several kinds of source share comes once for each."""
    return _leaves(RunConfig, "")


def _leaves(section: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        kind = bare(field.annotation)
        key = f"{prefix}{name}"
        items = union_members(get_args(kind)[0]) if get_origin(kind) is list else ()
        sections = [item for item in map(bare, items) if is_section(item)]
        if is_section(kind):
            yield from _leaves(kind, f"{key}.")
        elif sections:
            for item in sections:
                yield from _leaves(item, f"{key}.*.")
        else:
            yield Setting(
                key=key,
                section=section,
                kind=field.annotation,
                default=MISSING if field.is_required() else field.get_default(call_default_factory=True),
                description=field.description or "",
                expected=describe(field),
            )


def describe(field: FieldInfo) -> str:
    """Type and bounds: `int >= 1`, `constant | linear`."""
    choices = [choice for item in field.metadata if isinstance(item, Named) for choice in item.choices]
    words = " | ".join(choices) or _words(field.annotation)
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(item, name):g}"
        for item in field.metadata
        for name, sign in signs.items()
        if getattr(item, name, None) is not None
    ]
    return " ".join([words, " and ".join(bounds)]).strip() + (" or none" if nullable(field.annotation) else "")


def _words(kind: Any) -> str:
    if kind == UserFunction:
        return "module:function"
    kind = bare(kind)
    plain = {int: "int", float: "float", bool: "bool", str: "str", Any: "any JSON value"}
    if kind in plain:
        return plain[kind]
    if get_origin(kind) is Literal:
        return " | ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is list:
        return f"list[{'table' if '|' in (inner := _words(get_args(kind)[0])) else inner}]"
    if get_origin(kind) is dict or is_section(kind):
        return "table"
    return " | ".join(_words(member) for member in union_members(kind) if member is not type(None))


def nearest(path: Sequence[str], value: Any = None) -> str:
    """Hint for an unknown key: `; did you mean optim.lr?`, the present name of a former setting, the setting here for
    another trainer's name, or why there is none; an empty string where nothing is near.

    Args:
        value: value of the unknown key; a former value is named by its present one too.
    """
    present = present_key(path)
    if present is not None:
        other = present_value(present, value)
        return f"; did you mean {present}{'' if other == value else f' = {json.dumps(other)}'}?"
    asked = ".".join("*" if part.isdecimal() else part for part in path)
    keys = [
        *settings(),
        *{key.rsplit(".", 1)[0] for key in settings() if "." in key and not key.endswith(".*")},
    ]
    siblings = [key for key in keys if key.rpartition(".")[0] == asked.rpartition(".")[0]]
    typo = difflib.get_close_matches(asked, siblings, n=1, cutoff=0.9)
    elsewhere = foreign(path) if not typo else None
    if elsewhere is not None and elsewhere.key != ".".join(path):
        if not elsewhere.key:
            return f"; coterie has no such setting: {elsewhere.note}"
        return f"; did you mean {elsewhere.key}?" + (f" ({elsewhere.note})" if elsewhere.note else "")
    last = asked.rsplit(".", 1)[-1]
    near_sibling = typo or difflib.get_close_matches(asked, siblings, n=1, cutoff=0.75)
    same_name = [key for key in keys if key.rsplit(".", 1)[-1] == last]
    leaf_names = {key.rsplit(".", 1)[-1]: key for key in reversed(keys)}
    near_leaf = [leaf_names[name] for name in difflib.get_close_matches(last, leaf_names, n=1, cutoff=0.75)]
    near = difflib.get_close_matches(asked, keys, n=1, cutoff=0.6)
    numbers = [part for part in path if part.isdecimal()]
    for key in (*near_sibling, *same_name[:1], *near, *near_leaf):
        if key == asked:
            continue
        for number in numbers:
            key = key.replace("*", number, 1)
        return f"; did you mean {key.replace('*', '0')}?"
    return ""


# Validation problems in one line each: the key, its value, where it came from, what was expected.

Sources = Mapping[tuple[str, ...], str]
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
    expected = " or ".join(dict.fromkeys(_expected(problem, data, path) for problem in problems))
    return f"{key} = {shown(_look_up(data, path))} (from {origin}): expected {expected}"


def _expected(problem: ErrorDetails, data: Mapping[str, Any], path: tuple[str, ...]) -> str:
    kind = problem["type"]
    if kind in BOUNDS:
        return BOUNDS[kind].format(**problem.get("ctx", {}))
    if kind == "unknown_name":
        return _one_of(_look_up(data, path), problem["ctx"]["names"].split(", "))
    if kind == "literal_error":
        members = [member for member in union_members(bare(kind_at(path, data))) if get_origin(member) is Literal]
        value, choices = _look_up(data, path), [str(choice) for member in members for choice in get_args(member)]
        return _one_of(value, choices, near=present_value(".".join(path), value))
    if kind == "string_pattern_mismatch" and problem["ctx"]["pattern"] == FUNCTION:
        return "module:function"
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
