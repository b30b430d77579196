"""The section `[grouping]` as the estimator's numbers."""

from __future__ import annotations

from coterie.algo.grouping.heb import GroupAwareBaseline
from coterie.algo.grouping.presets import Settings
from coterie.config.grouping import GroupingConfig
from coterie.errors import ConfigError


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
        unit_scale=config.unit_scale,
        weighted=config.weights != "none",
    )
    for name in config.without:
        settings = settings.without(name)
    return settings


def check(config: GroupingConfig) -> None:
    """Whether the preset can be had without what is left out.

    Raises:
        ConfigError: it cannot.
    """
    try:
        GroupAwareBaseline((), preset=config.preset, settings=settings_of(config))
    except ValueError as error:
        raise ConfigError(f"[grouping]: {error}") from None
