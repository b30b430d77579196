"""Registry of built-in rewards, and loading of functions by name.

The dict stands here and not in `coterie.build.run`, because a worker process reads it, and must not import torch.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.config.user_functions import import_problem, require_module_name
from coterie.errors import ConfigError, RewardError
from coterie.rewards import by_value
from coterie.rewards.base import IDS, OF_TRAINER, Form
from coterie.text import did_you_mean

BUILT_IN: dict[str, str] = {
    "task": "coterie.rewards.builtin:task",
    "exact": "coterie.rewards.builtin:exact",
    "number": "coterie.rewards.number:number",
    "math": "coterie.rewards.math:math",
    "format": "coterie.rewards.builtin:format",
    "length": "coterie.rewards.builtin:length",
    "overlong": "coterie.rewards.builtin:overlong",
    "language": "coterie.rewards.builtin:language",
    "environment": "coterie.rewards.builtin:environment",
    "call_valid": "coterie.rewards.calls:call_valid",
    "call_useful": "coterie.rewards.calls:call_useful",
    "call_needed": "coterie.rewards.calls:call_needed",
    "call_cost": "coterie.rewards.calls:call_cost",
    "code": "coterie.rewards.programs:code",
    "judge": "coterie.rewards.judge:judge",
    "valid_steps": "coterie.traces.trace_rewards:valid_steps",
    "faithful": "coterie.traces.trace_rewards:faithful",
    "unsound": "coterie.traces.trace_rewards:unsound",
}
"""Names of `rewards.functions.name`, beside `module:function`."""
BINARY = frozenset({"task", "exact", "number", "math", "format"})
"""Built-in rewards that are taken as binary until a value says otherwise, also while every value is 0."""

STEPS: dict[str, str] = {
    "arithmetic": "coterie.rewards.steps:arithmetic",
    "stages": "coterie.rewards.steps:stages",
    "trace": "coterie.traces.trace_rewards:trace",
}
"""Names of `rewards.steps.name`, beside `module:function`."""

_CONTENT = re.compile(r"""["']content["']""")
_MESSAGES = re.compile(r"dict|Dict|Mapping|Message")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def target(name: str, *, steps: bool = False) -> str:
    """`module:function` of a reward's name, or of a step reward's."""
    targets = STEPS if steps else BUILT_IN
    if name in targets:
        return targets[name]
    if by_value.is_by_value(name):
        by_value.require_offered(name)
        return name
    module, _, function = name.partition(":")
    if module and function:
        require_module_name(name)
        return name
    hint = did_you_mean(name, targets) or "; your own function is written `module:function`"
    where = "rewards.steps" if steps else "rewards.functions"
    raise ConfigError(f"{where} names {name!r}; expected one of {', '.join(targets)}{hint}")


@dataclass(frozen=True, slots=True)
class Part:
    """A loaded reward function with its fixed parameters."""

    name: str
    function: Callable[..., Any]
    params: Mapping[str, Any]
    parameters: Mapping[str, inspect.Parameter] | None
    """The function's own, or None where Python cannot see them."""
    steps: bool = False
    """It rewards steps of a completion."""
    source: str | None = None
    """Text of the module that it is written in; None where there is none."""

    @property
    def built_in(self) -> bool:
        return self.name in (STEPS if self.steps else BUILT_IN)

    @property
    def open(self) -> bool:
        """True if the function takes every column (`**columns`)."""
        return self.parameters is None or any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    @property
    def settings(self) -> list[str]:
        """Parameters that `params` may set. Those of a built-in function stand behind its `*`, out of the reach of a
        data column that happens to have the same name."""
        kinds = (inspect.Parameter.KEYWORD_ONLY,) if self.built_in else _NAMED
        names = [name for name, parameter in (self.parameters or {}).items() if parameter.kind in kinds]
        return [name for name in names if name not in ("prompts", "completions", IDS, *OF_TRAINER)]

    def asks_for(self, name: str) -> bool:
        """True if the function names this argument, or takes every column and its module mentions the name."""
        if self.parameters is not None and name in self.parameters:
            return True
        return self.open and not self.built_in and (self.source is None or name in self.source)

    def forms(self) -> dict[str, Form | None]:
        """Forms of `completions` and `prompts` by annotations and source; None where only a call can tell."""
        if self.built_in:
            return {"completions": "text", "prompts": "messages"}
        forms = {name: _annotated_form(self._annotation(name)) for name in ("completions", "prompts")}
        reads_messages = self.source is None or _CONTENT.search(self.source) is not None
        if forms["completions"] is None and not reads_messages:
            forms["completions"] = "text"
        if forms["prompts"] is None and (reads_messages or not self.asks_for("prompts")):
            forms["prompts"] = "messages"
        return forms

    def _annotation(self, name: str) -> str:
        parameter = (self.parameters or {}).get(name)
        if parameter is None or parameter.annotation is parameter.empty:
            return ""
        return str(parameter.annotation)

    def arguments(self, columns: Mapping[str, Any], others: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keyword arguments of a call, out of all columns.

        Args:
            others: what only a function gets that asks for it.
        """
        hidden = self.settings if self.built_in else []
        asked = {name: value for name, value in (others or {}).items() if self.asks_for(name)}
        offered = {name: values for name, values in columns.items() if name not in hidden} | asked | dict(self.params)
        needed = {name: parameter for name, parameter in (self.parameters or {}).items() if parameter.kind in _NAMED}
        if "solution_str" in needed and "solution_str" not in offered:
            raise RewardError(self._signature_of_verl(), function=self.name)
        for name, parameter in needed.items():
            if name not in offered and parameter.default is parameter.empty:
                raise RewardError(
                    f"needs {name!r}, but the prompts only have {', '.join(sorted(columns))}: add the column to the "
                    "data, set it in the part's params, or give the parameter a default",
                    function=self.name,
                )
        return offered if self.open else {name: offered[name] for name in needed if name in offered}

    def _signature_of_verl(self) -> str:
        module, _, function = self.name.partition(":")
        origin = f"from {module} import {function}; " if function.isidentifier() else ""
        call = function if function.isidentifier() else "compute_score"
        return (
            "needs 'solution_str': this is the signature of verl's compute_score, which judges one completion a call; "
            f"a reward gets all completions of a call, so name a wrapper in its place: {origin}def reward(completions, "
            f'answer, **columns): return [{call}("", text, gold) for text, gold in zip(completions, answer)]'
        )


def load(name: str, params: Mapping[str, Any], columns: Sequence[str] = (), *, steps: bool = False) -> Part:
    """Import a reward function and check its parameters.

    Args:
        columns: names of the prompts' columns, for built-in functions that prepare for them.
        steps: it is a step reward.
    """
    module, _, path = target(name, steps=steps).partition(":")
    if by_value.is_by_value(name):
        function = by_value.function_of(name)
        part = Part(name, function, dict(params), _parameters(function), steps, _source(function))
        _check_params(part)
        return part
    try:
        home = importlib.import_module(module)
    except RewardError:
        raise
    except ImportError as error:
        raise RewardError(
            f"reward {name!r} cannot be imported: {import_problem(module, error)}", function=name
        ) from error
    function = home
    for step in path.split("."):
        if not hasattr(function, step):
            hint = did_you_mean(step, dir(function))
            raise RewardError(f"reward {name!r}: {module} has no {step!r}{hint}", function=name)
        function = getattr(function, step)
    if not callable(function):
        raise RewardError(f"reward {name!r} is a {type(function).__name__}; expected a function", function=name)
    part = Part(name, function, dict(params), _parameters(function), steps, _source(function))
    _check_params(part)
    if part.built_in and hasattr(home, "prepare"):
        home.prepare(columns)
    return part


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def _source(function: Callable[..., Any]) -> str | None:
    """Text of the module that a function, or the class of a callable object, is written in."""
    plain = inspect.unwrap(function)
    plain = plain if hasattr(plain, "__code__") or inspect.isclass(plain) else type(plain)
    try:
        with open(inspect.getsourcefile(plain) or "", encoding="utf-8") as file:
            return file.read()
    except (OSError, TypeError, ValueError):
        return None


def _annotated_form(annotation: str) -> Form | None:
    """`list[str]` is text, `list[list[dict[str, str]]]` messages; `list`, `Any` and a union of both say neither."""
    messages = _MESSAGES.search(annotation) is not None
    text = re.search(r"\bstr\b", re.sub(r"(?:dict|Dict|Mapping)\[[^]]*\]", "", annotation)) is not None
    return None if messages == text else "messages" if messages else "text"


def _check_params(part: Part) -> None:
    for name in part.params:
        if name in ("prompts", "completions", IDS, *OF_TRAINER) or not (part.open or name in part.settings):
            raise RewardError(
                f"reward {part.name!r} takes no param {name!r}; expected one of: "
                f"{', '.join(part.settings) or 'none at all'}{did_you_mean(name, part.settings)}",
                function=part.name,
            )
