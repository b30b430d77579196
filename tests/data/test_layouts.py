"""Rows in the layouts of other trainers and data sets: what is asked, what counts as right, what rewards get."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from coterie.config.data import ColumnNames
from coterie.data.answers import boxed_at_end
from coterie.data.columns import BadRowError, Question, read_columns
from coterie.data.layouts import column_paths, likely_answer, lookup

ASKED = {"role": "user", "content": "2 + 2?"}
SYSTEM = {"role": "system", "content": "Think."}
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [ASKED],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"split": "train", "index": 0, "answer": "2 and 2 are 4\n#### 4", "question": "2 + 2?"},
}
OPEN_R1 = {
    "problem": "2 + 2?",
    "solution": "Step 1. Add.\n\n## Step 2\n$2 + 2 = 4$",
    "answer": "4",
    "source": "olympiads",
    "uuid": "c0ffee",
    "generations": ["4", "5"],
    "messages": [ASKED, {"role": "assistant", "content": "four"}],
}

CASES: dict[str, tuple[dict[str, Any], list[dict[str, str]], str | None, str]] = {
    "TRL, solution": (
        {"prompt": [ASKED], "solution": "$\\boxed{4}$"},
        [ASKED],
        "4",
        "TRL's layout: prompt from `prompt`, answer from `solution`",
    ),
    "TRL, ground truth": ({"prompt": "2 + 2?", "ground_truth": 4}, [ASKED], "4", "TRL's layout"),
    "verl": (VERL, [ASKED], "4", "verl's layout: prompt from `prompt`, answer from `reward_model.ground_truth`"),
    "verl by pandas": (
        {**VERL, "prompt": np.array([ASKED], dtype=object), "reward_model": {"ground_truth": np.array(["4"])}},
        [ASKED],
        "4",
        "verl's layout",
    ),
    "verl, reward model as text": ({**VERL, "reward_model": '{"ground_truth": "4"}'}, [ASKED], "4", "verl's layout"),
    "open-r1": (OPEN_R1, [ASKED], "4", "open-r1's layout: prompt from `problem`, answer from `answer`"),
    "open-r1 without answer": ({**OPEN_R1, "answer": None, "messages": None}, [ASKED], None, "open-r1's layout"),
    "MATH": (
        {"problem": "2 + 2?", "level": "Level 1", "solution": "We add.\n\nSo it is $\\boxed{4}$."},
        [ASKED],
        "4",
        "open-r1's layout",
    ),
    "ShareGPT": (
        {
            "id": "x",
            "system": "Think.",
            "conversations": [
                {"from": "Human", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
                {"from": "human", "value": "2 + 2?"},
                {"from": "gpt", "value": "four"},
            ],
        },
        [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, ASKED],
        "four",
        "ShareGPT's layout: prompt from `conversations`, answer from the last reply",
    ),
    "ShareGPT without a reply": (
        {"conversations": [{"from": "system", "value": "Think."}, {"from": "human", "value": "2 + 2?"}]},
        [SYSTEM, ASKED],
        None,
        "ShareGPT's layout: prompt from `conversations`, no gold answer",
    ),
    "OpenAI": (
        {"messages": [SYSTEM, ASKED, {"role": "assistant", "content": "4"}]},
        [SYSTEM, ASKED],
        "4",
        "a conversation in OpenAI's format: prompt from `messages`",
    ),
    "OpenAI, text parts": (
        {
            "messages": [
                {"role": "developer", "content": "Think."},
                {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
            ]
        },
        [SYSTEM, ASKED],
        None,
        "a conversation in OpenAI's format",
    ),
    "OpenAI as text of a table": ({"messages": json.dumps([ASKED]), "answer": "4"}, [ASKED], "4", "a conversation"),
    "Alpaca": (
        {"instruction": "Add.", "input": "2 and 2", "output": "4"},
        [{"role": "user", "content": "Add.\n2 and 2"}],
        "4",
        "Alpaca's layout: prompt from `instruction`, answer from `output`",
    ),
    "Alpaca, no input": (
        {"instruction": "2 + 2?", "input": "", "output": "", "system": "Think.", "history": [["Hi", "Hello"]]},
        [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, ASKED],
        None,
        "Alpaca's layout: prompt from `instruction`, no gold answer",
    ),
    "names as in a spreadsheet": (
        {" Question": "2 + 2?", "Final Answer": "4"},
        [ASKED],
        "4",
        "prompt from ` Question`",
    ),
}


def messages(question: Question) -> list[Any]:
    return list(question.messages)


@pytest.mark.parametrize("name", CASES)
def test_layouts_are_read_as_they_are(name: str) -> None:
    row, prompt, answer, layout = CASES[name]
    question = read_columns(row)
    assert messages(question) == prompt
    assert question.answer == answer
    assert question.layout.describe().removeprefix("read ").removeprefix("as ").startswith(layout)
    assert not question.layout.native(ColumnNames())


def test_every_column_reaches_rewards_under_its_name() -> None:
    assert read_columns(VERL).attributes == {name: VERL[name] for name in VERL if name != "prompt"}
    assert read_columns(OPEN_R1).attributes == {name: OPEN_R1[name] for name in OPEN_R1 if name != "answer"}
    row = {"id": [1], "question": "?", "answer": 4, "task": "math", "gold_answer": "mine", "completions": 3}
    question = read_columns(row)
    assert question.answer == "4"
    assert question.attributes == row
    assert question.layout.native(ColumnNames())
    question = read_columns({"question": "?", "answer": "so\n#### 4"})
    assert question.attributes == {"question": "?", "answer": "so\n#### 4", "gold_answer": "4"}
    question = read_columns({"question": "?", "answer": ["4"], "label": 5}, ColumnNames(answer="label"))
    assert question.answer == "5"
    assert question.attributes == {"question": "?", "answer": ["4"], "label": 5, "gold_answer": "5"}


def test_columns_of_bytes_are_dropped_and_named() -> None:
    question = read_columns({"question": "?", "image": {"bytes": b"\x89PNG"}, "n": np.int64(3), "v": np.array([1.5])})
    assert question.dropped == ("image",)
    assert question.attributes == {"question": "?", "n": 3, "v": [1.5]}


@pytest.mark.parametrize(
    ("names", "prompt", "answer"),
    [
        (ColumnNames(prompt="extra_info.question"), "2 + 2?", "4"),
        (ColumnNames(answer="extra_info.answer"), "2 + 2?", "4"),
        (ColumnNames(answer="extra_info.index"), "2 + 2?", "0"),
        (ColumnNames(prompt="prompt.0.content", answer="data_source"), "2 + 2?", "openai/gsm8k"),
        (ColumnNames(answer=""), "2 + 2?", None),
    ],
)
def test_settings_name_the_columns(names: ColumnNames, prompt: str, answer: str | None) -> None:
    question = read_columns(VERL, names)
    assert (question.messages[-1]["content"], question.answer) == (prompt, answer)


def test_a_system_column_and_a_conversation_under_a_name_of_its_own() -> None:
    row = {"chat": [ASKED, {"role": "assistant", "content": "4"}], "persona": "Think.", "blank": " "}
    question = read_columns(row, ColumnNames(prompt="chat", system="persona"))
    assert messages(question) == [SYSTEM, ASKED]
    assert question.answer == "4"
    assert messages(read_columns(row, ColumnNames(prompt="chat", system="blank"))) == [ASKED]


def test_an_answer_column_that_no_judge_can_use_is_left_to_own_rewards() -> None:
    row = {"question": "?", "answer": ["4", "four"]}
    with pytest.raises(BadRowError, match=r'has a list as answer, .* write answer_column = ""'):
        read_columns(row)
    question = read_columns(row, ColumnNames(answer=""))
    assert (question.answer, question.attributes["answer"]) == (None, ["4", "four"])
    with pytest.raises(BadRowError, match=r'keys style, ground_truth as reward_model, .*"reward_model.style"'):
        read_columns(VERL, ColumnNames(answer="reward_model"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("$\\boxed{4}$", "4"),
        ("So \\(x\\) is\n\\[\n\\boxed{\\frac{1}{2}}\n\\]\n", "\\frac{1}{2}"),
        ("It is \\boxed {12 \\text{ cm}} wide.", "12 \\text{ cm}"),
        ("Either $\\boxed{4}$ or, the same, $\\boxed{4}$.", "4"),
        ("First $\\boxed{3}$.\nThen $\\boxed{4}$ square inches.", "4"),
        ("\\boxed{\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}}", "\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}"),
        ("\\boxed{x \\in \\{1, 2\\}}", "x \\in \\{1, 2\\}"),
        ("Step 1 gives $\\boxed{3}$. Step 2 adds one.", None),
        ("Step 1 gives $\\boxed{3}$.\nStep 2 adds one.", None),
        ("$x = \\boxed{3}$ and $y = \\boxed{4}$", None),
        ("never closed \\boxed{4", None),
        ("no box: 4", None),
    ],
)
def test_the_box_in_which_a_solution_ends(text: str, answer: str | None) -> None:
    assert boxed_at_end(text) == answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("34", "34"),
        ("Two.\n#### 1,234", "1234"),
        ("Two.\n#### Check\nIt is 4.", None),
        ("First we add.\nIt is 4.", None),
        ("It is 4, " + "which we see at once, " * 9, None),
    ],
)
def test_a_solution_is_the_answer_only_where_it_says_it(solution: str, answer: str | None) -> None:
    question = read_columns({"prompt": "?", "solution": solution})
    assert question.answer == answer
    assert question.layout.unmarked == (answer is None)
    assert question.attributes["solution"] == solution


def test_lookup_and_column_paths() -> None:
    row = {"a.b": {"c": 1}, "a": {"b": {"c": 2}, "d": [10, {"e": 11}]}, "n": None}
    assert [lookup(row, path) for path in ("a.b.c", "a.d.1.e", "a.d.7", "a.x", "n", "n.x")] == [
        1,
        11,
        None,
        None,
        None,
        None,
    ]
    assert column_paths([{"a": {"b": 1, "c": {"d": {"e": 1}}}, "x": 1}, {"y": [{"z": 1}]}]) == [
        "a.b",
        "a.c.d",
        "x",
        "y",
    ]
    assert likely_answer(["query", "meta.gold_label", "text"]) == "meta.gold_label"
    assert likely_answer(["query"]) is None
