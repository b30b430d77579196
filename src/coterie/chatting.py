"""A conversation with a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from coterie.engines.base import Engine, Request, Sampling
from coterie.types import Message, SampleKey


class Talk(Protocol):
    """The part of the chat that a conversation needs."""

    def render(self, messages: Sequence[Message]) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class ChatSession:
    """Keeps the messages; each reply is sampled from all of them.

    Args:
        seed: of the samples; two sessions with the same seed and the same questions give the same answers.
    """

    def __init__(self, engine: Engine, talk: Talk, sampling: Sampling, *, seed: int) -> None:
        self.engine = engine
        self.talk = talk
        self.sampling = sampling
        self.seed = seed
        self.messages: list[Message] = []

    def reply(self, text: str) -> str:
        """Say `text`, return the answer; both become part of the conversation.

        Raises:
            EngineError: the conversation has outgrown the model's context; it is left as it was.
        """
        asked: list[Message] = [*self.messages, Message(role="user", content=text)]
        key = SampleKey(seed=self.seed, version=self.engine.version, prompt="chat", sample=0, turn=len(asked))
        request = Request(key=key, prompt_tokens=tuple(self.talk.render(asked)))
        (turn,) = self.engine.generate([request], self.sampling)
        answer = self.talk.decode(turn.tokens)
        self.messages = [*asked, Message(role="assistant", content=answer)]
        return answer
