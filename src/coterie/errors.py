"""Exceptions of coterie. Each message states the value, what was expected, and the remedy.

CoterieError
├── ConfigError        a setting is unknown, of the wrong type, or contradicts another (exit code 2)
├── DataError          a prompt source cannot be read, or too many of its rows are bad
├── AssetError         an asset cannot be fetched, verified or converted
├── ModelError         a model folder is unsafe, incomplete or of an unsupported kind
├── RewardError        a reward raised, hung, or broke its contract
├── EngineError        sampling failed
├── LearnerError       a learner rank was lost, or the ranks do not agree
├── DoesNotFitError    memory does not hold even one rollout's update
├── NonFiniteError     a loss or gradient was NaN or infinite
├── CheckpointError    no checkpoint verifies, or one belongs to another run
├── RunError           a run directory cannot be created, found or resumed
└── CollapseError      a stop rule ended the run (exit code 3)
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which


class CoterieError(Exception):
    """Base class: caught by the command line, which prints the message without a traceback."""

    exit_code = 1


class ConfigError(CoterieError):
    exit_code = 2


class DataError(CoterieError):
    pass


class AssetError(CoterieError):
    pass


class ModelError(CoterieError):
    pass


class RewardError(CoterieError):
    """A reward function failed on one row.

    Attributes:
        function: name of the reward function as configured.
        row: index of the row inside the scored list, or None when the whole call failed.
    """

    def __init__(self, message: str, *, function: str, row: int | None = None) -> None:
        super().__init__(message)
        self.function = function
        self.row = row


class EngineError(CoterieError):
    pass


class LearnerError(CoterieError):
    pass


class DoesNotFitError(CoterieError):
    pass


class NonFiniteError(CoterieError):
    pass


class CheckpointError(CoterieError):
    pass


class RunError(CoterieError):
    pass


class CollapseError(CoterieError):
    exit_code = 3


def install_command(extra: str) -> str:
    """The shell command that adds the packages of one of coterie's extras to this Python: from the source folder, or,
    where coterie was installed from a wheel, by the names of the packages. coterie itself is on no package index.

    Args:
        extra: name of an optional dependency group in pyproject.toml, e.g. `hub`; several are separated by commas.
    """
    python, source = shlex.quote(_relative(Path(sys.executable))), Path(__file__).absolute().parents[2]
    if find_spec("pip") is None and which("uv"):
        tool = f"uv pip install --python {python}"
    elif find_spec("pip") is None:
        tool = f"{python} -m ensurepip && {python} -m pip install"
    else:
        tool = f"{python} -m pip install"
    if (source / "pyproject.toml").is_file() and (source / "bootstrap.py").is_file():
        return f"{tool} -e {shlex.quote(f'{_relative(source)}[{extra}]')}"
    return f"{tool} {' '.join(map(shlex.quote, _packages(extra)))}"


def _relative(path: Path) -> str:
    """The path, relative to the current directory where it is inside."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _packages(extra: str) -> list[str]:
    from importlib import metadata  # slow, and rarely needed

    try:
        requirements = metadata.requires("coterie") or []
    except metadata.PackageNotFoundError:
        requirements = []
    marked = [requirement.partition(";") for requirement in requirements]
    names = "|".join(map(re.escape, extra.split(",")))
    asked = re.compile(rf"extra\s*==\s*['\"](?:{names})['\"]")
    return [name.strip() for name, _, marker in marked if asked.search(marker)] or [f"coterie[{extra}]"]
