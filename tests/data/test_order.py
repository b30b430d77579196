from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.data.order import PromptOrder
from coterie.types import Message, Prompt


def prompts(count: int) -> list[Prompt]:
    message = Message(role="user", content="?")
    return [Prompt(id=str(k), messages=(message,), answer=None, task="t") for k in range(count)]


@given(count=st.integers(1, 9), cursor=st.integers(0, 40), first=st.integers(1, 9), second=st.integers(1, 9))
def test_the_stream_does_not_depend_on_how_it_is_cut(count: int, cursor: int, first: int, second: int) -> None:
    order = PromptOrder(prompts(count), seed=1)
    whole = order.draw(cursor, first + second)
    assert order.draw(cursor, first) + order.draw(cursor + first, second) == whole


def test_every_epoch_holds_every_prompt_once_in_its_own_order() -> None:
    order = PromptOrder(prompts(20), seed=1)
    epochs = [[prompt.id for prompt in order.draw(20 * epoch, 20)] for epoch in range(3)]
    assert all(sorted(epoch, key=int) == [str(k) for k in range(20)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = [prompt.id for prompt in PromptOrder(prompts(20), seed=2).draw(0, 20)]
    assert other != epochs[0]


PRESENCE: dict[str, tuple[int, int | None]] = {str(k): (0, 12) for k in range(4)} | {str(k): (8, None) for k in (8, 9)}
"""0 to 3 leave after 12 drawn prompts, 8 and 9 join after 8; 4 to 7 are always there."""


def staged(review: float) -> PromptOrder:
    return PromptOrder(prompts(10), seed=1, presence=PRESENCE, rehearsal=review)


def ids(order: PromptOrder, cursor: int, count: int) -> list[str]:
    return [prompt.id for prompt in order.draw(cursor, count)]


def test_prompts_join_and_leave() -> None:
    order = staged(0.0)
    assert sorted(ids(order, 0, 8)) == list("01234567")
    assert set(ids(order, 8, 4)) < set("0123456789")
    assert sorted(ids(order, 12, 6)) == sorted(ids(order, 18, 6)) == list("456789")
    assert [order.stage(at) for at in (0, 7, 8, 11, 12, 99)] == [0, 0, 1, 1, 2, 2]
    assert [order.available(at) for at in (0, 8, 12)] == [8, 10, 6]


def test_a_quarter_of_the_draws_reviews_what_has_left() -> None:
    order = staged(0.25)
    assert sorted(ids(order, 0, 8)) == list("01234567")
    drawn = ids(order, 12, 16)
    assert [at for at, name in enumerate(drawn) if name in "0123"] == [3, 7, 11, 15]
    assert sorted(name for name in drawn if name in "0123") == list("0123")
    assert sorted(name for name in drawn if name in "456789") == sorted("456789" * 2)


@given(cursor=st.integers(0, 40), first=st.integers(1, 9), second=st.integers(1, 9))
def test_a_stream_with_stages_does_not_depend_on_how_it_is_cut(cursor: int, first: int, second: int) -> None:
    whole = ids(staged(0.3), cursor, first + second)
    order = staged(0.3)
    assert ids(order, cursor + first, second) == whole[first:]
    assert ids(order, cursor, first) == whole[:first]


def test_a_stream_that_runs_dry_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompt to draw after 5"):
        PromptOrder(prompts(2), seed=1, presence={"0": (0, 5), "1": (0, 5)})
