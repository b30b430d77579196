"""The environments that ship, and how a name becomes one."""

from __future__ import annotations

import inspect

from coterie.config.environment import EnvironmentConfig
from coterie.config.functions import user_function
from coterie.envs.base import Environment
from coterie.envs.episodes import Limits
from coterie.envs.function import FunctionEnvironment, check_params
from coterie.envs.retry import Retry
from coterie.envs.running_sum import RunningSum
from coterie.envs.single_turn import SingleTurn

ENVIRONMENTS: dict[str, type[SingleTurn] | type[Retry] | type[RunningSum]] = {
    "single_turn": SingleTurn,
    "retry": Retry,
    "running_sum": RunningSum,
}
"""What `environment.name` may name, beside `module:function`; `environment.params` are the fields."""


def environment_for(config: EnvironmentConfig) -> Environment:
    """Who answers the model.

    Raises:
        ConfigError: it cannot be had, or does not take these params.
    """
    if ":" in config.name:
        return FunctionEnvironment(name=config.name, function=user_function(config.name), params=config.params)
    kind = ENVIRONMENTS[config.name]
    check_params(config.params, list(inspect.signature(kind).parameters))
    return kind(**config.params)


def limits_of(config: EnvironmentConfig) -> Limits | None:
    """Of an episode; None where it has one turn."""
    return Limits(turns=config.max_turns, tokens=config.max_tokens) if config.talks else None
