"""Reward for programs: hidden tests in a sandbox, compared outside of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from coterie.errors import AssetError
from coterie.sandbox.base import Limits, Run, SandboxError, Test, with_input
from coterie.sandbox.choice import sandbox_for

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_THOUGHT = re.compile(r".*</think>", re.DOTALL)


def code(
    completions: Sequence[str],
    tests: Sequence[Sequence[Mapping[str, Any]] | None],
    setup: Sequence[str | None] | None = None,
    *,
    partial: bool = False,
    tier: str = "auto",
    seconds: float = 2.0,
    memory_mb: int = 256,
) -> list[float | None]:
    """1 where a completion's program passes all hidden tests of its row, else 0; None for a row without tests.

    The program is the last fenced block of the completion, else all of it. A test is `{"call": "f(2)", "expected":
    "4"}`, a call and the literal that its value equals, or `{"stdin": "2", "expected": "4"}`, an input and what is
    printed. The expected values stay outside of the sandbox.

    Args:
        setup: program text of the row that comes before the completion's, such as the head of a function to complete.
        partial: give the share of tests that pass.
        tier: of the sandbox: auto, wasi, bubblewrap, remote or unsafe_rlimits.
        seconds: of computing a program.
        memory_mb: of memory a program.

    Raises:
        ValueError: a test of the data has another form, which is no fault of the completion.
        SandboxError: no sandbox can be had here.
    """
    sandbox, limits = sandbox_for(tier), Limits(seconds=seconds, memory_mb=memory_mb)
    heads = [None] * len(completions) if setup is None else setup
    values: list[float | None] = []
    for completion, row, head in zip(completions, tests, heads, strict=True):
        if not row:
            values.append(None)
            continue
        program = (head or "") + program_of(completion)
        calls, inputs = _split(row)
        passed: list[bool] = []
        if calls:
            passed += sandbox.run(program, tests=calls, limits=limits).passed
        for stdin, expected in inputs:
            if passed and not partial and not all(passed):
                break  # nothing can change it any more
            run: Run = with_input(sandbox.run(program, stdin=stdin, limits=limits), expected)
            passed += run.passed
        share = sum(passed) / (len(calls) + len(inputs))
        values.append(share if partial else float(share == 1))
    return values


def prepare(columns: Sequence[str]) -> None:
    """Start the sandbox before the first deadline starts to run: loading its interpreter takes seconds."""
    if "tests" in columns:
        with suppress(SandboxError, AssetError):  # the call itself says what is missing
            sandbox_for()


def program_of(completion: str) -> str:
    """The program in a completion: its last fenced block after its thoughts, else all of it.

    >>> program_of("Here:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    text = _THOUGHT.sub("", completion)
    fences = _FENCE.findall(text)
    return fences[-1] if fences else text


def _split(row: Sequence[Mapping[str, Any]]) -> tuple[list[Test], list[tuple[str, str]]]:
    """Tests of calls, and (input, expected output) of tests of the whole program."""
    calls, inputs = [], []
    for test in row:
        form = {key: value for key, value in test.items() if value is not None} if isinstance(test, Mapping) else {}
        if set(form) == {"call", "expected"} and all(isinstance(value, str) for value in form.values()):
            calls.append(Test(call=form["call"], expected=form["expected"]))
        elif set(form) == {"stdin", "expected"} and all(isinstance(value, str) for value in form.values()):
            inputs.append((form["stdin"], form["expected"]))
        else:
            raise ValueError(
                f'the column tests holds {test!r:.80}; expected {{"call": text, "expected": text}} or {{"stdin": text, '
                '"expected": text}'
            )
    return calls, inputs
