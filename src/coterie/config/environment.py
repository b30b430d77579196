"""The settings of an episode: who answers the model, and how long that may go on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from coterie.config.objective import UserFunction
from coterie.config.section import Section


class EnvironmentConfig(Section):
    """What an episode is: one question and one answer, or several turns."""

    name: Literal["single_turn", "retry", "running_sum"] | UserFunction = "single_turn"
    """single_turn, the prompt and one answer; retry, a wrong answer may be given again; running_sum, a sum asked one
    step at a time; or your own as `module:function`, a generator function of a prompt (docs/environments.md)."""
    max_turns: int = Field(default=8, ge=1)
    """Most turns of an episode; one whose environment would go on is truncated."""
    max_tokens: int = Field(default=1024, ge=2)
    """Longest episode in tokens, prompt and environment included. A turn is begun only if sampling.max_tokens, the
    limit of each turn, still fits."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the environment."""

    @model_validator(mode="after")
    def _used(self) -> EnvironmentConfig:
        if self.params and not self.talks:
            raise ValueError(f'name = "single_turn" takes no params, but params = {self.params}')
        return self

    @property
    def talks(self) -> bool:
        """Whether there may be more than one turn."""
        return self.name != "single_turn"
