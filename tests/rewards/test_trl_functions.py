"""Reward functions of TRL are taken as they are: forms, arguments, returned values, columns, prints."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest

from coterie.callbacks import printing_to
from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.errors import ConfigError, RewardError
from coterie.rewards.base import check_steps, check_values
from coterie.rewards.pool import Scorer
from coterie.types import Message, Prompt

IDS = [[4], [4, 2], [4, 2, 0, 1]]


def prompt(name: str = "p", **columns: Any) -> Prompt:
    message: Message = {"role": "user", "content": "2+2?"}
    return Prompt(id=name, messages=(message,), answer="42", task="sums", attributes={"solution": "42", **columns})


def score(*names: str, completions: tuple[str, ...] = ("42", "7", "x 42"), workers: int = 1, **columns: Any):
    """Scores of three completions, and the notes."""
    parts = [RewardConfig(name=name) for name in names]
    with Scorer(RewardsConfig(functions=parts, workers=workers, timeout_s=20), max_steps=8) as scorer:
        rows = [prompt(f"p/{k}", **columns) for k in range(len(completions))]
        scorer.start(rows)
        return scorer.score(rows, completions, tokens=IDS[: len(rows)], version=2), scorer.notes


def values(name: str, **options: Any) -> list[float | None]:
    found, _ = score(name, **options)
    assert [one.error for one in found] == [None] * len(found)
    return [one.reward for one in found]


@pytest.mark.parametrize(
    ("name", "expected", "note"),
    [
        ("trl_style:conversational", [1, 0, 1], 'completions = "messages"'),
        ("trl_style:annotated", [1, 0, 0], 'completions = "messages"'),
        ("trl_style:asynchronous", [2, 1, 4], 'completions = "messages"'),
        ("trl_style:careful", [2, 1, 4], None),
        ("trl_style:short_ids", [1, 1, 0], None),
        ("trl_style:everything", [2, 2, 2], 'completions = "messages"'),
        ("trl_style:through_kwargs", [2, 2, 2], None),
        ("plain_style:text_prompts", [6, 5, 8], 'prompts = "text"'),
        ("plain_style:annotated", [1, 1, 1], 'prompts = "text"'),
        ("plain_style:first_letter", [1, 0, 0], None),
        ("plain_style:columns", [1, 1, 1], None),
    ],
)
def test_functions_written_for_either_form(name: str, expected: list[float], note: str | None) -> None:
    found, notes = score(name)
    assert [one.error for one in found] == [None] * 3
    assert [one.reward for one in found] == expected
    assert len(notes) == (note is not None)
    assert all(note is not None and name in text and note in text for text in notes)


def test_what_is_found_out_holds_for_every_worker_and_without_a_start() -> None:
    parts = [RewardConfig(name="trl_style:conversational"), RewardConfig(name="plain_style:first_letter")]
    with Scorer(RewardsConfig(functions=parts, workers=3)) as scorer:
        found = scorer.score([prompt()] * 6, ["42", "7"] * 3)
    assert [one.parts for one in found] == [
        {"conversational": 1.0, "first_letter": 1.0},
        {"conversational": 0.0, "first_letter": 0.0},
    ] * 3


def test_an_error_of_its_own_does_not_change_the_form() -> None:
    found, notes = score("plain_style:first_letter", completions=("", "4", "5"))
    assert [one.reward for one in found] == [None, 1.0, 0.0]
    assert "IndexError" in str(found[0].error)
    assert notes == []


@pytest.mark.parametrize(("form", "reward"), [("messages", 2.0), ("text", 2.0)])
def test_the_form_can_be_set(form: Literal["messages", "text"], reward: float) -> None:
    part = RewardConfig(name="trl_style:careful", completions=form, prompts="messages")
    with Scorer(RewardsConfig(functions=[part])) as scorer:
        assert [one.reward for one in scorer.score([prompt()], ["42"])] == [reward]
        assert scorer.notes == []
    with pytest.raises(ValueError, match="for functions of your own"):
        RewardConfig(name="number", completions="messages")


def test_what_it_logs_stands_with_the_rollout() -> None:
    found, _ = score("trl_style:everything")
    assert [one.extra for one in found] == [{"length": 2}, {"length": 1}, {"length": 4}]
    assert [one.metrics for one in found] == [{"progress": 0.25}] * 3
    (wrong, _, _), _ = score("trl_style:wrong_log")
    assert wrong.error is None  # one value for one completion: scored again row by row


def test_trainer_state_says_what_it_has() -> None:
    (one, *_), _ = score("trl_style:unknown_state")
    assert "trainer_state has global_step and max_steps here, but no 'epoch'" in str(one.error)


@pytest.mark.parametrize("kind", ["whole", "items"])
def test_arrays_and_their_scalars_are_values(kind: str) -> None:
    part = RewardConfig(name="plain_style:array", params={"kind": kind})
    with Scorer(RewardsConfig(functions=[part])) as scorer:
        assert [one.reward for one in scorer.score([prompt()] * 2, ["a", "b"])] == [0.5, 0.5]


def test_arrays_of_numpy_and_torch() -> None:
    import numpy as np
    import torch

    bits = torch.tensor([0.5, 1.0], dtype=torch.bfloat16)
    for returned in (np.array([0.5, 1.0]), bits, [np.float32(0.5), np.bool_(True)], [bits[0], bits[1:]], bits.double()):
        assert check_values(returned, 2) == ([0.5, 1.0], {})
    assert check_values(torch.tensor([0.5, 1.0], requires_grad=True), 2) == ([0.5, 1.0], {})
    assert check_values(np.array([0.5, None], dtype=object), 2) == ([0.5, None], {})
    for column in (np.array([[1.0], [0.5]]), torch.tensor([[1.0], [0.5]]), torch.zeros(2, 1, requires_grad=True)):
        values, bad = check_values(column, 2)
        assert values == [None, None]
        assert set(bad) == {0, 1}
        assert "returned an array of shape (2, 1); expected shape (2,)" in bad[1]
        assert "squeeze(-1)" in bad[1]
    assert "returned nan" in check_values(np.array([np.nan, 0.5]), 2)[1][0]
    with pytest.raises(Exception, match="returned 3 values for 2 completions"):
        check_values(np.zeros(3), 2)
    with pytest.raises(Exception, match=r"returned 0\.5 \(a float\); expected a list of 1 values"):
        check_values(np.array(0.5), 1)
    assert check_steps([np.array([[1, 0.5]])[0:0].tolist(), [(np.int64(2), torch.tensor(1.0))]], ["ab", "ab"]) == (
        [[], [(2, 1.0)]],
        {},
    )


def test_the_rows_own_columns_reach_the_function() -> None:
    """trl#3079: the data names each row's task in a column `task`."""
    assert values("plain_style:task", task="math", answer="the row's own") == [1.0] * 3
    assert values("plain_style:task", task="code", answer="the row's own") == [0.0] * 3
    found, _ = score("number", "exact", task="math", answer="the row's own")
    assert [one.parts for one in found][:2] == [{"number": 1.0, "exact": 1.0}, {"number": 0.0, "exact": 0.0}]


def test_columns_with_the_name_of_an_argument_do_not_take_its_place() -> None:
    found, _ = score("plain_style:columns", completions=("42",), completion_ids=[9], trainer_state=1, prompts="x")
    assert found[0].reward == 1.0


def test_the_signature_of_verl_is_told_apart_and_a_wrapper_named() -> None:
    (one, *_), _ = score("plain_style:compute_score", data_source="gsm8k", ground_truth="4")
    assert "signature of verl's compute_score" in str(one.error)
    assert "from plain_style import compute_score; def reward(completions, answer, **columns)" in str(one.error)


def test_a_missing_column_is_named_behind_keywords_too() -> None:
    (one, *_), _ = score("plain_style:missing")
    assert "needs 'ground_truth', but the prompts only have answer, completion_" in str(one.error)


def test_what_a_function_prints_is_passed_on() -> None:
    heard: list[tuple[str, str]] = []
    with printing_to(lambda source, text: None):
        pass  # what other tests printed
    with printing_to(lambda source, text: heard.append((source, text))):
        score("plain_style:prints", "plain_style:columns")
        score("plain_style:prints_much", completions=("a",))
    assert heard[0] == ("plain_style:prints", "3 of them\nand here")
    assert {source for source, _ in heard} == {"plain_style:prints", "plain_style:prints_much"}
    assert re.match(r"\([\d,]+ bytes before this are left out\)\nxxx", heard[-1][1])
    assert len(heard[-1][1]) < 140_000
    assert heard[-1][1].endswith("the end")


def test_what_is_printed_while_nobody_listens_is_kept() -> None:
    with printing_to(lambda source, text: None):
        pass
    score("plain_style:prints", completions=("a",))
    heard: list[str] = []
    with printing_to(lambda source, text: heard.append(source)):
        assert heard == ["plain_style:prints"]
    with printing_to(lambda source, text: heard.append(source)):
        assert len(heard) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", r"raised SyntaxError: invalid syntax \(broken.py, line 1\): def f\(:$"),
        ("def f():\n  x\n y\n", r"raised IndentationError: .*\(broken.py, line 3\): y$"),
        ("import nowhere_at_all\n", r"importing 'broken' raised ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ],
)
def test_modules_that_cannot_be_imported(text: str, said: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(RewardError, match=said),
        Scorer(RewardsConfig(functions=[RewardConfig(name="broken:f")])) as scorer,
    ):
        scorer.start()


def test_a_file_is_not_a_module() -> None:
    with pytest.raises(ConfigError, match=r"'sub/bad\.py:fine' names a file.*: write `sub\.bad:fine`"):
        Scorer(RewardsConfig(functions=[RewardConfig(name="sub/bad.py:fine")]))
