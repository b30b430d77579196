"""Tokens of an assistant's turn as the model would say them: from the end of the prompt to the token that ends it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from coterie.data.answers import THOUGHTS
from coterie.data.chat import Chat
from coterie.data.columns import BadRowError
from coterie.errors import DataError
from coterie.types import Message


def turn_tokens(chat: Chat, before: Sequence[Message], reply: str) -> list[int]:
    """Token ids of a reply, with the end-of-turn token.

    They are what the chat template itself writes behind the prompt of this turn, up to its end-of-turn token: with the
    space, trimming or empty thought that it adds to a reply. Where the template writes a turn that is over otherwise
    than one that is asked for (it leaves thoughts out, say), they are the reply's own words behind the prompt. Words
    that spell a token with which the template writes turns are only letters; tags such as `<think>` are the tokens that
    they are when the model says them.

    Args:
        before: the conversation so far, not empty.
        reply: the assistant's words.

    Raises:
        BadRowError: the template opens every answer with a thought that this reply does not end.
        DataError: the template refuses the messages, or the text cannot be encoded.
    """
    escaped, spellings = chat.escape_special_tokens([*before, Message(role="assistant", content=reply)])
    words = _behind_opening(chat, escaped[-1]["content"])
    body, ending = _written(chat, escaped, words) or (words, "")
    ids = _encode(chat, body, spellings)
    end = chat.encode(ending) if ending else []
    if len(end) != 1 or end[0] not in chat.stop_ids:
        eos = chat.tokenizer.eos_token_id
        end = [eos] if eos is not None else sorted(chat.stop_ids)[:1]
    return [*ids, *end]


def _behind_opening(chat: Chat, words: str) -> str:
    """The reply without the tag that the template has written already.

    Raises:
        BadRowError: a thought is opened and never closed.
    """
    opening = chat.opening.strip()
    if not opening:
        return words
    words = words.lstrip().removeprefix(opening).lstrip()
    closing = THOUGHTS.get(opening, "")
    if closing and closing not in words:
        raise BadRowError(
            f"has a reply without {closing!r}, but the model's chat template opens every answer with {opening!r}: "
            f"{words[:40]!r}; put the reasoning between both"
        )
    return words


def _written(chat: Chat, messages: Sequence[Message], words: str) -> tuple[str, str] | None:
    """What the template writes behind the last turn's prompt: its text, and the special token that ends it (empty where
    there is none); None where it does not write the words there.

    Args:
        messages: the conversation with its last turn, without special tokens.
    """
    asked = chat.text(messages[:-1], add_generation_prompt=True)
    answered = chat.text(messages, add_generation_prompt=False)
    core = words.strip()
    rest = answered.removeprefix(asked)
    if len(rest) == len(answered) or core not in rest:
        return None
    lead, _, tail = rest.partition(core)
    special = chat.special.search(tail)
    if special is None or tail[: special.start()].strip():
        return f"{lead}{core}", ""
    return f"{lead}{core}{tail[: special.start()]}", special.group()


def _encode(chat: Chat, text: str, spellings: Mapping[str, str]) -> list[int]:
    """Token ids of a text, in which characters stand for special tokens: plain letters for those that `decode` leaves
    out, the tokens themselves for the others."""
    if not text:
        raise DataError("the assistant's turn is empty; expected words")
    if not spellings:
        return chat.encode(text)
    ids: list[int] = []
    for part in re.split(f"([{''.join(spellings)}])", text):
        word = spellings.get(part, part)
        token = chat.encode(word) if part in spellings else []
        silent = len(token) == 1 and token[0] in chat.silent_ids
        ids += chat.encode(word, plain=part in spellings and (silent or len(token) != 1)) if word else []
    return ids
