"""A conversation with a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from coterie.engines.base import Engine, Request, Sampling
from coterie.errors import EngineError
from coterie.text import before_stop
from coterie.types import Message, SampleKey


class Talk(Protocol):
    """The part of the chat that a conversation needs."""

    def render(self, messages: Sequence[Message]) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class ChatSession:
    """Keeps the messages; each reply is sampled from all of them.

    Args:
        context: longest sequence of the model, in tokens; an answer gets what the conversation leaves.
        system: first message of the conversation.
        seed: of the samples; two sessions with the same seed and the same questions give the same answers.
    """

    def __init__(
        self, engine: Engine, talk: Talk, sampling: Sampling, *, context: int, seed: int, system: str | None = None
    ) -> None:
        self.engine = engine
        self.talk = talk
        self.sampling = sampling
        self.context = context
        self.seed = seed
        self.messages: list[Message] = [Message(role="system", content=system)] if system else []

    def reply(self, text: str) -> str:
        """Say `text`, return the answer; both become part of the conversation.

        Raises:
            EngineError: the conversation has outgrown the model's context; it is left as it was.
        """
        asked: list[Message] = [*self.messages, Message(role="user", content=text)]
        key = SampleKey(seed=self.seed, version=self.engine.version, prompt="chat", sample=0, turn=len(asked))
        request = Request(key=key, prompt_tokens=tuple(self.talk.render(asked)))
        room = self.context - len(request.prompt_tokens)
        if room < 1:
            raise EngineError(
                f"the conversation has {len(request.prompt_tokens)} tokens and the model's context is {self.context}; "
                "start a new one"
            )
        sampling = replace(self.sampling, max_tokens=min(self.sampling.max_tokens, room))
        (turn,) = self.engine.generate([request], sampling)
        answer = before_stop(self.talk.decode(turn.tokens), sampling.stop)
        self.messages = [*asked, Message(role="assistant", content=answer)]
        return answer
