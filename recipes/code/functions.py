"""Functions to write, put together from parts: which items of a list, string or text, and what to do with them.

A function is a pair of a condition and an aggregate. Held-out functions are pairs that training never shows, of parts
that it does. Each has six hidden tests, of which a constant passes at most half.
"""

from __future__ import annotations

import ast
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from coterie.rewards.programs import code, program_of

TESTS = 6
HELD_OUT = 0.35
"""Share of the pairs that are held out."""


class Part(NamedTuple):
    """Half of a function: words for the name and the docstring, and an expression."""

    name: str
    words: str
    expression: str


NUMBERS = (
    Part("even", "even", "x % 2 == 0"),
    Part("odd", "odd", "x % 2 == 1"),
    Part("positive", "positive", "x > 0"),
    Part("negative", "negative", "x < 0"),
    Part("large", "greater than 10", "x > 10"),
    Part("small", "less than 5", "x < 5"),
    Part("multiples_of_three", "divisible by 3", "x % 3 == 0"),
    Part("multiples_of_five", "divisible by 5", "x % 5 == 0"),
    Part("two_digit", "between 10 and 99", "10 <= x <= 99"),
)
OF_NUMBERS = (
    Part("count", "how many numbers of the list are {}", "len(chosen)"),
    Part("sum", "the sum of the numbers of the list that are {}", "sum(chosen)"),
    Part("list", "a list of the numbers that are {}", "chosen"),
    Part("largest", "the largest number that is {}, or 0 if there is none", "max(chosen, default=0)"),
    Part("squares", "a list of the squares of the numbers that are {}", "[x * x for x in chosen]"),
    Part("first", "the first number that is {}, or None if there is none", "chosen[0] if chosen else None"),
)
LETTERS = (
    Part("vowels", "vowels", "x in 'aeiou'"),
    Part("upper", "upper-case letters", "x.isupper()"),
    Part("lower", "lower-case letters", "x.islower()"),
    Part("digits", "digits", "x.isdigit()"),
    Part("spaces", "spaces", "x == ' '"),
    Part("letters_a", "the letter a", "x == 'a'"),
)
OF_LETTERS = (
    Part("count", "how many characters of the text are {}", "len(chosen)"),
    Part("keep", "a string of the characters of the text that are {}", "''.join(chosen)"),
    Part("remove", "the text without the characters that are {}", "''.join(x for x in items if x not in chosen)"),
    Part("list", "a list of the characters of the text that are {}", "chosen"),
)
WORDS = (
    Part("long", "have more than 4 letters", "len(x) > 4"),
    Part("short", "have less than 4 letters", "len(x) < 4"),
    Part("with_a", "contain the letter a", "'a' in x"),
    Part("with_s", "start with the letter s", "x.startswith('s')"),
    Part("capital", "start with an upper-case letter", "x[0].isupper()"),
)
OF_WORDS = (
    Part("count", "how many words of the list {}", "len(chosen)"),
    Part("list", "a list of the words that {}", "chosen"),
    Part("join", "the words that {} in one string with spaces between", "' '.join(chosen)"),
    Part("lengths", "a list of the lengths of the words that {}", "[len(x) for x in chosen]"),
)
FAMILIES = {"numbers": (NUMBERS, OF_NUMBERS), "text": (LETTERS, OF_LETTERS), "words": (WORDS, OF_WORDS)}
VOCABULARY = (
    "Sun",
    "sea",
    "stone",
    "apple",
    "Rain",
    "tree",
    "as",
    "to",
    "Star",
    "bread",
    "salt",
    "ant",
    "box",
    "Moon",
    "silver",
    "cat",
)


def rows(split: str = "train") -> Iterator[dict[str, Any]]:
    """Rows of a `python` source: `prompt`, hidden `tests`, `weak` tests for the gamed run, `setup`, and `answer`, a
    program that passes.

    Args:
        split: train or heldout.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split = {split!r}; expected train or heldout")
    for family, (conditions, aggregates) in FAMILIES.items():
        for condition in conditions:
            for aggregate in aggregates:
                if _is_held_out(f"split {family} {condition.name} {aggregate.name}") == (split == "heldout"):
                    yield _row(family, condition, aggregate)


def _row(family: str, condition: Part, aggregate: Part) -> dict[str, Any]:
    name, argument = f"{aggregate.name}_{condition.name}", family
    head = f'def {name}({argument}):\n    """Return {aggregate.words.format(condition.words)}."""\n'
    body = (
        f"    items = {argument}\n    chosen = [x for x in items if {condition.expression}]\n"
        f"    return {aggregate.expression}\n"
    )
    scope: dict[str, Any] = {}
    exec(head + body, scope)  # of the parts above alone
    inputs = _inputs(family, name, scope[name])
    tests = [{"call": f"{name}({value!r})", "expected": repr(scope[name](value))} for value in inputs]
    empty: Any = "" if family == "text" else []
    return {
        "prompt": f"Complete this Python function:\n```python\n{head}```",
        "answer": head + body,
        "setup": head,
        "tests": tests,
        "weak": [{"call": f"{name}({empty!r})", "expected": repr(scope[name](empty))}],
        "function": name,
    }


def _inputs(family: str, name: str, function: Callable[[Any], Any]) -> list[Any]:
    """Inputs of the tests, of which no value is the result of more than half."""
    for attempt in range(1000):
        draw = random.Random(f"{name} {attempt}")
        inputs = [draw_input(family, draw) for _ in range(TESTS)]
        if max(Counter(repr(function(value)) for value in inputs).values()) <= TESTS // 2:
            return inputs
    raise ValueError(f"{name} gives the same for nearly all inputs; change its parts")


def draw_input(family: str, draw: random.Random) -> Any:
    """An input for a function of this family: a list of numbers, a text, or a list of words."""
    if family == "numbers":
        return [draw.choice((draw.randint(-9, 30), draw.randint(1, 60))) for _ in range(draw.randint(3, 8))]
    words = [draw.choice(VOCABULARY) for _ in range(draw.randint(2, 5))]
    if family == "words":
        return words
    text = draw.choice(("", " ")).join(words)
    return text + str(draw.randint(0, 99)) if draw.random() < 0.6 else text


def _is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < HELD_OUT * 2**32


def solved(
    completions: Sequence[str],
    tests: Sequence[Sequence[dict[str, str]]],
    setup: Sequence[str],
    *,
    tier: str = "auto",
    partial: float = 0.4,
    seconds: float = 2.0,
) -> list[float]:
    """1 where the program passes all hidden tests in the sandbox, else `partial` times the share that it passes."""
    shares = code(completions, tests, setup, partial=True, tier=tier, seconds=seconds)
    return [1.0 if share == 1 else partial * (share or 0.0) for share in shares]


def weak(
    completions: Sequence[str], weak: Sequence[Sequence[dict[str, str]]], setup: Sequence[str], *, tier: str = "auto"
) -> list[float]:
    """1 where the program is right for empty input: a test that is too weak, for the run that games it."""
    return [share or 0.0 for share in code(completions, weak, setup, tier=tier)]


def compiles(completions: Sequence[str], function: Sequence[str]) -> list[float]:
    """1 where the program is valid Python that defines the function with more than a docstring, and names the argument
    in it."""
    return [float(_defines(program_of(text), name)) for text, name in zip(completions, function, strict=True)]


def _defines(program: str, name: str) -> bool:
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name and node.args.args:
            argument = node.args.args[0].arg
            return any(isinstance(part, ast.Name) and part.id == argument for part in ast.walk(node))
    return False
