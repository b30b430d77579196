"""Dotted keys of the schema: lookup, parsing of text, and the nearest key."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from coterie.config.foreign import foreign
from coterie.config.objective import UserFunction
from coterie.config.parts import Named
from coterie.config.renamed import present_key, present_value
from coterie.config.schema import RunConfig

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
