"""How the benchmark talks to its workers: one JSON object a line, a question in and an answer out.

Standard library only: it also runs in the environments of the peers, which have no coterie.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any, TextIO

STOP = "stop"


class Wire:
    """The worker's end. Whatever the libraries print goes to standard error, so that only answers go out."""

    def __init__(self, questions: TextIO | None = None, answers: TextIO | None = None) -> None:
        self._questions = questions or sys.stdin
        if answers is None:
            answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
            os.dup2(2, 1)
        self._answers = answers

    def read(self) -> dict[str, Any]:
        """The next question: a table with the key `do`; waits without computing. End of input is `stop`."""
        line = self._questions.readline()
        return json.loads(line) if line.strip() else {"do": STOP}

    def answer(self, table: Mapping[str, Any]) -> None:
        self._answers.write(json.dumps(table) + "\n")
        self._answers.flush()

    def fail(self, error: BaseException) -> None:
        text = " ".join(str(error).split())
        self.answer({"error": f"{type(error).__name__}: {text[:1000]}"})


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, for the record."""
    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in packages}
