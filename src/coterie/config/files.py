"""Reading one TOML file of settings, with an error that says what is wrong with it."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

from coterie.errors import ConfigError

MAX_BYTES = 4 << 20
_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_DEEP = re.compile(rf"^[ \t]*\[?\[?[ \t]*(?:{_PART}[ \t]*\.[ \t]*){{40}}", re.MULTILINE)
"""A key of more parts than any setting has; the parser's time grows with their square."""


def file_of(path: Path) -> Path:
    """The file that is meant by a path: a folder stands for the `config.toml` in it."""
    return path / "config.toml" if path.is_dir() else path


def read_toml(path: Path) -> dict[str, Any]:
    """Read one file of settings; a folder stands for the `config.toml` in it.

    Raises:
        ConfigError: missing (with near names), too large, not UTF-8, or not TOML (with line and column).
    """
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
    """The parser's words for its commonest findings, made plainer."""
    if message.startswith(("Cannot overwrite a value", "Cannot declare")):
        return f"a key or table is given twice: {message[0].lower()}{message[1:]}"
    return message


def _nearest_files(path: Path) -> str:
    """`; did you mean recipes/legs/config.toml?` from the same folder and from recipes/."""
    beside = [str(file) for file in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
    recipes = [str(file) for file in sorted(Path("recipes").glob("*/*.toml"))]
    near = difflib.get_close_matches(str(path), [*beside, *recipes], n=2, cutoff=0.6) or recipes[:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""
