"""Text of a completion while its tokens come: whole characters, and nothing that may be the start of a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from coterie.text import before_stop

BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet."""


class Decoder(Protocol):
    """The part of the chat that makes text of tokens."""

    @property
    def silent_ids(self) -> frozenset[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class TextStream:
    """Text of one completion, given out piece by piece; the pieces together are the text of all its tokens.

    A token's text may depend on the one before it (a space in front, half a character), so new text is what a short
    window of tokens decodes to beyond what its head does, as vLLM's detokenizer has it.

    Args:
        stop: strings that end the completion and are no part of its text.
    """

    def __init__(self, decoder: Decoder, stop: Sequence[str]) -> None:
        self.decoder, self.stop = decoder, stop
        self.text = ""
        """Decoded so far."""
        self.sent = 0
        """Characters of it that were given out."""
        self._tokens: list[int] = []
        self._head, self._read = 0, 0  # the window's start, and the tokens whose text is in `text`

    def add(self, tokens: Iterable[int]) -> str:
        """The text that can be given out with these tokens too."""
        self._tokens += [token for token in tokens if token not in self.decoder.silent_ids]
        head = self.decoder.decode(self._tokens[self._head : self._read])
        window = self.decoder.decode(self._tokens[self._head :])
        if len(window) > len(head) and not window.endswith(BROKEN):
            self.text += window[len(head) :]
            self._head, self._read = self._read, len(self._tokens)
        return self._until(len(self.text) - self._held_back())

    def end(self, tokens: Sequence[int]) -> str:
        """What is left of the text at the end.

        Args:
            tokens: all of the completion.
        """
        self.text = whole_text(self.decoder, tokens, self.stop)
        return self._until(len(self.text))

    def _until(self, place: int) -> str:
        text = before_stop(self.text[self.sent : place], self.stop)
        self.sent += len(text)
        return text

    def _held_back(self) -> int:
        """Characters at the end that a stop string begins with."""
        tail = self.text[self.sent :]
        starts = (size for word in self.stop for size in range(1, len(word) + 1) if tail.endswith(word[:size]))
        return max(starts, default=0)


def whole_text(decoder: Decoder, tokens: Sequence[int], stop: Sequence[str]) -> str:
    """The text of a completion, up to its first stop string."""
    return before_stop(decoder.decode(tokens), stop)


def matched_stop(decoder: Decoder, tokens: Sequence[int], stop: Sequence[str]) -> str | None:
    """The stop string that ended a completion; None where it was a token, or the limit."""
    text = decoder.decode(tokens)
    places = [(place, word) for word in stop if (place := text.find(word)) >= 0]
    return min(places)[1] if places else None
