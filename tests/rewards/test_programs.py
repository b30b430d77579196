"""The reward of programs and the tool python, in the tier that this machine has, or under limits alone."""

from __future__ import annotations

from typing import Any

import pytest

from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.errors import ConfigError
from coterie.rewards.pool import Scorer
from coterie.rewards.programs import code, program_of
from coterie.tools.base import Call
from coterie.tools.registry import tools_for
from coterie.tools.toolbox import CallLimits, Toolbox
from coterie.tools.wire import Tags
from coterie.types import Prompt

UNSAFE = "unsafe_rlimits"
"""The tier that every machine has: what is tested here is what lies around it."""
CALLS = [{"call": "f(1)", "expected": "2"}, {"call": "f(2)", "expected": "3"}]
LINES = [{"stdin": "1\n", "expected": "2"}, {"stdin": "5\n", "expected": "6"}]
RIGHT = "```python\ndef f(x):\n    return x + 1\n```"


def test_programs_are_judged_by_hidden_tests() -> None:
    texts = [RIGHT, "def f(x): return 2", "def f(x: return", "no code", "import os\nos._exit(0)", RIGHT]
    rows: list[Any] = [CALLS] * 5 + [None]
    assert code(texts, rows, tier=UNSAFE) == [1.0, 0.0, 0.0, 0.0, 0.0, None]
    assert code(texts[:2], rows[:2], tier=UNSAFE, partial=True) == [1.0, 0.5]
    assert code(["print(int(input()) + 1)", "print(2)"], [LINES] * 2, tier=UNSAFE, partial=True) == [1.0, 0.5]
    assert code(["    return x + 1"], [CALLS], ["def f(x):\n"], tier=UNSAFE) == [1.0]


def test_a_program_is_the_last_block_after_the_thoughts() -> None:
    assert program_of("<think>```python\n1\n```</think>```py\nx\n```\n```\ny") == "y"
    assert program_of("x = 1") == "x = 1"


@pytest.mark.parametrize("test", [{"call": "f()"}, {"call": "f()", "expected": 3}, {"assert": "f() == 1"}, "f() == 1"])
def test_a_test_of_another_form_is_an_error_and_no_reward(test: Any) -> None:
    with pytest.raises(ValueError, match="the column tests holds"):
        code([RIGHT], [[test]], tier=UNSAFE)


def test_in_a_worker() -> None:
    part = RewardConfig(name="code", params={"tier": UNSAFE})
    prompts = [
        Prompt(
            id=str(k), messages=({"role": "user", "content": "?"},), answer=None, task="t", attributes={"tests": row}
        )
        for k, row in enumerate([CALLS, [{"call": "f(1)"}]])
    ]
    with Scorer(RewardsConfig(functions=[part])) as scorer:
        right, broken = scorer.score(prompts, [RIGHT, RIGHT])
    assert right.reward == 1.0
    assert broken.reward is None
    assert "the column tests holds" in str(broken.error)


def test_the_tool_python() -> None:
    toolbox = Toolbox(tools_for([{"name": "python", "tier": UNSAFE}]), Tags(), CallLimits())
    calls = [
        Call(text="", name="python", arguments={"code": text}) for text in ("print(6 * 7)", "x = 1", "print(3)\n1 / 0")
    ]
    results = toolbox.episode({}).run(calls)
    assert [result.content for result in results] == [
        "42",
        "(nothing was printed)",
        "Error: 3\nZeroDivisionError: division by zero",
    ]
    assert [result.error for result in results] == [None, None, "raised"]
    with pytest.raises(ConfigError, match="expected one of auto"):
        tools_for([{"name": "python", "tier": "docker"}])
