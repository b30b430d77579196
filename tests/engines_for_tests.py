"""The codec of the contract's engines: tiny models without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence


class Codec:
    """Each token is one letter; some end a turn."""

    stop_ids = frozenset(range(2, 14))
    silent_ids = stop_ids

    @property
    def tokenizer(self) -> Codec:
        return self

    def decode(self, ids: Sequence[int], **_: bool) -> str:
        return "".join(chr(0x100 + token) for token in ids)
