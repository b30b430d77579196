"""Functions of two steps for a larger model, of three kinds: which items are kept, what each becomes, what is returned.

Held-out functions of the task `combined` are pairs of steps that training has in other pairs; those of `new` have a
step that training never has. The prompt has an example; ten hidden tests have other inputs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import functions

TESTS = 10
TASKS = ("combined", "new")
SPLITS = {"train": 120, "combined": 32, "new": 24}
"""Functions of each split."""


class Step(NamedTuple):
    """A step of a function: a word for its name, words for the prompt, and an expression of `items`, `x` and `i`."""

    name: str
    words: str
    expression: str
    is_new: bool = False
    """True for a step that training never has."""


KEEP_NUMBERS = (
    Step("even_places", "that stand at an even index (0, 2, 4 and so on)", "i % 2 == 0"),
    Step("above_mean", "that are greater than the mean of the list", "x > sum(items) / len(items)"),
    Step("single", "that occur exactly once in the list", "items.count(x) == 1"),
    Step("threes", "that are divisible by 3 but not by 2", "x % 3 == 0 and x % 2 != 0"),
    Step("odd", "that are odd", "x % 2 == 1"),
    Step("large", "that are greater than 30", "x > 30"),
    Step("small", "that are less than 20", "x < 20"),
    Step("falling", "that are less than the number right before them", "i > 0 and x < items[i - 1]", is_new=True),
    Step("fives", "that are divisible by 5", "x % 5 == 0", is_new=True),
)
CHANGE_NUMBERS = (
    Step("squared", "its square", "x * x"),
    Step("digit_sum", "the sum of its digits", "sum(map(int, str(x)))"),
    Step(
        "halved",
        "half of it, rounded down, if it is even, and three times it if it is odd",
        "x // 2 if x % 2 == 0 else 3 * x",
    ),
    Step("last_digit", "its last digit", "x % 10"),
    Step("distance", "its absolute difference to 50", "abs(x - 50)"),
    Step("reversed", "the number that its digits give from right to left", "int(str(x)[::-1])", is_new=True),
    Step("weighted", "its product with its index, counted from 1", "x * (i + 1)", is_new=True),
)
RETURN_NUMBERS = (
    Step("sum", "their sum", "sum(items)"),
    Step("descending", "them as a list from the largest to the smallest", "sorted(items, reverse=True)"),
    Step("range", "the largest minus the smallest, or 0 if there are none", "max(items) - min(items) if items else 0"),
    Step(
        "unique",
        "them as a list without repetitions, in the order of their first occurrence",
        "list(dict.fromkeys(items))",
    ),
    Step("largest", "the largest of them, or 0 if there are none", "max(items, default=0)"),
    Step("last", "the last of them, or -1 if there are none", "items[-1] if items else -1"),
)
KEEP_WORDS = (
    Step("same_ends", "that begin and end with the same letter", "x[0] == x[-1]"),
    Step("odd_places", "that stand at an odd index (1, 3, 5 and so on)", "i % 2 == 1"),
    Step("vowels", "that have at least two vowels", "sum(c in 'aeiou' for c in x) >= 2"),
    Step("long", "that have more than 4 letters", "len(x) > 4"),
    Step("with_a", "that contain the letter a", "'a' in x"),
    Step("later", "that come after the first word in the alphabet", "x > items[0]", is_new=True),
)
CHANGE_WORDS = (
    Step("reversed", "the word from right to left", "x[::-1]"),
    Step("no_vowels", "the word without its vowels", "''.join(c for c in x if c not in 'aeiou')"),
    Step("upper", "the word in upper case", "x.upper()"),
    Step("sorted", "its letters in alphabetical order", "''.join(sorted(x))"),
    Step("doubled", "the word with each letter written twice", "''.join(c * 2 for c in x)", is_new=True),
)
RETURN_WORDS = (
    Step("joined", "them in one string with '-' between them", "'-'.join(items)"),
    Step(
        "longest",
        "the longest of them, the first one of several, or '' if there are none",
        "max(items, key=len, default='')",
    ),
    Step(
        "by_length",
        "them as a list sorted by length, and alphabetically where it is equal",
        "sorted(items, key=lambda x: (len(x), x))",
    ),
    Step("lengths", "a dictionary from each of them to its length", "{x: len(x) for x in items}"),
    Step("initials", "a string of the first letter of each that is not empty", "''.join(x[0] for x in items if x)"),
)
FAMILIES = {
    "numbers": (KEEP_NUMBERS, CHANGE_NUMBERS, RETURN_NUMBERS),
    "words": (KEEP_WORDS, CHANGE_WORDS, RETURN_WORDS),
}
VOCABULARY = (
    *(
        "stone",
        "apple",
        "rain",
        "tree",
        "level",
        "star",
        "bread",
        "salt",
        "area",
        "box",
        "moon",
        "silver",
        "cat",
        "noon",
    ),
    *("eagle", "abba", "test", "window", "a", "hat", "garden", "ox", "queue", "going", "stats", "lamp", "idea", "echo"),
)


def rows(split: str = "train") -> Iterator[dict[str, Any]]:
    """Rows of a `python` source: `prompt`, hidden `tests`, `setup`, `answer`, a program that passes, and `function`.

    Args:
        split: train, combined (new pairs of trained steps) or new (a step that training never has).
    """
    if split not in SPLITS:
        raise ValueError(f"split = {split!r}; expected {', '.join(SPLITS)}")
    pairs = [
        (family, steps)
        for family, kinds in FAMILIES.items()
        for steps in product(*((None, *kind) for kind in kinds))
        if steps.count(None) == 1
    ]
    random.Random("composed").shuffle(pairs)
    unseen = [sum(step is not None and step.is_new for step in steps) for _, steps in pairs]
    trained = [pair for pair, count in zip(pairs, unseen, strict=True) if not count]
    chosen = {
        "train": trained[SPLITS["combined"] :],
        "combined": trained[: SPLITS["combined"]],
        "new": [pair for pair, count in zip(pairs, unseen, strict=True) if count == 1],
    }[split]
    made = (row for family, steps in chosen if (row := _row(family, *steps)))
    for _, row in zip(range(SPLITS[split]), made, strict=False):
        yield row


def _row(family: str, keep: Step | None, change: Step | None, back: Step | None) -> dict[str, Any] | None:
    """The function of the steps that are given; None where nearly all inputs give the same."""
    name = "_".join(step.name for step in (back, change, keep) if step)
    kind = "int" if family == "numbers" else "str"
    head = f"def {name}({family}: list[{kind}]):"
    words, lines = [], [f"items = {family}"]
    if keep:
        words.append(f"Keep the {family} {keep.words}.")
        lines.append(f"items = [x for i, x in enumerate(items) if {keep.expression}]")
    if change:
        each = f"each kept {family[:-1]}" if keep else f"each {family[:-1]}"
        words.append(f"Replace {each} by {change.words}.")
        lines.append(f"items = [{change.expression} for i, x in enumerate(items)]")
    words.append(f"Return {back.words if back else 'them as a list'}.")
    lines.append(f"return {back.expression if back else 'items'}")
    body = "".join(f"    {line}\n" for line in lines)
    scope: dict[str, Any] = {}
    exec(f"{head}\n{body}", scope)  # of the steps above alone
    inputs = _inputs(family, name, scope[name])
    if inputs is None:
        return None
    shown, *hidden = inputs
    call, value = f"{name}({shown!r})", repr(scope[name](shown))
    setup = f'{head}\n    """{" ".join(words)}\n\n    >>> {call}\n    {value}\n    """\n'
    return {
        "prompt": f"Write the Python function `{head}`. {' '.join(words)} For example, `{call}` is `{value}`.",
        "answer": setup + body,
        "setup": setup,
        "tests": [{"call": f"{name}({item!r})", "expected": repr(scope[name](item))} for item in hidden],
        "function": name,
        "family": family,
    }


def _inputs(family: str, name: str, function: Callable[[Any], Any]) -> list[Any] | None:
    """The input of the example and those of the tests, among them an empty list and a single item; no value is the
    result of more than half of the tests."""
    for attempt in range(200):
        draw = random.Random(f"{name} {attempt}")
        inputs = [draw_input(family, draw) for _ in range(TESTS - 1)]
        hidden = [*inputs[1:], [], draw_input(family, draw)[:1]]
        results = [repr(function(value)) for value in hidden]
        if inputs[0] not in hidden and function(inputs[0]) and max(Counter(results).values()) <= TESTS // 2:
            return [inputs[0], *hidden]
    return None


def draw_input(family: str, draw: random.Random) -> list[Any]:
    """A list of 5 to 9 numbers from 1 to 99, of which some occur twice, or of words."""
    if family == "words":
        return [draw.choice(VOCABULARY) for _ in range(draw.randint(5, 8))]
    pool = [draw.choice((draw.randint(1, 30), draw.randint(1, 99))) for _ in range(6)]
    return [draw.choice((*pool, draw.randint(1, 99))) for _ in range(draw.randint(5, 9))]


solved, compiles = functions.solved, functions.compiles
