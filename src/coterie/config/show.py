"""Settings for people: resolved with sources, one value on one line, as JSON schema."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from coterie.config.fields import (
    bare,
    is_section,
    kind_at,
)
from coterie.config.layers import Loaded
from coterie.config.paths import PATHS
from coterie.config.schema import RunConfig

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def print_config(loaded: Loaded, file: TextIO | None = None) -> None:
    """Write every setting as `key = value  # source`: TOML that loads to the same configuration."""
    print("\n".join(_config_lines(loaded)), file=file or sys.stdout)


def config_json(loaded: Loaded) -> dict[str, Any]:
    """The same for machines: `{"config": {...}, "provenance": {"optim.lr": "--optim.lr", ...}}`."""
    return {"config": loaded.config.model_dump(mode="json"), "provenance": dict(loaded.provenance)}


def json_schema() -> dict[str, Any]:
    """JSON schema of the configuration, for editors."""
    return RunConfig.model_json_schema()


def inline(value: Any) -> str:
    """One value as TOML on one line; `none` for None."""
    if value is None:
        return "none"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        pairs = (f"{_key(str(key))} = {inline(item)}" for key, item in value.items() if item is not None)
        return f"{{ {', '.join(pairs)} }}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(inline(item) for item in value)}]"
    return repr(value)


def _key(name: str) -> str:
    return name if BARE_KEY.fullmatch(name) else inline(name)


def _config_lines(loaded: Loaded) -> Iterator[str]:
    yield from _table_lines(loaded.config.model_dump(), (), loaded.provenance)


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...], provenance: Mapping[str, str]) -> Iterator[str]:
    """Plain values first, then tables and lists of tables, as TOML wants it."""
    below: list[tuple[str, Any]] = []
    for key, value in table.items():
        tables = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
        if tables or (is_section(bare(kind_at((*path, key)))) and value is not None):
            below.append((key, value))
        else:
            text, origin = f"{_key(key)} = {inline(value)}", _origin((*path, key), provenance)
            # A relative default starts at the current directory; written down, it would start at the file.
            unwritten = value is None or (origin == "default" and ".".join((*path, key)) in PATHS)
            yield _aligned(f"# {text}" if unwritten else text, origin)
    for key, value in below:
        header = ".".join(part for part in (*path, key) if not part.isdecimal())
        items = [(str(index), item) for index, item in enumerate(value)] if isinstance(value, list) else [("", value)]
        for index, item in items:
            yield ""
            yield f"[[{header}]]" if index else f"[{header}]"
            yield from _table_lines(item, (*path, key, index) if index else (*path, key), provenance)


def _origin(path: tuple[str, ...], provenance: Mapping[str, str]) -> str:
    """Source of a leaf; of a free table (`params`), all sources of its keys."""
    key = ".".join(path)
    found = [source for name, source in provenance.items() if name == key or name.startswith(f"{key}.")]
    return ", ".join(dict.fromkeys(found)) or "default"


def _aligned(text: str, source: str) -> str:
    return f"{text:<40}  # {source}"
