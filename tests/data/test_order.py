from __future__ import annotations

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
