"""Step ends are token-exact, whatever the tokenizer does to the characters."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coterie.data.chat import Chat
from coterie.rewards.steps import token_ends
from tiny import tiny_tokenizer

BYTES = Chat(tiny_tokenizer(kind="byte_bpe"))
FALLBACK = Chat(tiny_tokenizer(kind="byte_fallback"))
WORDS = [
    "the answer is",
    " the",
    "é",
    "你",
    "👩\u200d👩\u200d👧",
    "a\u0301",
    "\n\n",
    "  ",
    "\u00a0",
    "<think>",
    "2+3=5",
    "\ufffd",
    "ﷺ",
    "\t",
    "🇫🇷",
]
AWKWARD = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), min_size=1, max_size=8).map("".join).filter(bool)


def ids_of(chat: Chat, text: str) -> list[int]:
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def byte_of() -> dict[str, int]:
    """GPT-2's table of visible characters for bytes, backwards."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(256 + k): b for k, b in enumerate(hidden)}


def by_bytes(ids: Sequence[int], end: int, text: str) -> int:
    """The token that holds the last byte of `text[:end]`, counted in bytes: only for whole text."""
    table, left = byte_of(), len(text[:end].encode())
    for index, token in enumerate(BYTES.tokenizer.convert_ids_to_tokens(list(ids))):
        left -= sum(character in table for character in token)
        if left <= 0:
            return index
    raise AssertionError("the text is longer than its tokens")


@settings(max_examples=200, deadline=None)
@given(AWKWARD)
@example("é")
@example("👩\u200d👩\u200d👧 the answer is")
def test_byte_level_tokens_agree_with_counting_bytes(text: str) -> None:
    ids = ids_of(BYTES, text)
    assert BYTES.decode(ids) == text
    ends = list(range(1, len(text) + 1))
    assert token_ends([ids], ends, BYTES.decode) == [by_bytes(ids, end, text) for end in ends]


@settings(max_examples=100, deadline=None)
@given(AWKWARD, st.sampled_from([BYTES, FALLBACK]))
def test_the_end_is_the_first_prefix_that_has_the_piece(text: str, chat: Chat) -> None:
    ids = ids_of(chat, text)
    whole = chat.decode(ids)
    ends = list(range(1, len(whole) + 1))
    prefixes = [chat.decode(ids[: k + 1]) for k in range(len(ids))]
    for end, got in zip(ends, token_ends([ids], ends, chat.decode), strict=True):
        assert prefixes[got][:end] == whole[:end]
        if "\ufffd" not in whole:
            assert all(prefix[:end] != whole[:end] for prefix in prefixes[:got])


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=12))
def test_broken_text_ends_with_the_last_byte_of_each_piece(data: bytes) -> None:
    table = {byte: character for character, byte in byte_of().items()}
    ids = BYTES.tokenizer.convert_tokens_to_ids([table[byte] for byte in data])
    whole = BYTES.decode(ids)
    assert whole == data.decode("utf-8", "replace")
    # How many bytes an incremental decoder has eaten when a piece of text is final.
    decoder, final = codecs.getincrementaldecoder("utf-8")("replace"), []
    for index, byte in enumerate(data):
        final += [index] * len(decoder.decode(bytes([byte])))
    ends = list(range(1, len(whole) + 1))
    for end, got in zip(ends, token_ends([ids], ends, BYTES.decode), strict=True):
        assert BYTES.decode(ids[: got + 1])[:end] == whole[:end]
        if end <= len(final) and whole[end - 1] != "\ufffd":
            assert got == final[end - 1]


def test_one_character_of_several_tokens_and_one_token_of_several_steps() -> None:
    ids = ids_of(BYTES, "the👩.")
    assert len(ids) == 1 + 4 + 1
    assert token_ends([ids], [1, 3, 4, 5], BYTES.decode) == [0, 0, 4, 5]


def test_an_end_token_is_no_part_of_a_step() -> None:
    ids = [*ids_of(BYTES, "is é"), *BYTES.stop_ids]
    assert token_ends([ids], [len(BYTES.decode(ids))], BYTES.decode) == [len(ids) - 1 - len(BYTES.stop_ids)]
    broken = [*ids_of(BYTES, "é")[:1], *BYTES.stop_ids]
    assert token_ends([broken], [1], BYTES.decode) == [0]


def test_a_character_that_stays_broken_ends_with_its_last_byte() -> None:
    ids = [*ids_of(BYTES, "你")[:2], *ids_of(BYTES, "a")]
    assert BYTES.decode(ids) == "\ufffda"
    assert token_ends([ids], [1, 2], BYTES.decode) == [1, 2]


def test_byte_fallback_takes_characters_back_for_a_while() -> None:
    ids = ids_of(FALLBACK, "é你é")
    assert FALLBACK.decode(ids[:3]) == "\ufffd" * 3  # the é is gone again
    assert token_ends([ids], [1, 2, 3], FALLBACK.decode) == [1, 4, 6]


def test_several_turns_count_through() -> None:
    turns = [ids_of(BYTES, "the é"), [], ids_of(BYTES, "你 is")]
    first = len(turns[0])
    assert token_ends(turns, [3, 5, 6, 9], BYTES.decode) == [0, first - 1, first + 2, first + 3]


def test_ends_outside_the_text_are_refused() -> None:
    for ends in ([0], [4], [2, 1]):
        with pytest.raises(ValueError, match="of a completion with 3 characters; expected 1 … 3, ascending"):
            token_ends([ids_of(BYTES, "the")], ends, BYTES.decode)
    assert token_ends([[]], [], BYTES.decode) == []
