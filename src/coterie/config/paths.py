"""Resolution of paths in settings: files, folders, models and functions, relative to the file that names them.

A relative path in a TOML file starts at that file's folder, one in a flag or an environment variable at the current
directory. `~` is the home folder everywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from coterie.config.user_functions import FUNCTION
from coterie.errors import ConfigError

PATHS = ("runs", "data.train.*.path", "data.heldout.*.path", "engine.weights_folder", "engine.python")
"""Settings that name a file or folder."""
MODELS = (
    "model.name",
    "distill.teacher",
    "reference.model",
    "grouping.embedding",
    "data.train.*.name",
    "data.heldout.*.name",
)
"""Settings that may name a folder; of data sources, only those of type `hub`."""
INDEXES = ("environment.params.tools.*.index",)
"""Settings that name the file of a search index, an asset or a server."""
COMMANDS = ("environment.params.command.*",)
"""Settings with the words of a command, of which those that are files are found from any folder."""
FUNCTIONS = (
    "data.train.*.target",
    "data.heldout.*.target",
    "rewards.functions.*.name",
    "rewards.steps.*.name",
    "environment.name",
    "environment.params.tools.*",
    "environment.params.tools.*.name",
    "environment.params.factory",
    "environment.params.make",
    "environment.params.taskset",
    "engine.name",
    "advantage.estimator",
    "objective.loss",
    "advantage.baseline",
    "grouping.preset",
    "grouping.key",
)
"""Settings that may name a `module:function`."""
SEARCH = "module_path"
"""The setting with the folders in which modules are looked for first."""

_RESERVED = {"grouping.embedding": ("policy", "none")}
_HERE = ("./", "../", ".\\", "..\\")

Base = Callable[[tuple[str, ...]], Path]
"""The folder at which a relative path of the setting at this place starts."""


def anchor(data: dict[str, Any], base: Base) -> tuple[str, ...] | None:
    """Make the paths in a table of settings absolute, and enter into `module_path` the folders of the functions it
    names. Values of the wrong type are left to validation.

    Args:
        data: changed in place.

    Returns:
        Place of a setting whose function added to `module_path`; None where none did.
    """
    for pattern in PATHS:
        for table, key, place in _sites(data, pattern):
            table[key] = located(table[key], base(place))
    for pattern in MODELS:
        for table, key, place in _sites(data, pattern):
            if table[key] not in _RESERVED.get(pattern, ()) and (key != "name" or table.get("type", "hub") == "hub"):
                table[key] = located_model(table[key], base(place))
    for pattern in INDEXES:
        for table, key, place in _sites(data, pattern):
            table[key] = located_index(table[key], base(place))
    for pattern in COMMANDS:
        for table, key, place in _sites(data, pattern):
            table[key] = located_word(table[key], base(place))
    return _anchor_functions(data, base)


def located(text: str, base: Path) -> str:
    """Absolute path. Backslashes separate folders where only that leads to something that exists."""
    if not text or "://" in text:
        return text
    path = Path(base, os.path.expanduser(text))
    if "\\" in text and not path.exists():
        other = Path(base, os.path.expanduser(text.replace("\\", "/")))
        path = other if other.exists() else path
    path = path.absolute()
    plain = Path(os.path.normpath(path))
    # Behind a symbolic link `..` is another folder than the one that normpath makes of it.
    return str(plain if ".." not in path.parts or plain.resolve() == path.resolve() else path)


def located_model(text: str, base: Path) -> str:
    """Absolute path of a model or data set in a folder; the name of an asset or of a hub is unchanged."""
    spelled = os.path.expanduser(text)
    if os.path.isabs(spelled) or spelled.startswith(_HERE) or spelled in (".", ".."):
        return located(text, base)
    for folder in (base, Path.cwd()):
        path = located(text, folder) if text else ""
        if os.path.isdir(path):
            return path
    return text


def located_index(text: str, base: Path) -> str:
    """Absolute path of the file of an index; the name of an asset and a URL are unchanged."""
    is_path = os.path.isabs(os.path.expanduser(text)) or "/" in text or "\\" in text or Path(text).suffix
    return located(text, base) if is_path else text


def located_word(text: str, base: Path) -> str:
    """Absolute path of a word of a command that is a file; any other as it is."""
    return located(text, base) if text and Path(base, os.path.expanduser(text)).is_file() else text


def portable(text: str) -> str:
    """The part of a path that survives a move of its project: the name of an absolute one."""
    return Path(text).name if os.path.isabs(text) else text


def has_module(folder: str | Path, module: str) -> bool:
    """True if a folder holds the file of a module."""
    path = Path(folder, *module.split("."))
    return path.with_name(path.name + ".py").is_file() or (path / "__init__.py").is_file()


def is_stored_run(file: Path) -> bool:
    """True if a file of settings is the one of a stored run."""
    return file.name == "config.toml" and (file.parent / "checkpoints").is_dir() and (file.parent / "logs").is_dir()


def relocate(data: dict[str, Any], file: Path) -> None:
    """Adapt paths to a project that was moved or renamed as a whole, with its run folder: paths of a stored run that
    are gone, and exist at the same place seen from where the run's folder is now, are changed to that place.

    Args:
        data: the settings in `file`, the config.toml of a run; changed in place.
    """
    runs, now = data.get("runs"), file.absolute().parent.parent
    if not isinstance(runs, str) or not os.path.isabs(runs) or Path(runs) == now:
        return
    before, after = _without_common_end(Path(runs), now)

    def moved(text: Any) -> Any:
        if not isinstance(text, str) or not os.path.isabs(text) or os.path.exists(text):
            return text
        path = Path(text)
        new = after / path.relative_to(before) if path.is_relative_to(before) else path
        return str(new) if new.exists() else text

    for pattern in (*PATHS, *MODELS, *INDEXES, *COMMANDS):
        for table, key, _ in _sites(data, pattern):
            table[key] = moved(table[key])
    if isinstance(data.get(SEARCH), list):
        data[SEARCH] = [moved(folder) for folder in data[SEARCH]]


def _without_common_end(path: Path, other: Path) -> tuple[Path, Path]:
    while path.name and path.name == other.name:
        path, other = path.parent, other.parent
    return path, other


def hashed(dump: Mapping[str, Any], written: Mapping[str, Any], *, verbatim: bool) -> dict[str, Any]:
    """Settings that identify a checkpoint: those that were written down, without Nones.

    Args:
        dump: all settings.
        written: the content of the run's config.toml; settings that came into being later are not in it.
        verbatim: paths as they are written; else as `portable` gives them, so that a project may move.
    """
    settings: dict[str, Any] = _written_part(dump, written)
    for pattern in (*PATHS, *MODELS, *INDEXES, *COMMANDS):
        for table, key, place in _sites(settings, pattern):
            table[key] = _at(written, place) if verbatim else portable(table[key])
    return settings


def _written_part(value: Any, written: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(written, Mapping):
        pairs = ((key, item) for key, item in value.items() if key in written and item is not None)
        return {key: _written_part(item, written[key]) for key, item in pairs}
    if isinstance(value, list) and isinstance(written, list) and len(value) == len(written):
        return [_written_part(item, below) for item, below in zip(value, written, strict=True)]
    return value


def _at(data: Any, place: tuple[str, ...]) -> Any:
    for part in place:
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data


def _anchor_functions(data: dict[str, Any], base: Base) -> tuple[str, ...] | None:
    """Folders of the named functions: beside the file that names them, else the current directory."""
    given = data.get(SEARCH, [])
    if not isinstance(given, list) or not all(isinstance(folder, str) for folder in given):
        return None
    given = [located(folder, base((SEARCH,))) for folder in given]
    cwd, cause = str(Path.cwd()), None
    homes: dict[tuple[str, str], tuple[str, ...]] = {}
    for pattern in FUNCTIONS:
        for table, key, place in _sites(data, pattern):
            module = table[key].partition(":")[0]
            beside = str(base(place).absolute())
            if not re.match(FUNCTION, table[key]) or any(has_module(folder, module) for folder in given):
                continue
            home = next((folder for folder in (beside, cwd) if has_module(folder, module)), beside)
            # A folder that has no such module is entered too: the error says that it was looked for there.
            if has_module(home, module) or home != cwd:
                homes.setdefault((module, home), place)
                cause = cause or place
    folders = _in_order(homes)
    if given or folders:
        data[SEARCH] = [*given, *folders]
    return cause


def _in_order(homes: Mapping[tuple[str, str], tuple[str, ...]]) -> list[str]:
    """Order of the folders in which each module is found in its own folder first."""
    folders = list(dict.fromkeys(folder for _, folder in homes))
    for order in (folders[::-1], folders):
        first = ((m, home, next((f for f in order if has_module(f, m)), home)) for m, home in homes)
        wrong = next(((m, home, other) for m, home, other in first if other != home), None)
        if wrong is None:
            return order
    module, home, other = wrong
    raise ConfigError(
        f"{'.'.join(homes[module, home])} names the module {module!r} of {home}, but {other}, whose functions are "
        "used too, holds a module of the same name; rename one of them"
    )


def _sites(data: Any, pattern: str) -> Iterator[tuple[Any, Any, tuple[str, ...]]]:
    """(table, key, place) of each text that stands where the pattern points; `*` is any item of a list."""

    def below(value: Any, parts: list[str], place: tuple[str, ...]) -> Iterator[tuple[Any, Any, tuple[str, ...]]]:
        part, *rest = parts
        if part == "*":
            for index, item in enumerate(value) if isinstance(value, list) else ():
                if rest:
                    yield from below(item, rest, (*place, str(index)))
                elif isinstance(item, str):
                    yield value, index, (*place, str(index))
        elif isinstance(value, dict) and part in value:
            if rest:
                yield from below(value[part], rest, (*place, part))
            elif isinstance(value[part], str):
                yield value, part, (*place, part)

    return below(data, pattern.split("."), ())
