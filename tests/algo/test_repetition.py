"""n-grams of tokens, against sets of tuples."""

from __future__ import annotations

import numpy as np
import pytest

from coterie.algo.shaping import copied, ngram_ids, repetition


def tuples(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1)]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_ids_are_equal_exactly_where_the_ngrams_are(n: int) -> None:
    rng = np.random.default_rng(n)
    tokens = rng.integers(0, 3, 60).tolist()
    ids, expected = ngram_ids(tokens, n), tuples(tokens, n)
    assert len(ids) == len(expected)
    for row in range(len(ids)):
        assert [ids[row] == other for other in ids] == [expected[row] == other for other in expected]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 40])
def test_repetition_is_the_share_that_was_said_before(size: int) -> None:
    tokens = np.random.default_rng(size).integers(0, 4, size).tolist()
    grams = tuples(tokens, 3)
    assert repetition(tokens) == (1 - len(set(grams)) / len(grams) if grams else 0.0)


def test_by_hand() -> None:
    assert repetition([1] * 12) == 0.9  # ten 3-grams, one distinct
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert copied([1, 2, 3], [1, 2, 3], n=2) == 1.0
    assert copied([9, 9, 9], [1, 2, 3], n=2) == 0.0
    assert copied([1, 2], [1, 2, 3], n=3) == 0.0


def test_copies_are_found_across_the_whole_prompt_and_not_over_its_end() -> None:
    rng = np.random.default_rng(0)
    prompt, completion = rng.integers(0, 3, 50).tolist(), rng.integers(0, 3, 30).tolist()
    prompt_grams = set(tuples(prompt, 4))
    assert copied(completion, prompt, n=4) == np.mean([gram in prompt_grams for gram in tuples(completion, 4)])
    assert copied([3, 1, 2], [1, 2, 3], n=2) == 0.5  # [3, 1] crosses from prompt to completion in no text


def test_no_ngram_of_nothing() -> None:
    with pytest.raises(ValueError, match="n = 0"):
        ngram_ids([1], 0)
