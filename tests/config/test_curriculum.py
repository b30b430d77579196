"""Sources that join and leave: what is refused before anything is read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from coterie.config.data import DataConfig


def source(**times: int) -> dict[str, Any]:
    return {"type": "file", "path": "x.jsonl", **times}


def test_it_knows_when_sources_change() -> None:
    data = DataConfig.model_validate({"train": [source(until=10), source(after=8), source(after=8, until=20)]})
    assert data.changes() == [0, 8, 10, 20]
    assert [source_config.active(9) for source_config in data.train] == [True, True, True]
    assert [source_config.active(20) for source_config in data.train] == [False, True, False]
    assert DataConfig().changes() == [0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"train": [source(after=5)]}, "no source of data.train is there after 0 drawn prompts"),
        ({"train": [source(until=5), source(after=9)]}, "no source of data.train is there after 5 drawn prompts"),
        ({"train": [source(until=5)]}, "no source of data.train is there after 5 drawn prompts"),
        ({"train": [source(after=5, until=5), source()]}, "until = 5 must be above after = 5"),
        ({"heldout": [source(after=5)]}, "data.heldout has a source with after or until"),
        ({"train": [source()], "rehearsal": 0.1}, "data.rehearsal = 0.1 draws from sources that have left"),
    ],
)
def test_what_cannot_be_drawn_is_refused(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DataConfig.model_validate(data)
