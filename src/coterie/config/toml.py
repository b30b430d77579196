"""TOML writer, which the standard library lacks: `tomllib.loads(dumps(x))` is `x` less its Nones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import PurePath
from typing import Any

from coterie.errors import ConfigError

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def dumps(data: Mapping[str, Any]) -> str:
    """Text of `data`: plain values first, then `[tables]`, lists of tables as `[[tables]]`.

    TOML has no null, so keys whose value is None are left out. Keys keep their order, so the same data
    gives the same bytes.

    Raises:
        ConfigError: a value that TOML cannot hold (its dotted key is named): None inside a list, a lone
            surrogate, a key that is not a string, an object of another type.
    """
    lines = list(_table(data, ()))
    return "\n".join(lines).strip("\n") + "\n" if lines else ""


def inline(value: Any) -> str:
    """One value on one line; `none` for None."""
    return "none" if value is None else _value(value, ())


def quoted(key: str) -> str:
    """A key, in quotes where it needs them."""
    return _key(key, (key,))


def _table(data: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    tables: list[tuple[str, Any]] = []
    for key, value in data.items():
        where = (*path, key)
        if value is None:
            continue
        if isinstance(value, Mapping) or _is_table_list(value):
            tables.append((key, value))
        else:
            yield f"{_key(key, where)} = {_value(value, where)}"
    for key, value in tables:
        where = (*path, key)
        header = ".".join(_key(part, where) for part in where)
        if isinstance(value, Mapping):
            # A table that holds only tables needs no header of its own.
            if not value or any(not (isinstance(v, Mapping) or _is_table_list(v)) for v in value.values()):
                yield from ("", f"[{header}]")
            yield from _table(value, where)
            continue
        for item in value:
            yield from ("", f"[[{header}]]")
            yield from _table(item, where)


def _is_table_list(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _value(value: object, where: tuple[str, ...]) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str() | PurePath():
            return _string(str(value), where)
        case int():
            return int.__repr__(value)
        case float():
            return float.__repr__(value)  # repr gives nan, inf and 1e-06, all of which are TOML
        case datetime() | date() | time():
            return value.isoformat()
        case Mapping():
            pairs = ((k, v, (*where, k)) for k, v in value.items() if v is not None)
            inner = ", ".join(f"{_key(k, at)} = {_value(v, at)}" for k, v, at in pairs)
            return f"{{ {inner} }}" if inner else "{}"
        case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
            return "[" + ", ".join(_value(v, (*where, str(i))) for i, v in enumerate(value)) + "]"
    raise ConfigError(
        f"{_dotted(where)} = {value!r} is a {type(value).__name__}, which TOML cannot hold; "
        "use text, a number, a boolean, a date, a list or a table"
        + (" (None can only be left out, and not from a list)" if value is None else "")
    )


def _key(key: object, where: tuple[object, ...]) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"{_dotted(where)}: the key {key!r} is a {type(key).__name__}; keys of a table must be text")
    return key if _BARE.fullmatch(key) else _string(key, where)


def _string(text: str, where: tuple[object, ...]) -> str:
    out = []
    for char in text:
        code = ord(char)
        if char in _SHORT:
            out.append(_SHORT[char])
        elif code < 0x20 or code == 0x7F:
            out.append(f"\\u{code:04X}")
        elif 0xD800 <= code <= 0xDFFF:
            raise ConfigError(
                f"{_dotted(where)} = {text!r} holds the lone surrogate U+{code:04X}, not valid Unicode; remove it"
            )
        else:
            out.append(char)
    return '"' + "".join(out) + '"'


def _dotted(where: tuple[object, ...]) -> str:
    return ".".join(str(part) for part in where)
