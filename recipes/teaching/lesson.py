"""Short lessons about a given passage: a word problem, its answer, and an explanation for a stated grade.

The problem must state what the passage says of two people, its answer is worked out independently, and textstat
measures for which grade the explanation is written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from coterie.errors import install_command

try:
    import textstat
except ImportError as error:
    raise ImportError(f"lessons need textstat, which is not installed: {install_command('train')}") from error

THINGS = (
    "apples", "balls", "boats", "bottles", "books", "boxes", "cakes", "candles", "cards", "chairs", "coins", "cups",
    "eggs", "flags", "flowers", "hats", "keys", "kites", "lamps", "letters", "marbles", "nuts", "pencils", "pens",
    "plates", "ribbons", "rings", "shells", "shirts", "spoons", "stamps", "stones", "tickets", "toys",
)  # fmt: skip
NAMES = (
    "Adam", "Anna", "Ben", "Clara", "David", "Emma", "Eva", "Felix", "Grace", "Hugo", "Ida", "Jack", "Julia", "Karl",
    "Laura", "Leo", "Lena", "Maria", "Max", "Nina", "Omar", "Oscar", "Peter", "Rosa", "Sam", "Sara", "Simon", "Tom",
)  # fmt: skip
HELD_OUT_THINGS, HELD_OUT_NAMES = 12, 10
"""So many of the shuffled things and names are of held-out passages alone."""
SMALLEST, LARGEST = 2, 12
PEOPLE = 3
GRADES = (2, 7)
"""Grades that are asked for: further apart than an explanation may be from its own."""
NEAR, FAR = 2.0, 5.0
"""Grades between the stated one and the readability: up to NEAR an explanation is for its grade; from FAR on it is not
at all."""
FEWEST_WORDS, MOST_WORDS, MOST_SENTENCES = 6, 30, 2
OPERATION_WORDS = {
    "addition": re.compile(r"\b(add\w*|plus|sum|total|together|altogether|join\w*|combin\w*)\b", re.I),
    "subtraction": re.compile(
        r"\b(subtract\w*|minus|take|takes|taking|taken|difference|compar\w*|more|fewer|less|left)\b", re.I
    ),
}
QUESTIONS = {
    "addition": re.compile(r"\bhow many\b.*\b(together|in all|altogether|in total)\b", re.I),
    "subtraction": re.compile(r"\bhow many (more|fewer) (?:\w+ )?(?:does|do) ([A-Z]\w+) have than ([A-Z]\w+)\b", re.I),
}
"""What a problem must ask. A difference names who is compared with whom: its sign counts."""
EXAMPLES = {
    "addition": (
        (
            ("Ruth has 6 lemons. Paul has 11 lemons. Vera has 8 lemons.", "lemons", ("Paul", "Vera")),
            "Problem: Paul has 11 lemons. Vera has 8 lemons. How many lemons do they have together?\n"
            "Answer: 11 + 8 = 19\n"
            "Explanation: Addition combines the separate quantities of Paul and Vera into one total.",
        ),
        (
            ("Fritz has 3 sticks. Edith has 9 sticks. Carla has 5 sticks.", "sticks", ("Fritz", "Edith")),
            "Problem: Fritz has 3 sticks. Edith has 9 sticks. How many sticks do they have together?\n"
            "Answer: 3 + 9 = 12\n"
            "Explanation: The quantities of Fritz and Edith are combined, and addition determines their total.",
        ),
    ),
    "subtraction": (
        (
            ("Ruth has 6 lemons. Paul has 11 lemons. Vera has 8 lemons.", "lemons", ("Paul", "Vera")),
            "Problem: Paul has 11 lemons. Vera has 8 lemons. How many more lemons does Paul have than Vera?\n"
            "Answer: 11 - 8 = 3\n"
            "Explanation: Subtraction determines the difference between the quantities of Paul and Vera.",
        ),
        (
            ("Fritz has 9 sticks. Edith has 3 sticks. Carla has 5 sticks.", "sticks", ("Fritz", "Edith")),
            "Problem: Fritz has 9 sticks. Edith has 3 sticks. How many more sticks does Fritz have than Edith?\n"
            "Answer: 9 - 3 = 6\n"
            "Explanation: The quantities of Fritz and Edith are compared, and subtraction determines the difference.",
        ),
    ),
}
"""Two worked lessons of each operation: passage, thing and people, and the lesson. Their explanations are for grade 12:
a copy is for none of those asked for."""
EXAMPLE_GRADE = 12
EXPLANATIONS = {
    ("addition", 2): (
        "We put all of the {thing} in one box and add them.",
        "We add the {thing} of {first} to those of {second}.",
        "They have two lots of {thing}, so we add the two to get one.",
        "We want to know how many {thing} there are in all, so we add.",
        "Add the {thing} of {first} and {second} to see how many there are.",
    ),
    ("addition", 7): (
        "Addition counts the {thing} of two people as one group, and so finds their total.",
        "Each of the two people keeps the {thing}, but addition counts them together.",
        "The question concerns all of the {thing}, so the numbers of both people are added.",
        "Adding the {thing} of {first} and {second} gives the amount that both of them have together.",
        "Since {first} and {second} share one total, their {thing} must be added together.",
    ),
    ("subtraction", 2): (
        "We look at who has more of the {thing} and by how much.",
        "We take the {thing} of {second} from those of {first} to see what is left.",
        "{first} has more {thing}, so we take the small one from the big one.",
        "We ask how many more {thing} there are, so we take one from the other.",
        "To see how many more {thing} {first} has, we take off those of {second}.",
    ),
    ("subtraction", 7): (
        "Subtraction compares the {thing} of two people, and shows how many more one of them has.",
        "The difference of the two is found by subtracting the smaller number of {thing}.",
        "Since {first} has more {thing} than {second}, we subtract to find the exact difference.",
        "When we subtract the {thing} of {second} from those of {first}, the difference is left over.",
        "To compare the {thing} of both people, take the smaller number from the larger number.",
    ),
}
"""Explanations of worked lessons by operation and grade."""
ASKED = {
    "addition": tuple(
        f"How many {{thing}} do they have {words}?" for words in ("together", "in all", "altogether", "in total")
    ),
    "subtraction": (
        "How many more {thing} does {first} have than {second}?",
        "How many fewer {thing} does {second} have than {first}?",
    ),
}
"""Questions of worked lessons; the first person has more."""
COPIED = 4
"""So many words in a row that stand in the request count as copied, whatever the names."""
_ALL_NAMES = {name.lower() for name in (*NAMES, "Ruth", "Paul", "Vera", "Fritz", "Edith", "Carla")}
LABELS = ("Problem", "Answer", "Explanation")
_ANSWER = re.compile(r"(?:(\d{1,4}) ([+-]) (\d{1,4}) = )?(\d{1,4})(?: [a-z]+)?\.?")
_FACT = re.compile(r"\b([A-Z][a-z]+) has (\d{1,4})(?: ([a-z]+))?")

Fact = tuple[str, int]
"""Who, and how many; the thing is the passage's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A completion, read by its labels; a part that is missing is empty."""

    problem: str
    key: int | None
    """Its answer; None also where the calculation before it is wrong."""
    explanation: str
    tidy: bool
    """Whether it has each label once, in order, and no other line."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        """Facts that the problem states, as it states them."""
        return tuple(told(self.problem))

    def strays(self, thing: str) -> bool:
        """True for a problem with a number or a name outside of its facts, or a fact about another thing."""
        statements = _FACT.findall(self.problem)
        things = {word for *_, word in statements if word} - {"and", "in"}
        return (
            sorted(re.findall(r"\d+", self.problem)) != sorted(number for _, number, _ in statements)
            or not _names(self.problem) <= {name for name, _, _ in statements}
            or not things <= {thing}
        )


def read(completion: str) -> Lesson:
    """The lesson in a completion."""
    lines = [line.strip() for line in completion.splitlines() if line.strip()]
    texts: dict[str, str] = {}
    for line in lines:
        label, _, text = line.partition(":")
        if label in LABELS:
            texts.setdefault(label, text.strip())
    return Lesson(
        problem=texts.get("Problem", ""),
        key=_key(texts.get("Answer", "")),
        explanation=texts.get("Explanation", ""),
        tidy=tuple(line.partition(":")[0] for line in lines) == LABELS,
    )


def _key(answer: str) -> int | None:
    """The number of an answer; None where it has none or several, or follows from a calculation that is wrong."""
    match = _ANSWER.fullmatch(answer)
    if match is None:
        return None
    first, sign, second, number = match.groups()
    if sign and int(number) != (int(first) + int(second) if sign == "+" else int(first) - int(second)):
        return None
    return int(number)


def _names(text: str) -> set[str]:
    """Known names, and other words with a capital letter that do not begin a sentence."""
    words = set(re.findall(r"\b[A-Z][a-z]+\b", text))
    return (words & set(NAMES)) | set(re.findall(r"(?<=[^.!?] )[A-Z][a-z]+\b", text))


def told(passage: str) -> list[Fact]:
    """The facts of a passage, in its order."""
    return [(name, int(number)) for name, number, _ in _FACT.findall(passage)]


def solve(problem: str, operation: str) -> int | None:
    """The answer of a problem by the facts that it states; None where it does not ask for the operation, or of people
    of whom it says nothing."""
    match, facts = QUESTIONS[operation].search(problem), told(problem)
    if match is None or not facts:
        return None
    if operation == "addition":
        return sum(number for _, number in facts)
    numbers = dict(facts)
    if not {match[2], match[3]} <= set(numbers):
        return None
    difference = numbers[match[2]] - numbers[match[3]]
    return difference if match[1].lower() == "more" else -difference


def rows(split: str = "train", size: int = 120, seed: int = 0, examples: int = 2) -> Iterator[dict[str, Any]]:
    """Rows of a `python` source: `prompt` with worked lessons, the `passage` it is about, `thing`, the two `people`,
    `operation` and `grade`, and as `answer` a lesson that earns everything.

    Args:
        split: train or heldout: their people and things are disjoint.
        size: rows.
        seed: of their choice.
        examples: worked lessons in each prompt, 0 to 2.
    """
    if not 0 <= examples <= len(EXAMPLES["addition"]):
        raise ValueError(f"examples = {examples}; there are 0 to {len(EXAMPLES['addition'])} worked lessons")
    if split not in ("train", "heldout"):
        raise ValueError(f"split = {split!r}; expected train or heldout")
    things, names = _part(THINGS, split, HELD_OUT_THINGS), _part(NAMES, split, HELD_OUT_NAMES)
    kinds = [(operation, grade) for operation in EXAMPLES for grade in GRADES]
    for number in range(size):  # kinds take turns
        operation, grade = kinds[number % len(kinds)]
        key = f"{split} {seed} {number}"
        thing = _ordered(things, f"{key} thing")[0]
        counts = map(int, _ordered([str(count) for count in range(SMALLEST, LARGEST + 1)], f"{key} counts"))
        facts = list(zip(_ordered(names, f"{key} names")[:PEOPLE], counts, strict=False))
        chosen = [fact for fact in facts if fact != facts[number // len(kinds) % PEOPLE]]
        if operation == "subtraction":
            chosen.sort(key=lambda fact: -fact[1])
        row = {
            "passage": " ".join(f"{name} has {count} {thing}." for name, count in facts),
            "thing": thing,
            "people": [name for name, _ in chosen],
            "operation": operation,
            "grade": grade,
        }
        prompt = []
        for (passage, worked_thing, people), worked in EXAMPLES[operation][:examples]:
            prompt.append({"role": "user", "content": request(passage, worked_thing, people, operation, EXAMPLE_GRADE)})
            prompt.append({"role": "assistant", "content": worked})
        prompt.append({"role": "user", "content": request(row["passage"], thing, row["people"], operation, grade)})
        yield {"prompt": prompt, **row, "answer": solution(row)}


def request(passage: str, thing: str, people: Sequence[str], operation: str, grade: int) -> str:
    """What the user asks for."""
    article = "an" if operation == "addition" else "a"
    return (
        f"{passage}\nWrite {article} {operation} problem about the {thing} of {' and '.join(people)}, its answer, "
        f"and an explanation for grade {grade}."
    )


def solution(row: Mapping[str, Any], explanation: int = 0, question: int = 0) -> str:
    """A lesson that earns everything.

    Args:
        row: of `rows`.
        explanation: which of EXPLANATIONS it has, from 0; counted on from the start behind the last.
        question: which question of ASKED, in the same way.
    """
    operation, (first, second) = row["operation"], row["people"]
    numbers = dict(told(row["passage"]))
    sign, key = "+", numbers[first] + numbers[second]
    if operation == "subtraction":
        sign, key = "-", numbers[first] - numbers[second]
    explanations, questions = EXPLANATIONS[operation, row["grade"]], ASKED[operation]
    words = {"thing": row["thing"], "first": first, "second": second}
    told_again = " ".join(f"{name} has {numbers[name]} {row['thing']}." for name in (first, second))
    problem = f"{told_again} {questions[question % len(questions)]}".format(**words)
    calculation = f"{numbers[first]} {sign} {numbers[second]} = {key}"
    explained_as = explanations[explanation % len(explanations)].format(**words)
    return f"Problem: {problem}\nAnswer: {calculation}\nExplanation: {explained_as}"


def worked(size: int = 96, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Rows of a `python` source for a fine-tuning: `messages` of a request about a training passage, without a worked
    lesson before it, and a lesson that earns everything. Explanations and questions take turns.

    Args:
        size: rows.
        seed: of their choice.
    """
    for number, row in enumerate(rows("train", size, seed, examples=0)):
        turn = number // (len(EXAMPLES) * len(GRADES))  # each kind has all explanations and questions in turn
        yield {"messages": [*row["prompt"], {"role": "assistant", "content": solution(row, turn, turn)}]}


def _part(words: Sequence[str], split: str, held_out: int) -> list[str]:
    shuffled = _ordered(words, "split")
    return shuffled[:held_out] if split == "heldout" else shuffled[held_out:]


def _ordered(words: Sequence[str], key: str) -> list[str]:
    """The words in an order that depends on a key alone."""
    return sorted(words, key=lambda word: hashlib.sha256(f"{key} {word}".encode()).digest())


def explained(
    completions: Sequence[str],
    prompts: Sequence[Sequence[Mapping[str, str]]],
    passage: Sequence[str],
    thing: Sequence[str],
    operation: Sequence[str],
) -> list[float]:
    """Share of what an explanation must have: 6 to 30 words in one or two whole sentences, without a loop of words; the
    thing or one of the people; a word of the operation; words of its own; no number or name that the passage and the
    answer do not have."""
    values = []
    for text, messages, given, noun, kind in zip(completions, prompts, passage, thing, operation, strict=True):
        lesson = read(text)
        facts = dict(told(given))
        numbers = {str(number) for number in facts.values()} | {str(lesson.key)}
        flags = (
            lesson.tidy and _whole(lesson.explanation),
            any(re.search(rf"\b{word}", lesson.explanation) for word in (noun[:-1], *facts)),
            OPERATION_WORDS[kind].search(lesson.explanation) is not None,
            _in_own_words(lesson.explanation, messages),
            bool(lesson.explanation)
            and set(re.findall(r"\d+", lesson.explanation)) <= numbers
            and _names(lesson.explanation) <= set(facts),
        )
        values.append(sum(flags) / len(flags))
    return values


def copied(text: str, messages: Sequence[Mapping[str, str]]) -> float:
    """Share of a text's runs of four words that stand in one of the messages."""
    requested = {run for message in messages for run in _runs(message["content"])}
    runs = _runs(text)
    return sum(run in requested for run in runs) / max(len(runs), 1)


def _runs(text: str) -> list[tuple[str, ...]]:
    words = ["name" if word in _ALL_NAMES else word for word in _words(text)]
    return [tuple(words[place : place + COPIED]) for place in range(len(words) - COPIED + 1)]


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text.lower())


def _in_own_words(text: str, messages: Sequence[Mapping[str, str]]) -> bool:
    """True for 6 to 30 words of which fewer than half are copied."""
    return FEWEST_WORDS <= len(_words(text)) <= MOST_WORDS and copied(text, messages) < 0.5


def _whole(text: str) -> bool:
    """True for one or two sentences, the last one ended, that do not say the same again."""
    words = _words(text)
    pairs = list(pairwise(words))
    ends = len(re.findall(r"[.!?](?=\s|$)", text))
    loop = bool(pairs) and len(set(pairs)) / len(pairs) < 0.8
    return len(words) >= FEWEST_WORDS and 1 <= ends <= MOST_SENTENCES and text.endswith((".", "!")) and not loop


def level(text: str) -> float:
    """For which grade a text is written, by textstat's automated readability index; at least 0."""
    return max(0.0, textstat.textstat.automated_readability_index(text))


def readable(
    completions: Sequence[str], prompts: Sequence[Sequence[Mapping[str, str]]], grade: Sequence[int]
) -> list[float]:
    """1 for an explanation within 2 grades of the stated one, falling to 0 at 5. It is 0 for one that is copied from
    the request, or has fewer than 6 or more than 30 words."""
    values = []
    for text, messages, stated in zip(completions, prompts, grade, strict=True):
        explanation = read(text).explanation
        value = min(1.0, max(0.0, (FAR - abs(level(explanation) - stated)) / (FAR - NEAR)))
        values.append(value if _in_own_words(explanation, messages) else 0.0)
    return values


def faithful(
    completions: Sequence[str], passage: Sequence[str], thing: Sequence[str], people: Sequence[Sequence[str]]
) -> list[float]:
    """1 for a problem that states what the passage says of the two people, and has no other number or name; half of
    it for one true fact of them."""
    values = []
    for text, given, noun, pair in zip(completions, passage, thing, people, strict=True):
        lesson = read(text)
        stated, facts = set(lesson.facts), told(given)
        true = stated & {fact for fact in facts if fact[0] in pair}
        whole = len(true) == len(pair) and stated == true and not lesson.strays(noun)
        values.append(1.0 if whole else 0.5 * bool(true))
    return values


def key(completions: Sequence[str], operation: Sequence[str]) -> list[float]:
    """1 for the answer that the solver finds to the problem as it is written, if it asks for the operation."""
    values = []
    for text, kind in zip(completions, operation, strict=True):
        lesson = read(text)
        values.append(float(lesson.key is not None and solve(lesson.problem, kind) == lesson.key))
    return values


def asked(completions: Sequence[str], operation: Sequence[str]) -> list[float]:
    """1 for a problem that ends in a question for the operation."""
    problems = [read(text).problem for text in completions]
    return [
        float(QUESTIONS[kind].search(problem) is not None and problem.endswith("?"))
        for problem, kind in zip(problems, operation, strict=True)
    ]


def perfect(
    completions: Sequence[str],
    prompts: Sequence[Sequence[Mapping[str, str]]],
    passage: Sequence[str],
    thing: Sequence[str],
    people: Sequence[Sequence[str]],
    operation: Sequence[str],
    grade: Sequence[int],
) -> list[float]:
    """1 where every part is full: a lesson that could be handed out."""
    parts = zip(
        explained(completions, prompts, passage, thing, operation),
        readable(completions, prompts, grade),
        faithful(completions, passage, thing, people),
        key(completions, operation),
        asked(completions, operation),
        strict=True,
    )
    return [float(min(values) == 1) for values in parts]
