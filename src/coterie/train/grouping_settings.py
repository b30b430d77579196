"""The section `[grouping]` as the estimator's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coterie.algo.grouping.heb import GroupAwareBaseline
from coterie.algo.grouping.presets import Settings
from coterie.config.functions import user_function
from coterie.config.grouping import GroupingConfig
from coterie.errors import ConfigError
from coterie.types import Prompt


def settings_of(config: GroupingConfig) -> Settings:
    """The estimator's numbers.

    Raises:
        ValueError: they do not fit each other.
    """
    settings = Settings(
        bounds=None if config.rewards is None else (config.rewards[0], config.rewards[1]),
        memory=config.memory,
        prompt_memory=config.prompt_memory,
        max_leaves=config.max_leaves,
        min_weight=config.min_weight,
        refit_every=config.refit_every,
        scale=config.scale,
        weighted=config.weights != "none",
    )
    for name in config.without:
        settings = settings.without(name)
    return settings


def own_baseline(config: GroupingConfig) -> Callable[..., Any] | None:
    """The user's function, where the preset is one.

    Raises:
        ConfigError: it cannot be had.
    """
    return user_function(config.preset) if ":" in config.preset else None


def own_key(config: GroupingConfig) -> Callable[[Prompt], Any] | None:
    """The user's scale.

    Raises:
        ConfigError: it cannot be had.
    """
    return user_function(config.key) if config.key else None


def check(config: GroupingConfig) -> None:
    """Whether the preset can be had without what is left out, and the user's own functions at all.

    Raises:
        ConfigError: they cannot.
    """
    own_baseline(config)
    own_key(config)
    try:
        GroupAwareBaseline((), preset=config.preset, settings=settings_of(config))
    except ValueError as error:
        raise ConfigError(f"[grouping]: {error}") from None
