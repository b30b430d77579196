from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.rewards.steps import stages

THINK, ANSWER = "<think>a</think>", "<answer>b</answer>"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (THINK + ANSWER, [(16, 1), (34, 1)]),
        (f" {THINK}\nso {ANSWER} end", [(17, 1), (39, 1)]),
        (THINK, [(16, 0)]),  # what is missing ends where the text does, and the lower value counts
        (THINK + " and", [(16, 1), (20, 0)]),
        (ANSWER, [(18, 0)]),
        (ANSWER + THINK, [(18, 0), (34, 1)]),
        (THINK + THINK + ANSWER, [(32, 0), (50, 1)]),
        ("<think>a<answer>b</answer></think>", [(26, 0), (34, 1)]),
        ("<think>a" + ANSWER, [(26, 0)]),
        ("</think><think>" + ANSWER, [(33, 0)]),
        ("a</think>" + ANSWER, [(9, 1), (27, 1)]),  # the template may have opened it
        ("nothing", [(7, 0)]),
        ("", []),
    ],
)
def test_each_stage_is_a_step(text: str, want: list[tuple[int, float]]) -> None:
    assert stages([text]) == [want]


def test_a_stage_that_the_template_did_not_open_is_missing() -> None:
    assert stages(["a</think>" + ANSWER], [""]) == [[(27, 0)]]
    assert stages([THINK + ANSWER], ["<think>"]) == [[(16, 1), (34, 1)]]


def test_stages_of_ones_own() -> None:
    text = "<plan>1</plan><do>2</do><check>3</check>"
    assert stages([text], tags=["plan", "do", "check"]) == [[(14, 1), (24, 1), (40, 1)]]
    for tags in ([], ["a", "a"], "think", ["<a>"]):
        with pytest.raises(ValueError, match="tags"):
            stages([text], tags=tags)


@given(
    st.text("<>/thinkaswer x", max_size=80)
    | st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "x"])).map("".join)
)
def test_any_text_gives_steps_within_it(text: str) -> None:
    ends = [end for end, _ in stages([text])[0]]
    assert ends == sorted(set(ends))
    assert all(1 <= end <= len(text) for end in ends)
    assert bool(ends) == bool(text)
