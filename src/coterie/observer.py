"""What a training loop tells the outside while it runs. The console is one observer, a test's list another."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from coterie.types import Prompt, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


PASS, REWARD = "pass@1", "reward"
"""Metrics by which evaluations are compared: share of correct attempts, and mean reward (TRL's `eval/reward`)."""
POOLED = "all"
"""Task name of an evaluation's result over all tasks, which therefore no source may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One held-out evaluation of one task, or of `POOLED`."""

    step: int
    task: str
    prompts: int
    samples: int
    """Attempts per prompt."""
    k: int
    pass_at_1: Interval | None
    """Share of correct attempts; without `eval.correct_threshold`, None where the evaluated reward is graded, or has
    been 0 in the whole run and is not known to be binary."""
    pass_at_k: Interval | None
    """None where `pass_at_1` is."""
    mean_length: float
    """Tokens per completion."""
    truncated: float
    """Share of completions cut by the token limit."""
    reward: Interval | None = None
    """Mean reward, the weighted sum of the parts, over prompts; None in runs of before it was recorded."""
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    """Unweighted mean of each reward part over the attempts to which it applies."""

    @property
    def is_zero(self) -> bool:
        """Whether every prompt has a mean reward of 0, which is 0 % correct once the reward turns out to be binary."""
        return self.reward is not None and self.reward.value == self.reward.low == self.reward.high == 0

    def metric(self, name: str) -> Interval | None:
        """The value of `PASS` or `REWARD`; None where this evaluation does not have it."""
        if name == PASS and self.pass_at_1 is None and self.is_zero:
            return self.reward
        return self.pass_at_1 if name == PASS else self.reward


def metric_of(results: Iterable[EvalResult]) -> str:
    """The metric by which these evaluations are compared with each other: `PASS` where the evaluated reward is binary
    in them, `REWARD` where it is graded in any, or 0 in all, which may be a graded reward that has not risen yet."""
    results = list(results)
    lacking = [result for result in results if result.pass_at_1 is None]
    graded = any(not result.is_zero for result in lacking)
    return REWARD if graded or len(lacking) == len(results) > 0 else PASS


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Known before the first step."""

    run: Path
    steps: int
    first_step: int
    """1, or one after the checkpoint that a resume started from."""
    model: str
    parameters: int
    trained_parameters: int
    train_prompts: int
    heldout_prompts: int
    prompts_per_step: int
    group_size: int


class Observer(Protocol):
    """Callbacks of a run, all from the training thread, in order; none may change anything."""

    def started(self, info: RunInfo) -> None: ...

    def stepped(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
        """After each step; `sample` is one usable rollout of it with its prompt."""
        ...

    def evaluated(self, results: Sequence[EvalResult]) -> None:
        """After each held-out evaluation; one result per task, then `all` where there are several tasks."""
        ...

    def noted(self, kind: str, message: str) -> None:
        """An event worth a line: `checkpoint`, `warning`, `stop`, `skipped_update`, `asset` …"""
        ...

    def progressed(self, activity: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        """What is being done now, of which nothing remains to be read once it is over.

        Called often, also before `started`.

        Args:
            activity: e.g. `loading the model`.
            done: of `total`; a total of 0 means that it cannot be counted.
            unit: of both, in the plural; empty for a count of nothing in particular.
        """
        ...

    def finished(self, run: Path, message: str) -> None: ...


class Silent:
    """Observes nothing."""

    def started(self, info: RunInfo) -> None:
        pass

    def stepped(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
        pass

    def evaluated(self, results: Sequence[EvalResult]) -> None:
        pass

    def noted(self, kind: str, message: str) -> None:
        pass

    def progressed(self, activity: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        pass

    def finished(self, run: Path, message: str) -> None:
        pass


Listener = Callable[[str, str], None]
_listeners: list[Listener] = []
_unheard: deque[tuple[str, str]] = deque(maxlen=1000)


def printed(source: str, text: str) -> None:
    """Pass on what a function of the user's printed: to the innermost `printing_to`, or to the next one.

    Args:
        source: the function as the settings name it.
    """
    if _listeners:
        _listeners[-1](source, text)
    else:
        _unheard.append((source, text))


@contextmanager
def printing_to(tell: Listener) -> Generator[None]:
    """Have `tell(source, text)` called with all that functions of the user's print meanwhile, and with what they
    printed before while nobody listened."""
    while _unheard:
        tell(*_unheard.popleft())
    _listeners.append(tell)
    try:
        yield
    finally:
        _listeners.remove(tell)


def prints_are_logged() -> bool:
    """Whether the innermost listener is other than a `ToStderr`."""
    return bool(_listeners) and not isinstance(_listeners[-1], ToStderr)


class ToStderr:
    """A listener for people, where there is no log.

    Args:
        most: lines that are shown.
    """

    def __init__(self, most: int = 40) -> None:
        self._left = most

    def __call__(self, source: str, text: str) -> None:
        from coterie.text import safe_text

        for line in text.splitlines():
            self._left -= 1
            if self._left < 0:
                return
            more = " (what is printed after this is left out)" if self._left == 0 else ""
            print(f"{source} printed: {safe_text(line)}{more}", file=sys.stderr)
