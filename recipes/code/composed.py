"""Functions of three steps for a larger model: which items are kept, what each becomes, and what is returned.

Held-out functions of the task `combined` are triples of steps that training has in other triples; those of `new` have a
step that training never has. The docstring has an example, as HumanEval's have; ten hidden tests have other inputs.
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
SPLITS = {"train": 160, "combined": 32, "new": 24}
"""Functions of each split."""


class Step(NamedTuple):
    """A step of a function: a word for its name, words for the docstring, and an expression of `items`, `x` and `i`."""

    name: str
    words: str
    expression: str
    is_new: bool = False
    """True for a step that training never has."""


KEEP_NUMBERS = (
    Step("even_places", "that stand at an even index (0, 2, 4 and so on)", "i % 2 == 0"),
    Step("rising", "that are greater than the number right before them", "i > 0 and x > items[i - 1]"),
    Step("single", "that occur exactly once in the list", "items.count(x) == 1"),
    Step("above_mean", "that are greater than the mean of the list", "x > sum(items) / len(items)"),
    Step("threes", "that are divisible by 3 but not by 2", "x % 3 == 0 and x % 2 != 0"),
    Step(
        "peaks", "that are greater than both neighbours", "0 < i < len(items) - 1 and items[i - 1] < x > items[i + 1]"
    ),
    Step("seen", "that occur earlier in the list, too", "x in items[:i]"),
    Step("even_digits", "whose digits add up to an even number", "sum(map(int, str(x))) % 2 == 0", is_new=True),
    Step("falling", "that are less than the number right before them", "i > 0 and x < items[i - 1]", is_new=True),
)
CHANGE_NUMBERS = (
    Step("squared", "its square", "x * x"),
    Step("digit_sum", "the sum of its digits", "sum(map(int, str(x)))"),
    Step(
        "halved",
        "half of it, rounded down, if it is even, and three times it if it is odd",
        "x // 2 if x % 2 == 0 else 3 * x",
    ),
    Step("weighted", "its product with its position among the kept numbers, counted from 1", "x * (i + 1)"),
    Step("running", "the sum of the kept numbers up to and including it", "sum(items[: i + 1])"),
    Step("reversed", "the number that its digits give from right to left", "int(str(x)[::-1])", is_new=True),
    Step("difference", "its absolute difference to the first kept number", "abs(x - items[0])", is_new=True),
)
RETURN_NUMBERS = (
    Step("sum", "their sum", "sum(items)"),
    Step("falling_list", "them as a list from the largest to the smallest", "sorted(items, reverse=True)"),
    Step("range", "the largest minus the smallest, or 0 if there are none", "max(items) - min(items) if items else 0"),
    Step(
        "unique",
        "them as a list without repetitions, in the order of their first occurrence",
        "list(dict.fromkeys(items))",
    ),
    Step("pairs", "a list of the sums of each two that follow each other", "[a + b for a, b in zip(items, items[1:])]"),
    Step("last", "the last of them, or -1 if there are none", "items[-1] if items else -1"),
)
KEEP_WORDS = (
    Step("same_ends", "that begin and end with the same letter", "x[0] == x[-1]"),
    Step("odd_places", "that stand at an odd index (1, 3, 5 and so on)", "i % 2 == 1"),
    Step("vowels", "that have at least two vowels", "sum(c in 'aeiou' for c in x) >= 2"),
    Step("distinct", "in which no letter occurs twice", "len(set(x)) == len(x)"),
    Step("longer", "that are longer than the word right before them", "i > 0 and len(x) > len(items[i - 1])"),
    Step("later", "that come after the first word in the alphabet", "x > items[0]", is_new=True),
)
CHANGE_WORDS = (
    Step("reversed", "the word from right to left", "x[::-1]"),
    Step("no_vowels", "the word without its vowels", "''.join(c for c in x if c not in 'aeiou')"),
    Step("rotated", "the word with its first letter moved to the end", "x[1:] + x[0]"),
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
        split: train, combined (new triples of trained steps) or new (a step that training never has).
    """
    if split not in SPLITS:
        raise ValueError(f"split = {split!r}; expected {', '.join(SPLITS)}")
    triples = [(family, steps) for family, parts in FAMILIES.items() for steps in product(*parts)]
    random.Random("composed").shuffle(triples)
    trained = [triple for triple in triples if not any(step.is_new for step in triple[1])]
    chosen = {
        "train": trained[SPLITS["combined"] :],
        "combined": trained[: SPLITS["combined"]],
        "new": [triple for triple in triples if sum(step.is_new for step in triple[1]) == 1],
    }[split]
    made = (row for family, steps in chosen if (row := _row(family, *steps)))
    for _, row in zip(range(SPLITS[split]), made, strict=False):
        yield row


def _row(family: str, keep: Step, change: Step, back: Step) -> dict[str, Any] | None:
    """None where nearly all inputs give the same."""
    name, kind = f"{back.name}_{change.name}_{keep.name}", "int" if family == "numbers" else "str"
    head = f"def {name}({family}: list[{kind}]):\n"
    words = (
        f"Keep the {family} {keep.words}. Replace each kept {family.removesuffix('s')} by {change.words}.\n"
        f"    Return {back.words}.\n"
    )
    body = (
        f"    items = {family}\n    items = [x for i, x in enumerate(items) if {keep.expression}]\n"
        f"    items = [{change.expression} for i, x in enumerate(items)]\n    return {back.expression}\n"
    )
    scope: dict[str, Any] = {}
    exec(head + body, scope)  # of the steps above alone
    inputs = _inputs(family, name, scope[name])
    if inputs is None:
        return None
    shown, *hidden = inputs
    example = f"    >>> {name}({shown!r})\n    {scope[name](shown)!r}\n"
    setup = f'{head}    """{words}\n{example}    """\n'
    return {
        "prompt": f"Complete this Python function:\n```python\n{setup}```",
        "answer": setup + body,
        "setup": setup,
        "tests": [{"call": f"{name}({value!r})", "expected": repr(scope[name](value))} for value in hidden],
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
