"""Prompts of a wanted length from real text: GSM8K questions, longer ones with worked examples in front."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import Case
from coterie.data import assets
from coterie.data.chat import Chat
from coterie.types import Message

# Without it nearly every completion of the 135M model runs into a limit of 64 tokens, and no length spread is left.
SYSTEM = "Give the answer in one short sentence, then stop."
Row = dict[str, Any]


def read_rows() -> list[Row]:
    """The questions, each with `question`, `worked` and `answer`."""
    text = Path(assets.ensure("gsm8k-100")).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def build(case: Case, chat: Chat, rows: Sequence[Row]) -> list[tuple[int, ...]]:
    """`case.prompts` distinct prompts, each about `case.prompt_tokens` long.

    Returns:
        Token ids, ready for the assistant's turn.
    """
    plain = [(len(chat.render(_messages(row, []))), index) for index, row in enumerate(rows)]
    nearest = sorted(plain, key=lambda candidate: (abs(candidate[0] - case.prompt_tokens), candidate[1]))
    return [tuple(_padded(index, case.prompt_tokens, chat, rows)) for _, index in nearest[: case.prompts]]


def _padded(index: int, length: int, chat: Chat, rows: Sequence[Row]) -> list[int]:
    """The question with as many worked examples in front as fit into `wanted` tokens."""
    shots: list[Row] = []
    ids = chat.render(_messages(rows[index], shots))
    for step in range(1, len(rows)):
        longer = chat.render(_messages(rows[index], [rows[(index + step) % len(rows)], *shots]))
        if len(longer) <= length:
            shots, ids = [rows[(index + step) % len(rows)], *shots], longer
    return ids


def _messages(row: Row, shots: Sequence[Row]) -> list[Message]:
    examples = "".join(f"Question: {shot['question']}\nAnswer: {shot['worked']}\n\n" for shot in shots)
    question = f"{examples}Question: {row['question']}" if shots else row["question"]
    return [Message(role="system", content=SYSTEM), Message(role="user", content=question)]
