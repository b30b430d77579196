"""Engines, environments and estimators by name: one dict each, name → `module:object`.

A row is all that declares a name: `--help`, the JSON schema, the check of the setting and the code that makes the part
read it. The object is imported when a run is built, so that settings are read without torch.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from coterie.config.user_functions import FUNCTION, user_function

ENGINES: dict[str, str] = {
    "embedded": "coterie.build.run:embedded_engine",
    "http": "coterie.build.run:http_engine",
    "vllm": "coterie.build.services:vllm_engine",
}
"""Engines of `engine.name`. The object is called with policy, chat, settings and the tokens of the longest sequence,
and returns an `Engine`."""

ENVIRONMENTS: dict[str, str] = {
    "single_turn": "coterie.envs.registry:SingleTurn",
    "retry": "coterie.envs.retry:Retry",
    "running_sum": "coterie.envs.running_sum:RunningSum",
    "dialogue": "coterie.envs.dialogue:Dialogue",
    "tools": "coterie.envs.tool_use:ToolUse",
    "program": "coterie.envs.program:ProgramEnvironment",
    "trl": "coterie.envs.trl_environment:TrlEnvironment",
    "gymnasium": "coterie.envs.gymnasium_text:GymnasiumText",
    "openenv": "coterie.envs.openenv:OpenEnv",
    "verifiers": "coterie.envs.verifiers_taskset:VerifiersTaskset",
}
"""Environments of `environment.name`. The object is a class with a method `episode`, called with `environment.params`,
or a generator function of a prompt and these."""

ESTIMATORS: dict[str, str] = {
    "group": "coterie.build.learner:group_estimator",
    "gae": "coterie.build.learner:gae_estimator",
    "group_aware": "coterie.build.learner:group_aware_estimator",
}
"""Estimators of `advantage.estimator`. The object is called with settings, training prompts and their embedding (None
without one), and returns an `Estimator`."""


def part(rows: Mapping[str, str], name: str) -> Callable[..., Any]:
    """The object of a row, or the user's own that `name` names as `module:object`.

    Raises:
        ConfigError: the user's cannot be imported.
    """
    if name not in rows:
        return user_function(name)
    module, _, attribute = rows[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """Annotation of a text setting that names a row of a dict, or the user's own object as `module:object`."""

    rows: Mapping[str, str]
    others: tuple[str, ...] = ()
    """Values that name no row, such as auto."""

    @property
    def choices(self) -> list[str]:
        """All values, `module:function` for those of the user's."""
        return [*self.others, *self.rows, "module:function"]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        names = {"enum": self.choices[:-1], "type": "string"}
        return {"anyOf": [names, {"pattern": FUNCTION, "type": "string"}]}

    def _checked(self, value: str) -> str:
        if value not in self.choices[:-1] and not re.match(FUNCTION, value):
            message = "expected one of {names}"
            raise PydanticCustomError("unknown_name", message, {"names": ", ".join(self.choices)})
        return value
