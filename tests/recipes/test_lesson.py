"""Lessons by hand: what the passage tells, what the solver finds, for whom an explanation is written, and tricks."""

from __future__ import annotations

from typing import Any

import pytest
from recipe_modules import recipe

lesson = recipe("teaching", "lesson")
lesson_levels = recipe("teaching", "lesson_levels")
PASSAGE = "Eva has 9 cups. Omar has 4 cups. Lena has 12 cups."
SUM = "Eva has 9 cups. Omar has 4 cups. How many cups do they have together?"
MORE = "Eva has 9 cups. Omar has 4 cups. How many more cups does Eva have than Omar?"
PLAIN = "We put all of the cups in one box and add them."
PARTS = ("perfect", "faithful", "key", "readable", "explained", "asked")


def parts(text: str, grade: int = 2, operation: str = "addition") -> dict[str, float]:
    """Values of all parts of a lesson about the cups of Eva and Omar."""
    people = ["Eva", "Omar"]
    asked = {"role": "user", "content": lesson.request(PASSAGE, "cups", people, operation, grade)}
    shown = [{"role": "assistant", "content": worked} for _, worked in lesson.EXAMPLES[operation]]
    columns: dict[str, Any] = {
        "prompts": [[*shown, asked]], "passage": [PASSAGE], "thing": ["cups"], "people": [people],
        "operation": [operation], "grade": [grade],
    }  # fmt: skip
    needs = {
        "perfect": tuple(columns),
        "faithful": ("passage", "thing", "people"),
        "key": ("operation",),
        "readable": ("prompts", "grade"),
        "explained": ("prompts", "passage", "thing", "operation"),
        "asked": ("operation",),
    }
    return {name: getattr(lesson, name)([text], **{key: columns[key] for key in needs[name]})[0] for name in PARTS}


def written(problem: str = SUM, key: str = "13", explanation: str = PLAIN) -> str:
    """A completion of three lines."""
    return f"Problem: {problem}\nAnswer: {key}\nExplanation: {explanation}"


@pytest.mark.parametrize("key", ["13", "13.", "13 cups", "13 cups.", "9 + 4 = 13"])
def test_a_lesson_that_could_be_handed_out(key: str) -> None:
    assert parts(written(key=key)) == dict.fromkeys(PARTS, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{SUM} 13. {PLAIN}",  # no labels
        written() + "\n" + written(),  # another one behind it
        "Here is a problem.\n" + written(),
        f"Answer: 13\nProblem: {SUM}\nExplanation: {PLAIN}",
        written(key="thirteen"),
        written(key="13 or 14"),
        written(key="9 + 5 = 13"),  # a calculation that is wrong
        written(key="9 - 4 = 13"),
        written(key="9 + 4"),
        written(key=""),
        written(problem=""),
        written(explanation=""),
    ],
)
def test_a_lesson_out_of_form_is_not_perfect(text: str) -> None:
    assert parts(text)["perfect"] == 0


@pytest.mark.parametrize(
    ("problem", "key", "values"),
    [
        (SUM, "12", [1, 0, 1]),
        ("Eva has 9 cups and Omar has 4. How many cups do they have in all?", "13", [1, 1, 1]),
        ("Eva has 8 cups. Omar has 4 cups. How many cups do they have together?", "12", [0.5, 1, 1]),
        ("Eva has 4 cups. Omar has 9 cups. How many cups do they have together?", "13", [0, 1, 1]),  # swapped
        ("Eva has 9 cups. Lena has 12 cups. How many cups do they have together?", "21", [0.5, 1, 1]),  # not asked for
        ("Eva has 9 cups. Bob has 4 cups. How many cups do they have together?", "13", [0.5, 1, 1]),
        ("Eva has 9 cups. Omar has 4 hats. How many cups do they have together?", "13", [0.5, 1, 1]),
        ("Eva has 9 cups. How many cups do they have together?", "9", [0.5, 1, 1]),  # one fact is no problem
        (PASSAGE + " How many cups do they have together?", "25", [0.5, 1, 1]),  # the passage once more
        ("Eva has 9 cups. Omar has 4 cups. With 3 more, how many in all?", "13", [0.5, 1, 1]),  # a number of its own
        ("Eva has 9 cups. Omar has 4 cups. How many in all with Paul?", "13", [0.5, 1, 1]),  # a name of its own
        (MORE, "5", [1, 0, 0]),  # another operation
        ("Eva has 9 cups. Omar has 4 cups. How many cups are red?", "13", [1, 0, 0]),
        ("How many cups do they have together?", "0", [0, 0, 1]),
        ("Eva has 9 cups. Omar has 4 cups. How many cups do they have together? 13", "13", [0.5, 1, 0]),
        ("9 + 4", "13", [0, 0, 0]),
    ],
)
def test_a_problem(problem: str, key: str, values: list[float]) -> None:
    values_by_part = parts(written(problem, key))
    assert [values_by_part[name] for name in ("faithful", "key", "asked")] == values
    assert values_by_part["perfect"] == (min(values) == 1)


@pytest.mark.parametrize(
    ("question", "key", "right"),
    [
        ("How many more cups does Eva have than Omar?", "5", 1),
        ("How many fewer cups does Omar have than Eva?", "5", 1),
        ("How many more cups does Omar have than Eva?", "5", 0),  # he has fewer
        ("How many more cups does Eva have than Lena?", "3", 0),  # of whom the problem tells nothing
        ("How many more cups does Eva have than Omar?", "13", 0),
        ("How many cups do they have together?", "13", 0),
    ],
)
def test_a_difference_has_a_sign(question: str, key: str, right: float) -> None:
    text = written(f"Eva has 9 cups. Omar has 4 cups. {question}", key)
    assert parts(text, operation="subtraction")["key"] == right


@pytest.mark.parametrize(
    ("text", "explained", "grades"),
    [
        (PLAIN, 1, [2]),
        ("Addition counts the cups of two people as one group, and so finds their total.", 1, [7]),
        ("Addition combines the separate quantities of Eva and Omar into one total.", 0.8, []),  # the worked lesson
        (PASSAGE + " Add them.", 0.6, []),  # the passage, in four sentences
        ("Add cups add cups add cups add cups.", 0.8, [2]),  # a loop
        ("Add the cups.", 0.6, []),  # too short for a readability
        ("We put all of the cups in one box and add", 0.8, [2]),  # cut
        ("We put all of the cups in one box and wash them.", 0.8, [2]),
        ("We put all of the hats in one box and add them.", 0.8, [2]),
        ("We add the 7 cups to the cups in the box.", 0.8, [2]),  # a number that nobody has
        ("We add the cups of Omar to those of Bob.", 0.8, [2]),
        ("We add the 9 cups and the 4 cups to get 13.", 1, [2]),
        ("", 0, []),
    ],
)
def test_an_explanation(text: str, explained: float, grades: list[int]) -> None:
    values = {grade: parts(written(explanation=text), grade) for grade in lesson.GRADES}
    assert values[2]["explained"] == pytest.approx(explained)
    assert [grade for grade in lesson.GRADES if values[grade]["readable"] == 1] == grades


def test_held_out_lessons_have_other_people_and_things_and_all_can_be_written() -> None:
    train, heldout = list(lesson.rows("train", 120)), list(lesson.rows("heldout", 60))
    assert not {row["thing"] for row in train} & {row["thing"] for row in heldout}
    people = [{name for row in rows for name, _ in lesson.told(row["passage"])} for rows in (train, heldout)]
    assert not people[0] & people[1]
    assert len({row["prompt"][-1]["content"] for row in [*train, *heldout]}) == 180
    assert list(lesson.rows("train", 9)) == train[:9]
    names = ("prompt", "passage", "thing", "people", "operation", "grade", "answer")
    columns = {name: [row[name] for row in [*train, *heldout]] for name in names}
    texts, prompts = columns.pop("answer"), columns.pop("prompt")
    assert lesson.perfect(texts, prompts, **columns) == [1] * 180
    with pytest.raises(ValueError, match="expected train or heldout"):
        list(lesson.rows("test"))


def test_worked_lessons_are_right_and_their_explanation_is_for_none_of_the_grades() -> None:
    for operation, lessons in lesson.EXAMPLES.items():
        for (passage, thing, people), worked in lessons:
            assert lesson.faithful([worked], [passage], [thing], [people]) == lesson.key([worked], [operation]) == [1]
            assert lesson.asked([worked], [operation]) == [1]
            level = lesson.level(lesson.read(worked).explanation)
            assert abs(level - lesson.EXAMPLE_GRADE) < 3
            assert all(abs(level - grade) > lesson.NEAR for grade in lesson.GRADES)


def test_lessons_of_the_fine_tuning_are_perfect_whatever_thing_and_people_they_are_about() -> None:
    for row in [*lesson.rows("train", 240, examples=0), *lesson.rows("heldout", 120, examples=0)]:
        (asked,) = row["prompt"]
        texts = [lesson.solution(row, explanation=turn, question=turn) for turn in range(5)]
        columns = {name: [row[name]] * 5 for name in ("passage", "thing", "people", "operation", "grade")}
        assert lesson.perfect(texts, [[asked]] * 5, **columns) == [1] * 5, texts
        assert len(set(texts)) == 5
    worked = list(lesson.worked(96))
    assert len({row["messages"][-1]["content"] for row in worked}) == 96
    assert [len(row["messages"]) for row in worked] == [2] * 96
    held_out = {row["thing"] for row in lesson.rows("heldout", 60)}
    assert not any(thing in row["messages"][0]["content"] for row in worked for thing in held_out)
    with pytest.raises(ValueError, match="examples = 3; there are 0 to 2"):
        list(lesson.rows(examples=3))


def test_levels_of_explanations_by_two_formulas() -> None:
    text = lesson_levels.levels([PLAIN, "We put all of the hats in one box and add them.", "Add."])
    assert text == (
        "3 lessons, 67 % for grade 2, 0 % for grade 7; index 0.0, Coleman-Liau -1.4; 1 different explanations, "
        "100 % as in a worked lesson"
    )
    assert lesson_levels.levels(["", "Add."]) == "2 lessons, none with an explanation"
    assert lesson_levels.parts([{"key": 1.0, "asked": 0.5}, {"key": 0.0, "asked": 1.0}]) == "key 50.0, asked 75.0"


def test_the_change_of_a_request_is_that_of_its_share_of_perfect_lessons() -> None:
    def rows(*perfect: tuple[str, float]) -> list[dict[str, Any]]:
        return [{"request": request, "reward_parts": {"perfect": value}} for request, value in perfect]

    before, after = rows(("a", 0.0), ("a", 1.0), ("b", 1.0)), rows(("b", 0.0), ("a", 1.0), ("a", 1.0))
    assert lesson_levels.change(before, after) == {"a": 0.5, "b": -1.0}
