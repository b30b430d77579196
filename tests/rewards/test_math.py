"""Symbolic answers, in the worker process that may be killed."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("math_verify")

from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.errors import install_command
from coterie.rewards.pool import Scorer
from coterie.types import Prompt

CASES = [
    (r"\boxed{\frac{1}{2}}", "0.5", 1),
    (r"\boxed{0.5}", r"\frac{1}{2}", 1),
    (r"<answer>2\sqrt{3}</answer>", r"\sqrt{12}", 1),
    (r"The answer is $2\sqrt{3}$.", r"2\sqrt{3}", 1),
    (r"2\sqrt{3}", r"$\sqrt{12}$", 1),
    (r"\boxed{x^2+2x+1}", r"(x+1)^2", 1),
    (r"\boxed{\{1,2\}}", r"\{2,1\}", 1),
    (r"\boxed{(1,2)}", r"(1, 2)", 1),
    (r"\boxed{(2,1)}", r"(1, 2)", 0),
    (r"\boxed{3}", r"2\sqrt{3}", 0),
    (r"\boxed{2\pi}", "2", 0),
    ("42", "42", 1),
    ("43", "42", 0),
    ("It is 42, as we saw.", "42", 1),
    ("\\boxed{50\\%}", "0.5", 1),
    ("paris", "Paris", 1),
    ("", "42", 0),
    ("\\boxed{" + "1+" * 2000 + "1}", "2001", 0),
    ("\\boxed{\\frac{}{}}", "1/2", 0),
    ("4", None, None),
]


def prompt(answer):
    return Prompt(id="p", messages=({"role": "user", "content": "?"},), answer=answer, task="t")


@pytest.fixture(scope="module")
def pool():
    parts = [RewardConfig(name="math")]
    with Scorer(RewardsConfig(functions=parts, timeout_s=10)) as scorer:
        yield scorer


def test_cases(pool):
    scores = pool.score([prompt(gold) for _, gold, _ in CASES], [completion for completion, _, _ in CASES])
    wrong = [(case, score) for case, score in zip(CASES, scores, strict=True) if score.parts["math"] != case[2]]
    assert wrong == []


def test_hostile_latex_ends_at_the_deadline(pool):
    hostile = r"\boxed{9^{9^{9^{9}}} - 1}"
    pool.start()
    pool.config = pool.config.model_copy(update={"timeout_s": 0.7})
    (score,) = pool.score([prompt("x+1")], [hostile])
    assert score.error is not None
    assert "did not return within 0.7 s and was killed" in score.error


def test_missing_package_names_the_extra():
    code = (
        "import sys; sys.modules['math_verify'] = None\n"
        "from coterie.rewards.registry import load\n"
        "try: load('math', {})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "RewardError reward 'math' needs math-verify" in output
    assert install_command("train") in output
