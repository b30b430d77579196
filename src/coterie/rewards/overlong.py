"""DAPO's punishment for completions that come near the token limit."""

from __future__ import annotations

from collections.abc import Sequence

from coterie.algo.shaping import soft_overlong


def overlong(
    completions: Sequence[str], completion_length: Sequence[int | None], *, maximum: int, cache: int | None = None
) -> list[float | None]:
    """0 up to maximum - cache tokens, falling linearly to -1 at `maximum`; None where the token count is not known.

    A reward part like any other, so that its weight, its record and its place in a per-part estimator are a part's;
    the token count comes with the text as the column `completion_length`.

    Args:
        maximum: tokens at which it is -1; usually sampling.max_tokens.
        cache: width of the falling part in tokens; a fifth of `maximum` when left out, as in DAPO.

    Raises:
        ValueError: cache is not within 1 … maximum.
    """
    width = max(maximum // 5, 1) if cache is None else cache
    shaped = soft_overlong([length or 0 for length in completion_length], maximum=maximum, cache=width)
    pairs = zip(completion_length, shaped.tolist(), strict=True)
    return [None if length is None else value for length, value in pairs]
