"""Requests of the engine from the parameters of a call: prompts as tokens, the sampling, and the random streams."""

from __future__ import annotations

import copy
import json
import secrets
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

from coterie.data import tool_templates
from coterie.data.chat import Chat
from coterie.engines.base import Request, Sampling
from coterie.errors import DataError
from coterie.serve.parameters import ChatMessage, ChatParameters, CompletionParameters, Parameters, refuse_top_logprobs
from coterie.serve.refusals import RefusalError
from coterie.types import Message, SampleKey

MOST_STOP_TOKENS = 24
"""The engine looks for stop strings in the last 32 tokens."""
MOST_PROMPTS = 2048
"""Of one request."""


class Renderer:
    """Prompts as tokens. It has a copy of the tokenizer: encoding changes its state, while the engine decodes with it.

    Args:
        vocabulary: token ids are below this.
        max_model_len: most tokens of a prompt and its completion.
    """

    def __init__(self, chat: Chat, *, vocabulary: int, max_model_len: int) -> None:
        self.chat = copy.deepcopy(chat)
        self.vocabulary, self.max_model_len = vocabulary, max_model_len
        self._lock = threading.Lock()
        self._with_tools: Chat | None = None

    @cached_property
    def most_characters(self) -> int:
        """No longer text fits: each token spells at most as many characters as the longest one."""
        return self.max_model_len * max(map(len, self.chat.tokenizer.get_vocab()))

    def prompts(self, call: ChatParameters | CompletionParameters) -> list[tuple[int, ...]]:
        """The prompts of a call, [P] each, checked.

        Raises:
            RefusalError: the template refuses the messages, or a prompt is empty, too long, or of wrong tokens.
        """
        self._check_length(call)
        with self._lock:
            try:
                if isinstance(call, ChatParameters):
                    prompts = [self._rendered(call)]
                else:
                    prompts = [self._encoded(prompt, call.add_special_tokens) for prompt in call.prompts]
                self._check_stops(call.stop)
            except DataError as error:
                raise RefusalError(400, str(error), param="messages") from error
        self._check(prompts, "messages" if isinstance(call, ChatParameters) else "prompt")
        return [tuple(prompt) for prompt in prompts]

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included.

        Raises:
            RefusalError: one is none of the model's.
        """
        wrong = next((token for token in tokens if token >= self.vocabulary), None)
        if wrong is not None:
            message = f"token {wrong} is none of the model's, which are 0 to {self.vocabulary - 1}"
            raise RefusalError(400, message, param="tokens")
        with self._lock:
            return self.chat.tokenizer.decode(list(tokens))

    def _check_length(self, call: ChatParameters | CompletionParameters) -> None:
        """Refuse megabytes of text before they are encoded, while others wait."""
        if isinstance(call, ChatParameters):
            param, texts = "messages", ["".join(message.text for message in call.messages)]
        else:
            param, texts = "prompt", [prompt for prompt in call.prompts if isinstance(prompt, str)]
        longest = max(map(len, texts), default=0)
        if longest and longest > self.most_characters:
            raise RefusalError(
                400,
                f"the prompt has {longest} characters, more than the {self.max_model_len} tokens that it may have with "
                "its completion can spell; shorten it",
                param=param,
                code="context_length_exceeded",
            )

    def _rendered(self, call: ChatParameters) -> list[int]:
        messages = [conversation_message(message) for message in call.messages]
        tools = [tool.model_dump() for tool in call.tools] if call.tool_choice != "none" else []
        chat = self._equipped() if tools else self.chat
        chat.tools = tools
        return chat.render(messages, add_generation_prompt=call.add_generation_prompt)

    def _equipped(self) -> Chat:
        """A chat whose template has a place for tools: the model's own, or Hermes' for ChatML."""
        if self._with_tools is None:
            try:
                self._with_tools = tool_templates.equip(copy.deepcopy(self.chat), [tool_templates.PROBE])
            except DataError as error:
                raise RefusalError(
                    400,
                    "tools: the model's chat template has no place for tools, and it is not ChatML, for which there is "
                    "another; describe them in a message",
                    param="tools",
                ) from error
        return self._with_tools

    def _encoded(self, prompt: str | Sequence[int], special: bool) -> list[int]:
        return self._ids(prompt, special, "prompt") if isinstance(prompt, str) else list(prompt)

    def _ids(self, text: str, special: bool, param: str) -> list[int]:
        try:
            return list(self.chat.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
        except (UnicodeEncodeError, TypeError) as error:
            message = f"{param} holds a lone surrogate, which no tokenizer can encode"
            raise RefusalError(400, message, param=param) from error

    def _check(self, prompts: Sequence[Sequence[int]], param: str) -> None:
        if not 0 < len(prompts) <= MOST_PROMPTS:
            raise RefusalError(400, f"{len(prompts)} prompts; expected 1 to {MOST_PROMPTS}", param=param)
        for prompt in prompts:
            if not prompt:
                raise RefusalError(400, "the prompt has no tokens; give it some text", param=param)
            wrong = next((token for token in prompt if not 0 <= token < self.vocabulary), None)
            if wrong is not None:
                raise RefusalError(
                    400, f"token {wrong} is none of the model's, which are 0 to {self.vocabulary - 1}", param=param
                )
            if len(prompt) >= self.max_model_len:
                raise RefusalError(
                    400,
                    f"the prompt has {len(prompt)} tokens, and with its completion it may have {self.max_model_len}; "
                    "shorten it",
                    param=param,
                    code="context_length_exceeded",
                )

    def _check_stops(self, stops: Sequence[str]) -> None:
        for stop in stops:
            if self._ends(stop):
                continue
            ids = self._ids(stop, False, "stop")
            if len(ids) > MOST_STOP_TOKENS or stop not in self.chat.decode(ids):
                raise RefusalError(
                    400,
                    f"stop holds {stop!r}, which can never match: a stop string is plain text of at most "
                    f"{MOST_STOP_TOKENS} tokens; the model's own end tokens always stop",
                    param="stop",
                )

    def _ends(self, stop: str) -> bool:
        """True for the spelling of a token that ends every completion anyway."""
        return stop in [self.chat.tokenizer.convert_ids_to_tokens(token) for token in self.chat.stop_ids]

    def sampling(self, call: ChatParameters | CompletionParameters, longest: int) -> Sampling:
        """The sampling of a call.

        Args:
            longest: tokens of its longest prompt.

        Raises:
            RefusalError: more tokens are asked for than there is room.
        """
        room = self.max_model_len - longest
        limit = call.max_tokens
        if isinstance(call, ChatParameters):
            limit = call.max_completion_tokens or call.max_tokens or room
            refuse_top_logprobs(call.top_logprobs, "top_logprobs")
        else:
            refuse_top_logprobs(call.logprobs or 0, "logprobs", call.temperature)
        assert limit is not None
        if limit > room:
            raise RefusalError(
                400,
                f"the prompt has {longest} tokens, which with the {limit} of its completion is more than the "
                f"{self.max_model_len} that a sequence may have; lower max_tokens to {room} or shorten the prompt",
                param="max_tokens",
                code="context_length_exceeded",
            )
        top_k = max(call.top_k, 0)
        return Sampling(
            temperature=call.temperature,
            top_p=call.top_p,
            top_k=top_k,
            max_tokens=limit,
            stop=tuple(stop for stop in call.stop if not self._ends(stop)),
        )


def conversation_message(message: ChatMessage) -> Message:
    """A client's message as the chat template takes it."""
    rendered = Message(role=message.role, content=message.text)
    if message.tool_calls:
        rendered["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.function.name, "arguments": json.loads(call.function.arguments or "{}")},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    if message.name is not None and message.role == "tool":
        rendered["name"] = message.name
    return rendered


def requests_of(call: Parameters, prompts: Sequence[tuple[int, ...]], version: int) -> list[Request]:
    """The engine's requests, those of one prompt side by side. A seed gives the tokens of `coterie.sample` with it.

    Args:
        version: that the engine serves.
    """
    stream = call.sample_key if isinstance(call, CompletionParameters) else None
    if stream is not None:
        return [Request(key=SampleKey(**stream.model_dump()), prompt_tokens=prompts[0])]
    seed = secrets.randbits(63) if call.seed is None else call.seed
    return [
        Request(
            key=SampleKey(seed=seed, version=version, prompt=str(number), sample=sample, turn=0), prompt_tokens=prompt
        )
        for number, prompt in enumerate(prompts)
        for sample in range(call.n)
    ]


def wants_logprobs(call: Parameters) -> bool:
    """True where the answer has log-probs: chat asks with true, completions with 0."""
    asked = cast(Any, call).logprobs
    return asked is not None and asked is not False
