"""Settings for people: resolved with sources, as JSON schema, as a template to start from, as help."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, TextIO, get_args

from coterie.config.fields import (
    MISSING,
    Setting,
    bare,
    is_section,
    kind_at,
    leaves,
    nullable,
    tag_of,
    union_members,
)
from coterie.config.layers import Loaded
from coterie.config.schema import RunConfig

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

GRAMMAR = """\
Settings come from files, the environment and flags; later wins, files and flags from left to right:
  @ FILE.toml          a file (a folder stands for its config.toml); --config FILE.toml is the same
  COTERIE_OPTIM__LR    an environment variable; a double underscore is the dot
  --optim.lr 1e-5      a flag; --optim.lr=1e-5 and optim.lr=1e-5 are the same
  --objective.mask-truncated, --no-objective.mask-truncated      true or false
  --data.train.0.size 50                one item of a list (from 0)
  --sampling.stop '["\\n\\n"]'            lists and tables as JSON; none is no value
"""

EXAMPLE = """\
[[data.train]]
type = "reasoning_gym"
name = "leg_counting"
size = 1000
seed = 0

[[data.heldout]]
type = "reasoning_gym"
name = "leg_counting"
size = 100
seed = 1
"""


def print_config(loaded: Loaded, file: TextIO | None = None) -> None:
    """Write every setting as `key = value  # source`: TOML that loads to the same configuration."""
    print("\n".join(_config_lines(loaded)), file=file or sys.stdout)


def config_json(loaded: Loaded) -> dict[str, Any]:
    """The same for machines: `{"config": {...}, "provenance": {"optim.lr": "--optim.lr", ...}}`."""
    return {"config": loaded.config.model_dump(mode="json"), "provenance": dict(loaded.provenance)}


def json_schema() -> dict[str, Any]:
    """JSON schema of the configuration, for editors."""
    return RunConfig.model_json_schema()


def init_text() -> str:
    """A file to start from: one example of data to edit, and every key at its default, commented out."""
    return "\n".join(_init_lines()) + "\n"


def help_for_settings(width: int = 100) -> str:
    """Every setting, grouped by table: key, what is expected, default, meaning."""
    lines = [GRAMMAR]
    for (table, tag), group in _groups():
        title = f"[{table}]" if table else "top level"
        lines.append(title + (f"  with type = {json.dumps(tag)}; [data.heldout.N] takes the same" if tag else ""))
        for setting in group:
            default = "required" if setting.default is MISSING else f"default {inline(setting.default)}"
            head = f"  --{setting.key.replace('.*.', '.N.').replace('_', '-')}   {setting.expected}; {default}"
            wide = textwrap.wrap(head, width, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)
            lines += [head] if len(head) <= width else wide
            lines += textwrap.wrap(setting.description, width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines)


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
            text = f"{_key(key)} = {inline(value)}"
            yield _aligned(f"# {text}" if value is None else text, _origin((*path, key), provenance))
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


def _groups() -> Iterator[tuple[tuple[str, str | None], list[Setting]]]:
    """Settings by (table, tag of the kind of source): top level first, a table before those inside it."""
    first = {name: index for index, name in enumerate(RunConfig.model_fields)}
    known = [setting for setting in leaves() if not setting.key.startswith("data.heldout.")]
    known.sort(key=lambda item: (first[item.key.split(".")[0]] if "." in item.key else -1, _table(item)))
    for group, found in groupby(known, key=lambda setting: (_table(setting), tag_of(setting.section))):
        yield group, list(found)


def _table(setting: Setting) -> str:
    return setting.key.rpartition(".")[0].replace(".*", ".N")


def _init_lines() -> Iterator[str]:
    yield "# Settings of one coterie run. `#key = value` shows a default: remove the # to change it."
    for (table, tag), group in _groups():
        yield ""
        if table.endswith(".N"):
            yield f"# {group[0].section.__doc__}" + (" (data.heldout takes the same.)" if tag else "")
            yield f"#[[{table.removesuffix('.N')}]]"
        elif table:
            # The header stands, so that uncommenting a key is enough; an optional table would be switched on.
            optional = nullable(kind_at(table.split(".")))
            yield f"# {group[0].section.__doc__}"
            yield f"{'#' if optional else ''}[{table}]"
        for setting in group:
            yield from textwrap.wrap(setting.description, 100, initial_indent="# ", subsequent_indent="# ")
            yield f"#{setting.key.rpartition('.')[2]} = {_sample(setting)}"
    yield ""
    yield "# What to learn: replace this example by your own."
    yield EXAMPLE.rstrip()


def _sample(setting: Setting) -> str:
    """The default, or what to write where there is none."""
    if setting.default is not MISSING:
        return '"none"' if setting.default is None else inline(setting.default)
    choices = [choice for member in union_members(setting.kind) for choice in get_args(member)]
    return inline(choices[0] if choices else "…")
