"""Merge of settings from several sources, with the source of every leaf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from coterie.config import problems
from coterie.config.algorithms import find
from coterie.config.keys import MISSING, child, kind_at, nearest, nullable, parse_text
from coterie.config.paths import SEARCH, anchor, located
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A valid configuration, with the source of each value."""

    config: RunConfig
    provenance: Mapping[str, str]
    """Dotted key of every leaf (`data.train.0.size`) → a file, a variable, a flag or `default`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One value that one source gives to one key."""

    path: tuple[str, ...]
    value: Any
    """Text that still has to be read by the field's type, or a value."""
    source: str
    text: bool = True


class Layers:
    """The merged tables, with the source of each leaf."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.sources: dict[tuple[str, ...], str] = {}
        self.problems: list[str] = []
        """Errors of the merge, one line each; `validate` reports them with all others."""
        self.folders: dict[str, Path] = {}
        """Base folders of relative paths by source; the current directory for other sources."""

    def merge(self, table: Mapping[str, Any], source: str, path: tuple[str, ...] = ()) -> None:
        """Merge a table into the settings; lists replace. `algorithm` comes first: other keys override its preset."""
        for key, value in sorted(table.items(), key=lambda item: bool(path) or item[0] != "algorithm"):
            self.put((*path, key), value, source)

    def put(self, path: tuple[str, ...], value: Any, source: str) -> None:
        parent: Any = self.data
        for part in path[:-1]:
            parent = parent[int(part)] if isinstance(parent, list) else parent[part]
        key: Any = int(path[-1]) if isinstance(parent, list) else path[-1]
        if value in ("none", "None") and nullable(kind_at(path, self.data)):
            value = None
        if path == ("algorithm",):
            try:
                self._switch(value)
            except ConfigError as error:
                self.problems.append(f"{error} (from {source})")
                return
        if isinstance(value, dict) and isinstance(child(parent, path[-1]), dict):
            self.merge(value, source, path)
            return
        if isinstance(parent, list) or key in parent:
            self._forget(path)
        if isinstance(value, dict) and value:
            parent[key] = {}
            self.merge(value, source, path)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            parent[key] = [{} for _ in value]
            for index, item in enumerate(value):
                self.merge(item, source, (*path, str(index)))
        else:
            parent[key] = value
            self.sources[path] = source

    def _forget(self, path: tuple[str, ...]) -> None:
        """Remove the sources of a replaced value."""
        for key in [key for key in self.sources if key[: len(path)] == path]:
            del self.sources[key]

    def assign(self, assignment: Assignment) -> None:
        """Set one key from a flag or a variable, making the tables on the way; see `problems`."""
        try:
            self._assign(assignment)
        except ConfigError as error:
            self.problems.append(str(error))

    def _assign(self, assignment: Assignment) -> None:
        path, source = assignment.path, assignment.source
        kind = kind_at(path, self.data)
        if kind is MISSING:
            raise ConfigError(f"unknown setting {'.'.join(path)} (from {source}){nearest(path, assignment.value)}")
        parent: Any = self.data
        for depth, part in enumerate(path[:-1], start=1):
            parent = self._open(parent, part, path[:depth], source)
        if isinstance(parent, list):
            self._open(parent, path[-1], path, source)
        value = parse_text(assignment.value, kind) if assignment.text else assignment.value
        self.put(path, value, source)
        if isinstance(parent, list) and not isinstance(value, dict):
            self.sources[path[:-1]] = source  # a list of plain values is one leaf

    def _open(self, parent: Any, part: str, path: tuple[str, ...], source: str) -> Any:
        """The table or list at `path`, made (a list: from its default) when it is not there yet."""
        if isinstance(parent, list):
            if int(part) > len(parent):
                where, have = ".".join(path[:-1]), len(parent)
                raise ConfigError(
                    f"{where} has no item {part} (from {source}): it has {have} item(s), counted from 0; "
                    f"index {have} appends one"
                )
            if int(part) == len(parent):
                parent.append({})
            elif not isinstance(parent[int(part)], dict | list):
                parent[int(part)] = {}
            return parent[int(part)]
        below = parent.get(part)
        if not isinstance(below, dict | list):
            default = child_default(path)
            below = parent[part] = default if isinstance(default, list) else {}
        return below

    def _switch(self, name: object) -> None:
        """Apply a preset over the settings so far. Settings of the preset before go back to their defaults, whichever
        source they have: a stored run has them all in its file."""
        before = self.data.get("algorithm")
        for key in find(before).settings if before is not None else ():
            path = tuple(key.split("."))
            # A section that is there or not (a critic) goes as a whole: its presence is the setting.
            self._drop(path[:1] if nullable(kind_at(path[:1])) else path)
        for key, value in find(name).settings.items():
            path = tuple(key.split("."))
            parent: Any = self.data
            for part in path[:-1]:
                if not isinstance(parent.get(part), dict):
                    parent[part] = {}
                parent = parent[part]
            self.put(path, value, f"algorithm {name}")

    def _drop(self, path: tuple[str, ...]) -> None:
        parent: Any = self.data
        for part in path[:-1]:
            parent = child(parent, part)
        if isinstance(parent, dict) and path[-1] in parent:
            del parent[path[-1]]
            self._forget(path)

    def add_folders(self, folders: Sequence[str], source: str) -> None:
        """Append folders to `module_path`."""
        given = self.data.get(SEARCH, [])
        if isinstance(given, list) and all(isinstance(folder, str) for folder in given):
            places = [located(folder, self._folder((SEARCH,))) for folder in given]
            self.put((SEARCH,), list(dict.fromkeys((*places, *folders))), source)

    def validate(self) -> Loaded:
        """Make paths absolute, and check against the schema.

        Raises:
            ConfigError: one line for each problem of all sources: key, value, source, what was expected.
        """
        try:
            cause = anchor(self.data, self._folder)
        except ConfigError as error:
            self.problems.append(str(error))
        else:
            if cause is not None:
                self.sources[(SEARCH,)] = self.sources.get(cause, "default")
        try:
            # JSON mode is strict about types (text is no number) yet takes tables for sections.
            text = problems.to_json(self.data)
        except (TypeError, ValueError, RecursionError) as error:
            lines = [*self.problems, problems.not_json(self.data, self.sources, error)]
            raise ConfigError("\n".join(lines)) from None
        try:
            config = RunConfig.model_validate_json(text, strict=True)
        except ValidationError as error:
            lines = [*self.problems, problems.explain(error, self.data, self.sources)]
            raise ConfigError("\n".join(lines)) from None
        if self.problems:
            raise ConfigError("\n".join(self.problems))
        keys = [path for path, _ in flatten(config.model_dump())]
        provenance = {".".join(path): self.sources.get(path, "default") for path in keys}
        return Loaded(config=config, provenance=provenance)

    def _folder(self, place: tuple[str, ...]) -> Path:
        """Base folder of a relative path at this place."""
        sources = (self.sources.get(place[:length]) for length in range(len(place), 0, -1))
        source = next((source for source in sources if source is not None), "")
        return self.folders.get(source, Path.cwd())


def child_default(path: Sequence[str]) -> Any:
    """The schema's default at a path as plain data, e.g. for `rewards.functions`; None below a list."""
    data: Any = RunConfig().model_dump()
    for part in path:
        data = child(data, part)
    return data


def flatten(data: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Leaves with their paths. Lists of tables are entered; other lists, and empty tables, are leaves."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from flatten(value, (*path, str(key)))
    elif isinstance(data, list) and data and all(isinstance(item, dict) for item in data):
        for index, value in enumerate(data):
            yield from flatten(value, (*path, str(index)))
    else:
        yield path, data
