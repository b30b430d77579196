"""What a trial asks: a prompt, how often it is answered, and how; read from a request and checked."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from coterie.errors import RunError

SIDES = ("model", "base")
"""The run's model at a checkpoint, and the model that the run started from."""
MOST_CHARACTERS = 40_000
"""Of all messages together."""

Short = Annotated[str, Field(max_length=500)]


class TypedMessage(BaseModel):
    """A message of a conversation that the user typed, or that was answered before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str


class TrialRequest(BaseModel):
    """One prompt of the run's data, or a conversation for each side, to be answered `samples` times."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Short
    checkpoint: int | None = Field(default=None, ge=0, lt=10**9)
    """Step of the checkpoint; None is the newest."""
    beside: bool = True
    """Ask the base too."""
    prompt: Short = ""
    """Id of a prompt of the run's data; empty where a conversation was typed."""
    messages: dict[Literal["model", "base"], list[TypedMessage]] = {}
    """A conversation for each side that is asked; they part after the first answer."""
    answer: Annotated[str, Field(max_length=MOST_CHARACTERS)] = ""
    """Gold answer to what was typed, for the rewards that need one."""
    samples: int = Field(default=4, ge=1, le=16)
    temperature: float = Field(default=0.7, ge=0, le=2, allow_inf_nan=False)
    max_tokens: int = Field(default=128, ge=1, le=2048)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that are asked, in order."""
        return SIDES if self.beside else SIDES[:1]

    @model_validator(mode="after")
    def _asks_one_thing(self) -> TrialRequest:
        if bool(self.prompt) == bool(self.messages):
            raise ValueError("expected the id of a prompt of the data or typed messages, one of the two")
        if 0 < self.temperature < 1e-3:
            raise ValueError(f"temperature = {self.temperature}; expected 0, or at least 0.001")
        for side in self.sides if self.messages else ():
            conversation = self.messages.get(side, [])
            if not conversation or conversation[-1].role != "user" or not conversation[-1].content.strip():
                raise ValueError(f"messages of {side}: expected a conversation whose last message is the user's")
        written = sum(len(message.content) for messages in self.messages.values() for message in messages)
        if written > MOST_CHARACTERS:
            raise ValueError(f"the messages have {written} characters; expected at most {MOST_CHARACTERS}")
        return self


def parsed(body: bytes) -> TrialRequest:
    """The request of a body.

    Raises:
        RunError: it is no JSON, or asks for what there is not.
    """
    try:
        return TrialRequest.model_validate(json.loads(body))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'the trial'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise RunError("; ".join(problems[:4])) from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"the body is no JSON: {str(error)[:200]}") from None
