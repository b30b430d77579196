"""Replies of the endpoints: whole ones and the chunks of a stream, with OpenAI's names and vLLM's additions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coterie.serve.engine_thread import Piece
from coterie.serve.prompt_scores import PromptScores
from coterie.serve.text_stream import Decoder, TextStream, matched_stop, whole_text
from coterie.tools.openai_calls import OPENING, Reading, read_calls
from coterie.types import StopReason, Turn


class Tokenizer(Decoder, Protocol):
    """The part of the chat that answers need."""

    tokenizer: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the answers to one request hold."""

    chat: bool
    """Of `/v1/chat/completions`."""
    model: str
    prompts: Sequence[tuple[int, ...]]
    n: int
    """Completions of each prompt."""
    stop: Sequence[str]
    version: int
    fingerprint: str
    """Of the weights."""
    logprobs: bool
    token_ids: bool
    usage: bool
    """At the end of a stream."""
    top: bool = False
    """The likeliest token stands beside each: at temperature 0, the sampled one."""
    echoed: Sequence[PromptScores | None] = ()
    """Of each prompt, where they stand before their completions."""
    scored: Sequence[PromptScores | None] = ()
    """Of each prompt, where `prompt_logprobs` asks for them."""
    tools: Collection[str] = ()
    """Names that a call may have."""
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, *, chunk: bool) -> dict[str, Any]:
        """What stands above the choices."""
        name = "chat.completion" if self.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": f"{name}.chunk" if chunk and self.chat else name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "weight_version": str(self.version),
        }

    def count(self, completion_tokens: int) -> dict[str, int]:
        """Usage: each prompt counts once, however many completions it has."""
        prompt = sum(map(len, self.prompts))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt + completion_tokens,
        }

    def prompt_ids(self, index: int) -> dict[str, Any]:
        """`prompt_token_ids` where they are asked for; of the prompt of choice `index`."""
        return {"prompt_token_ids": list(self.prompts[index // self.n])} if self.token_ids else {}


def whole(form: Form, talk: Tokenizer, turns: Sequence[Turn]) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    choices = []
    for index, turn in enumerate(turns):
        text = whole_text(talk, turn.tokens, form.stop)
        reading = read_calls(text, form.tools)
        scores = _logprobs(form, talk, turn.tokens, turn.sampler_logprobs, 0)
        if form.echoed:
            prompt = form.prompts[index // form.n]
            text = talk.tokenizer.decode(prompt, skip_special_tokens=False) + text
            scores = _echoed_logprobs(form, talk, index, turn)
        content: dict[str, Any] = {"message": reading.message()} if form.chat else {"text": text}
        choice = {"index": index, **content, "logprobs": scores, **ending(form, talk, turn, reading)}
        if form.token_ids:
            choice["token_ids"] = list(turn.tokens)
        if form.scored:
            choice["prompt_logprobs"] = _prompt_logprobs(form, talk, index // form.n)
        choices.append(choice if form.chat else choice | form.prompt_ids(index))
    answer = form.head(chunk=False) | {"choices": choices, "usage": form.count(sum(len(t.tokens) for t in turns))}
    return answer | form.prompt_ids(0) if form.chat else answer


def ending(form: Form, talk: Tokenizer, turn: Turn, reading: Reading) -> dict[str, Any]:
    """Why a completion ended: OpenAI's `finish_reason`, and vLLM's `stop_reason`, the stop string."""
    stopped = turn.stop_reason is StopReason.STOP
    reason = matched_stop(talk, turn.tokens, form.stop) if stopped else None
    finish = "tool_calls" if reading.calls else "stop" if stopped else "length"
    return {"finish_reason": finish, "stop_reason": reason}


class Chunks:
    """The chunks of one stream."""

    def __init__(self, form: Form, talk: Tokenizer) -> None:
        self.form, self.talk = form, talk
        # What may be a call is not shown before it is whole.
        held_back = (*form.stop, OPENING) if form.tools else form.stop
        self.streams = [TextStream(talk, held_back) for _ in range(len(form.prompts) * form.n)]
        self.begun: set[int] = set()
        self.tokens = 0
        self._offsets = [0] * len(self.streams)

    def of(self, piece: Piece) -> dict[str, Any] | None:
        """The chunk of new tokens; None where there is nothing to show yet."""
        form, index = self.form, piece.index
        stream, turn = self.streams[index], piece.turn
        text, reading = stream.add(piece.tokens), Reading(content="")
        if turn is not None:
            reading = read_calls(whole_text(self.talk, turn.tokens, form.stop), form.tools)
            text += stream.end(turn.tokens) if reading.calls or not form.tools else reading.content[stream.sent :]
        self.tokens += len(piece.tokens)
        first = index not in self.begun
        if not text and turn is None and not first and not form.logprobs and not form.token_ids:
            return None
        self.begun.add(index)
        opening: dict[str, Any] = {"role": "assistant"} if first else {}
        if reading.calls:
            opening["tool_calls"] = [call | {"index": number} for number, call in enumerate(reading.calls)]
        content: dict[str, Any] = {"delta": opening | {"content": text}} if form.chat else {"text": text}
        end = {"finish_reason": None} if turn is None else ending(form, self.talk, turn, reading)
        scores = _logprobs(form, self.talk, piece.tokens, piece.logprobs, self._offsets[index])
        self._offsets[index] += len(text)
        choice = {"index": index, **content, "logprobs": scores, **end}
        if form.token_ids:
            choice["token_ids"] = list(piece.tokens)
        prompt = form.prompt_ids(index) if first else {}
        chunk = form.head(chunk=True) | {"choices": [choice if form.chat else choice | prompt]}
        if form.usage:
            chunk["usage"] = None
        return chunk | prompt if form.chat else chunk

    def last(self) -> dict[str, Any] | None:
        """The chunk with the usage; None where it is not asked for."""
        if not self.form.usage:
            return None
        return self.form.head(chunk=True) | {"choices": [], "usage": self.form.count(self.tokens)}


def _logprobs(
    form: Form, talk: Tokenizer, tokens: Sequence[int], logprobs: Sequence[float], offset: int
) -> dict[str, Any] | None:
    """Log-probs of sampled tokens, with the text of each.

    Args:
        offset: characters of the completion before.
    """
    if not form.logprobs:
        return None
    texts = [talk.tokenizer.decode([token], skip_special_tokens=False) for token in tokens]
    if form.chat:
        content = [
            {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
            for text, logprob in zip(texts, logprobs, strict=True)
        ]
        return {"content": content}
    offsets = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
    top = [{text: logprob} for text, logprob in zip(texts, logprobs, strict=True)] if form.top else None
    return {"tokens": texts, "token_logprobs": list(logprobs), "top_logprobs": top, "text_offset": offsets}


def _prompt_logprobs(form: Form, talk: Tokenizer, place: int) -> list[dict[str, Any] | None]:
    """vLLM's: token → log-prob and text of each token of a prompt; the first has none."""
    scores = form.scored[place]
    assert scores is not None
    return [None] + [
        {str(token): {"logprob": value, "decoded_token": talk.tokenizer.decode([token], skip_special_tokens=False)}}
        for token, value in zip(form.prompts[place][1:], scores.logprobs, strict=True)
    ]


def _echoed_logprobs(form: Form, talk: Tokenizer, index: int, turn: Turn) -> dict[str, Any] | None:
    """Log-probs of a prompt and its completion; the first token has none."""
    prompt, scores = form.prompts[index // form.n], form.echoed[index // form.n]
    if scores is None:
        return None
    texts = [talk.tokenizer.decode([token], skip_special_tokens=False) for token in prompt]
    after = _logprobs(form, talk, turn.tokens, turn.sampler_logprobs, sum(map(len, texts)))
    assert after is not None
    before = [None, *scores.logprobs]
    names = [talk.tokenizer.decode([token], skip_special_tokens=False) for token in scores.likeliest]
    tops = zip(texts[1:], scores.logprobs, names, scores.likeliest_logprobs, strict=True)
    return {
        "tokens": texts + after["tokens"],
        "token_logprobs": before + after["token_logprobs"],
        "top_logprobs": [
            None,
            *({text: logprob, name: best} for text, logprob, name, best in tops),
            *after["top_logprobs"],
        ]
        if form.top
        else None,
        "text_offset": [sum(map(len, texts[:place])) for place in range(len(texts))] + after["text_offset"],
    }
