"""Parameters of the endpoints, as OpenAI and vLLM name them, and their checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from coterie.serve.refusals import RefusalError, of_validation

COLDEST = 1e-3
"""Lowest temperature above 0."""
MOST_STOPS = 16
"""Stop strings of a request."""

IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
}
"""Parameters that change nothing about what is sampled."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "continue_final_message": (False,),
    "use_beam_search": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
}
"""Parameters that the engine cannot follow, and the values that ask nothing of it."""


class StreamOptions(BaseModel):
    """What a stream holds beside the tokens."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted; nothing is added."""


class Parameters(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    n: int = Field(default=1, ge=1, le=128)
    temperature: float = Field(default=1.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=-1)
    """vLLM's; 0 and -1 are off."""
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    stop: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(default=[], max_length=MOST_STOPS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    """vLLM's: tokens of prompt and completion in the answer."""

    @model_validator(mode="before")
    @classmethod
    def _understood(cls, body: Any) -> Any:
        """Leave out what asks nothing, and refuse what the engine cannot do."""
        if not isinstance(body, dict):
            return body
        given = {key: value for key, value in body.items() if value is not None and key not in IGNORED}
        for key, neutral in NEUTRAL.items():
            if key in given and not any(given[key] == value for value in neutral):
                accepted = " or ".join(map(repr, neutral))
                remedy = f"; leave it out{f', or give {accepted}' if accepted else ''}"
                raise RefusalError(
                    400, f"{key} = {given[key]!r:.60} is not supported by this server{remedy}", param=key
                )
            given.pop(key, None)
        if isinstance(given.get("stop"), str):
            given["stop"] = [given["stop"]]
        return given

    @model_validator(mode="after")
    def _warm_enough(self) -> Parameters:
        """Logits divided by nearly nothing are infinite, and would fail what is decoded beside them too."""
        if 0 < self.temperature < COLDEST:
            raise RefusalError(
                400, f"temperature = {self.temperature}; expected 0, or at least {COLDEST}", param="temperature"
            )
        return self

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Parameters:
        if self.stream_options is not None and not self.stream:
            raise RefusalError(400, "stream_options is given, and stream is not true", param="stream_options")
        return self


class TextPart(BaseModel):
    """A part of a message's content; there is text alone."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    """A function and its arguments, a JSON object as text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    arguments: str

    @model_validator(mode="after")
    def _is_an_object(self) -> CalledFunction:
        if not isinstance(json.loads(self.arguments or "{}"), dict):
            raise ValueError("arguments are no JSON object")
        return self


class ToolCall(BaseModel):
    """A call that an assistant made."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None
    """Accepted; of a stream."""


class ChatMessage(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    """None where an assistant only calls."""
    name: str | None = None
    """Accepted; templates do not write it."""
    tool_call_id: str | None = None
    """Of a result: the call that it answers."""
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] = []
    """Of an assistant."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        return {key: value for key, value in message.items() if value is not None}

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("it has no content")
        return self

    @property
    def text(self) -> str:
        """The content; parts stand one after the other."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class FunctionTool(BaseModel):
    """A tool; the chat template writes its `function` as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: dict[str, Any]

    @model_validator(mode="after")
    def _has_a_name(self) -> FunctionTool:
        if not isinstance(self.function.get("name"), str):
            raise ValueError("a function has a name, a text")
        return self

    @property
    def name(self) -> str:
        return self.function["name"]


class ChatParameters(Parameters):
    """Body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    add_generation_prompt: bool = True
    """vLLM's: end the prompt with the start of the assistant's turn."""
    tools: list[FunctionTool] = []
    """Written into the prompt by the chat template."""
    tool_choice: Literal["none", "auto"] = "auto"


class StreamName(BaseModel):
    """Name of a random stream, as `coterie.types.SampleKey`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: int = Field(ge=-(1 << 63), lt=1 << 64)
    version: int = Field(ge=0)
    prompt: str
    sample: int = Field(ge=0)
    turn: int = Field(default=0, ge=0)


class CompletionParameters(Parameters):
    """Body of `/v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    add_special_tokens: bool = True
    """vLLM's: a text prompt begins as the tokenizer would have it, e.g. with <s>."""
    echo: bool = False
    """The prompt stands before its completion, with `logprobs` scored too."""
    prompt_logprobs: Literal[0] | None = None
    """vLLM's: the log-prob of each token of the prompt in the answer; of other tokens there is none."""
    sample_key: StreamName | None = None
    """coterie's: the random stream in place of `seed`, and the weight version that must be served."""

    @model_validator(mode="after")
    def _echoes_whole_answers(self) -> CompletionParameters:
        if self.prompt_logprobs is not None and self.stream:
            message = "prompt_logprobs with stream is not supported by this server; leave one of them out"
            raise RefusalError(400, message, param="prompt_logprobs")
        if self.echo and (self.stream or self.return_token_ids):
            message = (
                "echo = true with stream or return_token_ids is not supported by this server; leave one of them out"
            )
            raise RefusalError(400, message, param="echo")
        return self

    @model_validator(mode="after")
    def _one_stream(self) -> CompletionParameters:
        if self.sample_key is not None and (self.n > 1 or len(self.prompts) > 1 or self.seed is not None):
            message = "sample_key names the random stream of one completion; give one prompt, n = 1 and no seed"
            raise RefusalError(400, message, param="sample_key")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class Detokenization(BaseModel):
    """Body of `/detokenize`, as vLLM has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tokens: list[Annotated[int, Field(ge=0)]]
    model: str | None = None


def parsed(kind: type[BaseModel], body: Any) -> Any:
    """The body of a request as `kind`.

    Raises:
        RefusalError: it is wrong, or asks for what the server cannot do.
    """
    if not isinstance(body, dict):
        raise RefusalError(400, f"the body is {body!r:.60}; expected a JSON object")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise of_validation(error) from None
    except RecursionError:
        raise RefusalError(400, "the body nests too deep") from None


def refuse_top_logprobs(count: int, param: str, temperature: float = 1.0) -> None:
    """Refuse log-probs of tokens that were not sampled; at temperature 0 the sampled one is the likeliest.

    Raises:
        RefusalError: some are asked for.
    """
    if count > (temperature == 0):
        raise RefusalError(
            400,
            f"{param} = {count}: this server has the log-prob of each sampled token alone, not of others; use 0, or 1 "
            "at temperature 0",
            param=param,
        )
