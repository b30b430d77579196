"""What a text is about, without a model: its words and letter triples, hashed into a short vector."""

from __future__ import annotations

import re
from zlib import crc32

import numpy as np

WIDTH = 256
LONGEST = 8192
"""Characters looked at: a row must cost microseconds, whatever it holds."""

_WORD = re.compile(r"\w+|[^\w\s]")


def text_embedding(text: str, width: int = WIDTH) -> np.ndarray:
    """[width] float32 of length 1, or zeros for an empty text; equal on every machine.

    Feature hashing with signs (Weinberger et al., 0902.2206) of words and of letter triples within words; a feature
    that occurs n times counts √n. Digits count as one letter, so that two sums of other numbers are alike.
    """
    counts: dict[str, int] = {}
    for word in _WORD.findall(re.sub(r"\d", "0", text[:LONGEST].lower())):
        padded = f" {word} "
        for gram in (padded, *(padded[k : k + 3] for k in range(len(padded) - 2))):
            counts[gram] = counts.get(gram, 0) + 1
    found = np.zeros(width)
    for gram, count in counts.items():
        code = crc32(gram.encode("utf-8", "surrogatepass"))
        found[code % width] += (1.0 if code & 0x8000_0000 else -1.0) * count**0.5
    norm = float(np.sqrt((found * found).sum()))
    return (found / norm if norm else found).astype(np.float32)
