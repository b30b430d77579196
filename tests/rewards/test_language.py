from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.rewards.builtin import SCRIPTS, language, overlong


@pytest.mark.parametrize(
    ("text", "script", "want"),
    [
        ("let us 计算 now", "latin", 3 / 5),
        ("let us 计算 now", "han", 2 / 5),
        ("", "latin", 0),
        ("1 + 2 = 3 !?", "latin", 0),
        ("don't stop, naïve café", "latin", 1),
        ("e\u0301te\u0301 ok", "latin", 1),
        ("use `计算` and $\\alpha 计$ and\n```\n计算\n``` here", "latin", 1),
        ("\\(计\\) and \\[计\\] and \\text now", "latin", 1),
        ("<think>好的</think>", "han", 1),
        ("дом house", "cyrillic", 1 / 2),
        ("домhouse", "cyrillic", 1 / 2),
        ("これは本", "japanese", 1),
        ("これは本", "han", 1 / 4),
        ("나는 book", "korean", 1 / 2),
        ("नमस्ते दुनिया", "devanagari", 1),
        ("ｆｕｌｌ width 𝐛𝐨𝐥𝐝", "latin", 1),
        ("سلام", "arabic", 1),
    ],
)
def test_share_of_words_in_the_script(text: str, script: str, want: float) -> None:
    assert language([text], script=script)[0] == pytest.approx(want)


def test_an_unknown_script_is_named() -> None:
    with pytest.raises(ValueError, match="script = 'english'; expected one of latin, han"):
        language(["a"], script="english")


@given(st.text(max_size=40), st.sampled_from(sorted(SCRIPTS)))
def test_it_is_a_share(text: str, script: str) -> None:
    assert 0 <= language([text], script=script)[0] <= 1


def test_overlong_counts_tokens_and_says_nothing_where_they_are_unknown() -> None:
    texts = ["long " * 99] * 5
    assert overlong(texts, [16384, 18432, 20480, 30000, None], maximum=20480, cache=4096) == [0, -0.5, -1, -1, None]
    assert overlong(texts[:1], [90], maximum=100) == [-0.5]
