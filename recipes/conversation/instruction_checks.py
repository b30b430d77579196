"""Checks of instructions by IFEval's ids: lm-eval's where they are right, own ones where they are not.

Both kinds are here whole, so that agreement.py can compare them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

Check = Callable[..., bool]
"""A reply, and the arguments of the instruction by name; True if the reply follows it."""

INSTALL = "pip install --no-deps lm-eval==0.4.13 && pip install langdetect immutabledict nltk"


def _registry() -> dict[str, Any]:
    """lm-eval's IFEval checkers by id.

    Only their modules are imported: lm_eval.tasks, above them, imports datasets, evaluate and the like, 500 MB in all.
    Nor may they fetch punkt when they are imported; of the checkers, only the one of sentences needs it.
    """
    missing = [name for name in ("lm_eval", "langdetect", "immutabledict", "nltk") if find_spec(name) is None]
    if missing:
        raise ImportError(f"conversations need {', '.join(missing)}, not installed: {INSTALL}")
    for name in ("lm_eval", "langdetect", "immutabledict", "nltk"):
        importlib.import_module(name)
    tasks = ModuleType("lm_eval.tasks")
    tasks.__path__ = [str(Path(str(sys.modules["lm_eval"].__file__)).parent / "tasks")]
    with (
        patch.dict(sys.modules, {"lm_eval.tasks": tasks}),
        patch("nltk.download"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        return importlib.import_module("lm_eval.tasks.ifeval.instructions_registry").INSTRUCTION_DICT


def words_of(text: str) -> list[str]:
    """Words of a text in small letters; isn't and well-known are one word each."""
    return re.findall(r"[\w'’-]+", text.lower())


def occurrences(text: str, word: str) -> int:
    """How often a whole word occurs, in capitals or not."""
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.I))


def _compared(number: int, bound: int, relation: str) -> bool:
    return number <= bound if relation == "at most" else number >= bound


OWN: dict[str, Check] = {
    "punctuation:no_comma": lambda text: not re.search("[,،，、]", text),
    "length_constraints:number_words": lambda text, num_words, relation: _compared(
        len(words_of(text)), num_words, relation
    ),
    "length_constraints:number_sentences": lambda text, num_sentences, relation: _compared(
        len(re.findall(r"[.!?…]+(?=\s|$)", text.strip())), num_sentences, relation
    ),
    "keywords:existence": lambda text, keywords: all(occurrences(text, word) for word in keywords),
    "keywords:forbidden_words": lambda text, forbidden_words: (
        not any(occurrences(text, word) for word in forbidden_words)
    ),
    "keywords:frequency": lambda text, keyword, frequency, relation: _compared(
        occurrences(text, keyword), frequency, relation
    ),
    "startend:end_checker": lambda text, end_phrase: text.strip().lower().endswith(end_phrase.lower()),
    "change_case:english_lowercase": lambda text: text.islower(),
}
"""Own check of each kind."""


def packaged(name: str) -> Check:
    """lm-eval's check of a kind.

    IFEval knows `less than` and `at least`: `at most n` becomes `less than n + 1`.
    """

    def check(text: str, **arguments: Any) -> bool:
        if arguments.get("relation") == "at most":
            bound = next(key for key in ("num_words", "num_sentences", "frequency") if key in arguments)
            arguments = arguments | {bound: arguments[bound] + 1, "relation": "less than"}
        checker = REGISTRY[name](name)
        checker.build_description(**arguments)
        return bool(checker.check_following(text))

    return check


REGISTRY = _registry()
FROM_PACKAGE = ("punctuation:no_comma", "keywords:forbidden_words", "startend:end_checker")
"""Kinds of which lm-eval's check is right, and is used."""
CHECKS: dict[str, Check] = OWN | {name: packaged(name) for name in FROM_PACKAGE}
"""The check of each kind that the recipe uses."""
