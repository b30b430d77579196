"""Rows of worked solutions: `prompt`, `steps`, `answer`, and the problem by which their steps are checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from coterie.errors import DataError
from coterie.text import did_you_mean
from coterie.traces import lists, sums, word_problems
from coterie.traces.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (*sums.FAMILIES, *lists.FAMILIES)}
"""Families whose every step follows a rule, by name."""
NAMES = (*FAMILIES, word_problems.NAME)
EASIEST = 2
HELD_OUT = 0.2
"""Share of all possible questions that only held-out rows ask."""
PATIENCE = 200
"""Repeated problems in a row after which a family counts as exhausted."""


def is_held_out(question: str) -> bool:
    """True if this question belongs to the held-out split, whatever the seed: no trace of it is ever written for
    training.
    """
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") < HELD_OUT * 2**32


def rows(
    family: str | Sequence[str],
    count: int = 200,
    difficulty: int | Sequence[int] | None = None,
    seed: int = 0,
    split: str = "train",
) -> list[dict[str, Any]]:
    """Rows of a `python` source: `prompt`, `steps`, `answer`, `family`, `difficulty` and `problem`, all different.

    Args:
        family: one of `NAMES`, or several that take turns.
        count: rows.
        difficulty: of the problems, or its least and most; None takes 2 to 4. gsm_symbolic has none.
        seed: of the random streams. Splits do not meet: a question is held out by its own hash.
        split: train or heldout.

    Raises:
        DataError: there is no such family or split, a difficulty that it does not have, or too few problems.
    """
    names = [family] if isinstance(family, str) else list(family)
    for name in names:
        if name not in NAMES:
            raise DataError(
                f"there is no family {name!r}; expected one of {', '.join(NAMES)}{did_you_mean(name, NAMES)}"
            )
    if split not in ("train", "heldout") or count < 1 or not names:
        raise DataError(
            f"split = {split!r}, count = {count}, family = {family!r}; expected train or heldout, 1 or more, a name"
        )
    shares = [count // len(names) + (place < count % len(names)) for place in range(len(names))]
    made = [
        list(islice(_fresh(name, difficulty, seed, split), share)) for name, share in zip(names, shares, strict=True)
    ]
    for name, share, part in zip(names, shares, made, strict=True):
        if len(part) < share:
            raise DataError(
                f"{name} has {len(part)} different problems of difficulty {difficulty} in {split}, fewer than {share}; "
                "raise the difficulty, or ask for fewer"
            )
    longest = max(map(len, made))
    return [part[place] for place in range(longest) for part in made if place < len(part)]


def _fresh(name: str, difficulty: int | Sequence[int] | None, seed: int, split: str) -> Iterator[dict[str, Any]]:
    """Different rows of a family in a split, until no new ones come."""
    questions: set[str] = set()
    repeats = 0
    for row in _all(name, difficulty, seed):
        if row["prompt"] in questions:
            repeats += 1
            if repeats > PATIENCE:
                return
            continue
        questions.add(row["prompt"])
        repeats = 0
        if is_held_out(row["prompt"]) == (split == "heldout"):
            yield row


def _all(name: str, difficulty: int | Sequence[int] | None, seed: int) -> Iterator[dict[str, Any]]:
    if name == word_problems.NAME:
        for row in word_problems.worked_problems(seed):
            yield {**row, "family": name}
        return
    family = FAMILIES[name]
    least, most = _levels(family, difficulty)
    for problem, level in family.problems(seed, (least, most)):
        yield {
            "prompt": family.ask(problem),
            "steps": family.solve(problem),
            "answer": family.truth(problem),
            "family": name,
            "difficulty": level,
            "problem": problem,
        }


def _levels(family: Family, difficulty: int | Sequence[int] | None) -> tuple[int, int]:
    given = (
        (2, 4) if difficulty is None else (difficulty, difficulty) if isinstance(difficulty, int) else tuple(difficulty)
    )
    if len(given) != 2 or not EASIEST <= given[0] <= given[1] <= family.hardest:
        raise DataError(
            f"difficulty = {difficulty!r} of {family.name}: expected a number of {family.scale} from {EASIEST} to "
            f"{family.hardest}, or the least and the most"
        )
    return given[0], given[1]
