"""Layers of settings: defaults < files, left to right < environment < flags, left to right.

    coterie train @ base.toml @ mine.toml --optim.lr 1e-5 steps=50 --no-objective.mask-truncated

Tables merge deeply, lists replace. Every value remembers where it came from.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coterie.config.algorithms import stored
from coterie.config.keys import MISSING, bare, kind_at, nearest
from coterie.config.layers import Assignment, Layers, Loaded, flatten
from coterie.config.paths import is_stored_run, located, relocate
from coterie.config.renamed import translated
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError

# Reading one TOML file of settings, with an error that says what is wrong with it.

MAX_BYTES = 4 << 20
_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_DEEP = re.compile(rf"^[ \t]*\[?\[?[ \t]*(?:{_PART}[ \t]*\.[ \t]*){{40}}", re.MULTILINE)
"""A key of more parts than any setting has; the parser's time grows with their square."""


def file_of(path: Path) -> Path:
    """The file for a path; a folder stands for the `config.toml` in it."""
    return path / "config.toml" if path.is_dir() else path


def read_toml(path: Path) -> dict[str, Any]:
    """Read one file of settings; a folder stands for the `config.toml` in it."""
    path = file_of(path)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        raise ConfigError(
            f"{path} is not a TOML file: settings are TOML (`coterie config init` writes one to start from)"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES >> 20} MiB: that is not a file of settings")
        raw = path.read_bytes()
    except FileNotFoundError:
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(f"{path} does not exist{where}{_nearest_files(path)}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    text = _decode(raw, path)
    if _DEEP.search(text):
        raise ConfigError(f"{path} nests its keys too deeply: no setting has 40 dots")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path} nests its values too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {_plain(str(error))}") from None


def _decode(raw: bytes, path: Path) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{path} is UTF-16 text: save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} in line {line} (Latin-1?); save it as UTF-8"
        ) from None


def _plain(message: str) -> str:
    """The parser's commonest messages in plainer words."""
    if message.startswith(("Cannot overwrite a value", "Cannot declare")):
        return f"a key or table is given twice: {message[0].lower()}{message[1:]}"
    return message


def _nearest_files(path: Path) -> str:
    """`; did you mean recipes/legs/config.toml?` from the same folder and from recipes/."""
    beside = [str(file) for file in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
    recipes = [str(file) for file in sorted(Path("recipes").glob("*/*.toml"))]
    near = difflib.get_close_matches(str(path), [*beside, *recipes], n=2, cutoff=0.6) or recipes[:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


PREFIX = "COTERIE_"
RESERVED = {"COTERIE_HOME", "COTERIE_NO_UV"}
"""Environment variables with this prefix that are not settings."""
ASSIGNMENT = re.compile(r"[A-Za-z_][\w.\-]*=")


def flag_settings(args: Sequence[str]) -> dict[str, Any]:
    """The settings that these flags give, by dotted key; the environment takes no part.

    Raises:
        ConfigError: keys are unknown, or values are refused.
    """
    given = load(args, env={}).config.model_dump(exclude_unset=True)
    return {".".join(path): value for path, value in flatten(given)}


def load(args: Sequence[str], env: Mapping[str, str] | None = None) -> Loaded:
    """Resolve files, environment and flags into one configuration.

    Args:
        args: words of the command line, see the module's first lines for the grammar.
        env: the environment; the process's own when None.

    Raises:
        ConfigError: files cannot be read, keys are unknown, or values are refused; a line for each problem.
    """
    layers = Layers()
    files, flags = parse_args(args, layers.problems)
    unread = []
    for file in files:
        try:
            _merge_file(layers, file)
        except ConfigError as error:
            unread.append(str(error))
    # A method first: flags may stand in any order, and lie over its row.
    assignments = [*from_environment(os.environ if env is None else env), *flags]
    for assignment in sorted(assignments, key=lambda item: item.path != ("algorithm",)):
        layers.assign(assignment)
    if unread:  # what the other settings lack may stand there
        raise ConfigError("\n".join([*unread, *layers.problems]))
    return layers.validate()


def load_file(path: Path) -> Loaded:
    """Settings of one file over the defaults, without environment and flags, e.g. those of a stored run."""
    layers = Layers()
    _merge_file(layers, path)
    return layers.validate()


def load_with(
    base: Path | RunConfig | None,
    tables: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    source: str,
    folders: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Loaded:
    """Settings given as Python values, over the environment, over a file or other settings, over the defaults.

    Args:
        base: a TOML file, or whole settings.
        tables: nested as in a file, e.g. `{"optim": {"lr": 1e-5}}`.
        settings: by dotted key, e.g. `{"optim.lr": 1e-5}`; laid over `tables`.
        source: what an error calls the place of both.
        folders: added to `module_path`.
        env: the environment; the process's own when None.
    """
    layers = Layers()
    if isinstance(base, RunConfig):
        layers.merge(stored(base), "config")
    elif base is not None:
        _merge_file(layers, base)
    for assignment in from_environment(os.environ if env is None else env):
        layers.assign(assignment)
    layers.merge(tables, source)
    for key, value in sorted(settings.items(), key=lambda item: item[0] != "algorithm"):
        layers.assign(Assignment(path=_path(key), value=value, source=source, text=False))
    if folders:
        layers.add_folders(folders, source)
    return layers.validate()


def load_tables(
    tables: Sequence[tuple[str, Mapping[str, Any]]], place: Path, env: Mapping[str, str] | None = None
) -> RunConfig:
    """Settings of several tables, later over earlier ones, over the environment, over the defaults.

    Args:
        tables: each with what an error calls its place; a file's path makes its own folder the start of relative paths.
        place: folder at which the relative paths of the others start.
        env: the environment; the process's own when None.
    """
    layers = Layers()
    for assignment in from_environment(os.environ if env is None else env):
        layers.assign(assignment)
    for source, table in tables:
        file = Path(source)
        layers.folders[source] = file_of(file).parent if file.exists() else place
        layers.merge(table, source)
    return layers.validate().config


def _merge_file(layers: Layers, path: Path) -> None:
    """Merge a file into the layers; its relative paths start at its folder.

    Those of a stored run start at the current directory: they are absolute, unless an older version stored them as
    they were given. Its former names of settings are read as the present ones.
    """
    table, file = read_toml(path), file_of(path)
    source = str(path)
    if is_stored_run(file):
        table = translated(table)
        relocate(table, file)
    else:
        layers.folders[source] = Path(located(str(file.parent), Path.cwd()))
    layers.merge(table, source)


def parse_args(args: Sequence[str], problems: list[str] | None = None) -> tuple[list[Path], list[Assignment]]:
    """Split a command line into files and assignments, both left to right.

    Args:
        problems: takes one line for each word that is neither, or lacks its value.

    Raises:
        ConfigError: there is such a word, and no `problems` to take it.
    """
    files: list[Path] = []
    flags: list[Assignment] = []
    words = list(args)
    while words:
        try:
            _parse_word(words, files, flags)
        except ConfigError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return files, flags


def _parse_word(words: list[str], files: list[Path], flags: list[Assignment]) -> None:
    """Parse the next word, with its value where it needs one."""
    word = words.pop(0)
    if word in ("@", "--config"):
        files.append(_file(_value(word, words, "a file, e.g. @ recipes/NAME/config.toml")))
    elif word.startswith("@") or word.startswith("--config="):
        files.append(_file(word.removeprefix("--config=").removeprefix("@")))
    elif word.startswith("--") and len(word) > 2:
        flags.append(_flag(word, words))
    elif ASSIGNMENT.match(word):
        key, _, value = word.partition("=")
        flags.append(Assignment(path=_path(key), value=value, source=word))
    else:
        hint = f"; did you mean @ {word}?" if word.endswith(".toml") else ""
        raise ConfigError(f"{word!r} is not a setting: expected @ FILE.toml, --key value or key=value{hint}")


def _file(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _flag(word: str, words: list[str]) -> Assignment:
    name, equals, value = word[2:].partition("=")
    path, source = _path(name), f"--{name}"
    if equals:
        return Assignment(path=path, value=value, source=source)
    positive = _positive(path)
    if positive is not None:
        return Assignment(path=positive, value=False, source=source, text=False)
    kind = kind_at(path)
    if kind is not MISSING and bare(kind) is bool:
        explicit = bool(words) and words[0].lower() in ("true", "false")
        return Assignment(path=path, value=words.pop(0) if explicit else "true", source=source)
    if kind is MISSING and (not words or words[0].startswith("--")):
        raise ConfigError(f"unknown setting {'.'.join(path)} (from {source}){nearest(path)}")
    return Assignment(path=path, value=_value(source, words, "a value"), source=source)


def _positive(path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The boolean that `--no-a.b` or `--a.no-b` turns off; None where the flag is no such thing."""
    for index in (0, len(path) - 1):
        if path[index].startswith("no_"):
            candidate = (*path[:index], path[index].removeprefix("no_"), *path[index + 1 :])
            kind = kind_at(candidate)
            if kind is not MISSING and bare(kind) is bool:
                return candidate
    return None


def _value(name: str, words: list[str], expected: str) -> str:
    if not words or words[0].startswith("--"):
        raise ConfigError(
            f"{name} needs {expected}; the command line {'goes on with ' + words[0] if words else 'ends'}"
        )
    return words.pop(0)


def _path(key: str) -> tuple[str, ...]:
    return tuple(key.replace("-", "_").split("."))


def from_environment(env: Mapping[str, str]) -> list[Assignment]:
    """`COTERIE_OPTIM__LR=1e-5` sets optim.lr; a double underscore is the dot."""
    names = sorted(name for name in env if name.startswith(PREFIX) and name not in RESERVED)
    return [
        Assignment(path=tuple(name.removeprefix(PREFIX).lower().split("__")), value=env[name], source=name)
        for name in names
    ]
