"""Completions of a model for given prompts, and conversations with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from coterie.build.reading import locate_model
from coterie.build.run import load_policy, use_threads
from coterie.callbacks import Callback
from coterie.config.load import load_file
from coterie.config.schema import RunConfig
from coterie.data.chat import Chat, load_chat
from coterie.engines.base import Engine, Request, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.errors import ConfigError, DataError, EngineError
from coterie.inference.heldout import step_of, with_model
from coterie.policy.device import DTYPES
from coterie.policy.model import Policy
from coterie.runs.models import resolve
from coterie.text import before_stop
from coterie.types import Message, SampleKey


class ChatTemplate(Protocol):
    """The chat template as far as a conversation needs it."""

    def render(self, messages: Sequence[Message]) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class ChatSession:
    """A conversation; each reply is sampled from all messages so far.

    Args:
        context: longest sequence of the model, in tokens; an answer gets what the conversation leaves.
        system: first message of the conversation.
        seed: of the samples; two sessions with the same seed and the same questions give the same answers.
    """

    def __init__(
        self,
        engine: Engine,
        talk: ChatTemplate,
        sampling: Sampling,
        *,
        context: int,
        seed: int,
        system: str | None = None,
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


def complete(
    target: str,
    prompts: Sequence[str | Sequence[Mapping[str, str]]],
    *,
    samples: int = 1,
    temperature: float = 0.7,
    max_tokens: int = 128,
    system: str | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> list[list[str]]:
    """Completions of a run's or a model's policy: `samples` texts for each prompt, in order.

    Args:
        prompts: a text each, or a list of messages.
        system: put before each prompt that is a text; None takes the one a run was trained with, if any.

    Raises:
        DataError: a prompt is neither text nor messages.
        EngineError: a prompt does not fit the model's context.
    """
    callback = callback or Callback()
    system = _system_of(target) if system is None else system
    conversations = [_conversation(prompt, number, system) for number, prompt in enumerate(prompts)]
    policy, talk, version = loaded(target, callback)
    engine = EmbeddedEngine(policy, talk, version=version)
    requests = [
        Request(
            key=SampleKey(seed=seed, version=engine.version, prompt=str(number), sample=attempt, turn=0),
            prompt_tokens=tuple(talk.render(conversation)),
        )
        for number, conversation in enumerate(conversations)
        for attempt in range(samples)
    ]
    sampling = Sampling(
        temperature=temperature,
        max_tokens=max_tokens,
        progress=lambda done, total: callback.on_progress("sampling", done, total, "completions"),
    )
    texts = [talk.decode(turn.tokens) for turn in engine.generate(requests, sampling)]
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def _conversation(prompt: str | Sequence[Mapping[str, str]], number: int, system: str | None) -> list[Message]:
    if isinstance(prompt, str):
        opening: list[Message] = [Message(role="system", content=system)] if system else []
        return [*opening, Message(role="user", content=prompt)]
    try:
        return [Message(role=message["role"], content=message["content"]) for message in prompt]
    except (TypeError, KeyError) as error:
        raise DataError(
            f"prompt {number} is {prompt!r}; expected text, or a list of messages with role and content"
        ) from error


def chat(
    target: str,
    *,
    system: str | None = None,
    temperature: float = 0.7,
    max_tokens: int = 512,
    seed: int | None = None,
    callback: Callback | None = None,
) -> ChatSession:
    """A conversation with a run's or a model's policy: `.reply(text)`.

    Args:
        system: system message; None takes the one the run was trained with, if any.
        seed: None takes a fresh one.
    """
    policy, talk, version = loaded(target, callback or Callback())
    engine = EmbeddedEngine(policy, talk, max_num_seqs=1, version=version)
    sampling = Sampling(temperature=temperature, top_p=0.95, max_tokens=max_tokens)
    return ChatSession(
        engine,
        talk,
        sampling,
        context=policy.context,
        seed=int.from_bytes(os.urandom(4), "little") if seed is None else seed,
        system=_system_of(target) if system is None else system,
    )


def loaded(target: str, callback: Callback, dtype: str = "auto") -> tuple[Policy, Chat, int]:
    """The policy of a run or a model, with its chat and its version: the step of a run's checkpoint, else 0.

    Args:
        dtype: number format, as `model.dtype`.

    Raises:
        ConfigError: there is no such format.
        ModelError, RunError, AssetError: as `runs.models.resolve`, or it cannot be loaded.
    """
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"dtype = {dtype!r}; expected auto, {', '.join(DTYPES)}")
    config = with_model(RunConfig.model_validate({"model": {"dtype": dtype}}), target)
    use_threads(config)
    source = locate_model(config.model.name, callback, Path(config.runs), config.model.revision)
    talk = load_chat(source, config.model.revision, skip_special_tokens=config.sampling.skip_special_tokens)
    callback.on_progress("loading the model")
    return load_policy(config, source), talk, step_of(config.model.name)


def _system_of(target: str) -> str | None:
    """The system message that a run was trained with."""
    run = resolve(target, check_files=False).run
    return None if run is None else load_file(run / "config.toml").config.data.system
