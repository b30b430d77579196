"""From characters of a completion to the tokens that wrote them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
"""What bytes decode to that are no character, or not yet."""


def token_ends(
    turns: Sequence[Sequence[int]], ends: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> list[int]:
    """The token with which each piece of a completion is first complete.

    Found by decoding prefixes of the very tokens that were sampled, since nothing else tells what a token adds: one
    character may take several byte tokens, one token may hold the end of a step and the start of the next, end tokens
    say nothing, and encoding the text again may cut it elsewhere.

    Args:
        turns: tokens of each model turn; the completion is their decoded texts end to end.
        ends: character offsets in the completion, ascending, 1 … its length.
        decode: of the tokenizer that the model speaks with.

    Returns:
        Per end the index of a token, counted over all turns.

    Raises:
        ValueError: an end lies outside the completion, or they do not ascend.
    """
    texts = [decode(tokens) for tokens in turns]
    length = sum(map(len, texts))
    if list(ends) != sorted(ends) or (ends and not 1 <= ends[0] <= ends[-1] <= length):
        raise ValueError(
            f"ends {list(ends)} of a completion with {length} characters; expected 1 … {length}, ascending"
        )
    found: list[int] = []
    characters = tokens_before = 0
    for tokens, text in zip(turns, texts, strict=True):
        turn = _Turn(tokens, text, decode)
        inside = [end - characters for end in ends[len(found) :] if end - characters <= len(text)]
        found += [tokens_before + turn.token_of(end) for end in inside]
        characters, tokens_before = characters + len(text), tokens_before + len(tokens)
    return found


class _Turn:
    """One turn's prefixes, each decoded at most once; ends are asked for in ascending order."""

    def __init__(self, tokens: Sequence[int], text: str, decode: Callable[[Sequence[int]], str]) -> None:
        self.tokens = tokens
        self.text = text
        self.decode = decode
        self._known: dict[int, str] = {len(tokens) - 1: text}

    def token_of(self, end: int) -> int:
        """Index of the first token after which `text[:end]` stands complete."""
        low, high = 0, len(self.tokens) - 1  # by bisection: high has it
        while low < high:
            middle = (low + high) // 2
            if self._has(middle, end):
                high = middle
            else:
                low = middle + 1
        # Some tokenizers take a character back while the bytes of a later one are incomplete (byte fallback decodes a
        # run of bytes as a whole), so an earlier prefix may have had it; only broken text lies between the two.
        look = high - 1
        while look >= 0 and (self._has(look, end) or self._prefix(look).endswith(BROKEN)):
            high = look if self._has(look, end) else high
            look -= 1
        # A character that stays broken is complete with the last token that does not change the text.
        while self.text[end - 1] == BROKEN and high + 1 < len(self.tokens) and self._adds_nothing(high + 1):
            high += 1
        return high

    def _has(self, index: int, end: int) -> bool:
        return self._prefix(index)[:end] == self.text[:end]

    def _adds_nothing(self, index: int) -> bool:
        return self._prefix(index) == self._prefix(index - 1) and self.decode(self.tokens[index : index + 1]) != ""

    def _prefix(self, index: int) -> str:
        if index not in self._known:
            self._known[index] = self.decode(self.tokens[: index + 1])
        return self._known[index]
