"""Reward functions given as Python objects, as parts of the settings."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coterie.config.paths import has_module
from coterie.config.user_functions import FUNCTION
from coterie.errors import ConfigError, RunError
from coterie.rewards import by_value

Spec = str | Callable[..., Any] | Mapping[str, Any]
"""A built-in reward's name, `module:function`, a function, or a table as in `rewards.functions` whose name may be
one."""


def parts_of(
    reward: Spec | Sequence[Spec], weights: Sequence[float] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """`rewards.functions` for what was given as `reward`, and the folders of its functions' modules."""
    specs = as_list(reward)
    if weights is not None and len(weights) != len(specs):
        raise ConfigError(f"reward_weights has {len(weights)} weights for {len(specs)} rewards; expected one for each")
    parts, folders = [], []
    for index, spec in enumerate(specs):
        part = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
        if callable(part.get("name")):
            part["name"], folder = _name_and_folder(part["name"])
            folders += [folder] if folder else []
            if by_value.is_by_value(part["name"]):
                part.setdefault("label", by_value.label(part["name"]))
        if weights is not None:
            part["weight"] = float(weights[index])
        parts.append(part)
    _number_labels(parts)
    return parts, list(dict.fromkeys(folders))


def as_list(reward: Any) -> list[Any]:
    """The argument `reward` as a list of rewards."""
    specs = list(reward) if isinstance(reward, list | tuple) else [reward]
    for spec in specs or [None]:
        if not (isinstance(spec, str | Mapping) or callable(spec)):
            raise ConfigError(
                f"reward = {spec!r}; expected a function, a built-in reward's name, `module:function`, a table of "
                "rewards.functions, or a list of these"
            )
    return specs


def register_again(reward: Any, stored: Sequence[str]) -> None:
    """Register the functions of a stored run, so that it can be resumed in this process.

    Args:
        stored: names of the run's reward parts, in order.
    """
    specs = [spec.get("name") if isinstance(spec, Mapping) else spec for spec in as_list(reward)]
    if len(specs) != len(stored):
        raise RunError(
            f"reward has {len(specs)} functions and the run has {len(stored)} ({', '.join(map(_shown, stored))}); "
            "give the same ones in the same order"
        )
    for spec, name in zip(specs, stored, strict=True):
        if by_value.is_by_value(name) and callable(spec):
            now = by_value.name_of(spec)
            if by_value.fingerprint(now) != by_value.fingerprint(name):
                raise RunError(
                    f"reward {by_value.label(now)!r} is not the function that the run was started with: its code, or a "
                    f"value that it uses, has the hash {by_value.fingerprint(now)} now and had "
                    f"{by_value.fingerprint(name)}; give the same function, or start a new run from this one's model: "
                    "coterie.train(model=run.model, …)"
                )
            by_value.offer(spec, name)
        elif (given := _name_and_folder(spec)[0] if callable(spec) else spec) != name:
            raise RunError(f"reward is {_shown(str(given))}, and the run was started with {_shown(name)}")


def _shown(name: str) -> str:
    return by_value.label(name) if by_value.is_by_value(name) else name


def _name_and_folder(function: Callable[..., Any]) -> tuple[str, str | None]:
    """Name of a function in the settings, and the folder of its module: `module:function` where another process can
    import it, else by value."""
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    home = sys.modules.get(str(module))
    if module != "__main__" and re.match(FUNCTION, f"{module}:{path}") and getattr(home, path, None) is function:
        folder = _folder(str(module), getattr(home, "__file__", None))
        if folder is not None and has_module(folder, str(module)):
            top = str(module).partition(".")[0]
            installed = {"site-packages", "dist-packages"} & set(folder.parts) or top in sys.stdlib_module_names
            return f"{module}:{path}", None if installed else str(folder)
    return by_value.offer(function), None


def _folder(module: str, file: str | None) -> Path | None:
    """Folder from which a module is imported: /x for the module a.b in /x/a/b.py."""
    if file is None:
        return None
    path, depth = Path(file).absolute(), module.count(".") + 1
    depth += path.name == "__init__.py"
    return path.parents[depth - 1] if depth <= len(path.parents) else None


def _number_labels(parts: list[dict[str, Any]]) -> None:
    """Number the labels of functions that have the same name, such as lambdas."""
    labels = Counter(part.get("label") for part in parts if part.get("label"))
    counts: Counter[str] = Counter()
    for part in parts:
        label = part.get("label")
        if label and labels[label] > 1 and by_value.is_by_value(str(part["name"])):
            counts[label] += 1
            part["label"] = f"{label}-{counts[label]}"
