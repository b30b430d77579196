"""Passages and questions of BoolQ, as the asset writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coterie.data import boolq
from coterie.errors import AssetError


def test_passages_come_once_and_questions_with_theirs(tmp_path: Path) -> None:
    rows = [
        {"question": "is it long ", "passage": "Oder -- The Oder is  a river.", "label": True},
        {"question": "is it wet", "passage": "Oder -- The Oder is a river."},
        {"question": "is it", "passage": "No title here."},
    ]
    (tmp_path / "member").write_text("".join(json.dumps(row) + "\n" for row in rows))
    boolq.convert(tmp_path / "member", tmp_path)
    passages, questions = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in (boolq.FILE, boolq.QUESTIONS)
    )
    assert passages == [
        {"id": "1", "title": "Oder", "text": "The Oder is a river."},
        {"id": "2", "title": "", "text": "No title here."},
    ]
    assert questions == [
        {"question": "is it long", "answer": "The Oder is a river."},
        {"question": "is it wet", "answer": "The Oder is a river."},
        {"question": "is it", "answer": "No title here."},
    ]
    sample = boolq.questions(tmp_path / boolq.FILE, size=2, seed=3)
    assert len(sample) == 2
    assert all(row in questions for row in sample)
    with pytest.raises(AssetError, match="fetch boolq-passages again"):
        boolq.questions(tmp_path / "none" / boolq.FILE, size=2)


@pytest.mark.parametrize("text", ["{", "[]", '{"question": "a"}', '{"question": "a", "passage": 3}'])
def test_another_form_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "member").write_text(text)
    with pytest.raises(AssetError, match="another form than expected"):
        boolq.convert(tmp_path / "member", tmp_path)
