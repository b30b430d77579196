"""Self-test of rewards with gold answers and wrong ones, and fingerprints of rewards."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal, Protocol

from coterie.config.environment import EnvironmentConfig
from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.config.user_functions import search_path
from coterie.data import tasks
from coterie.errors import RewardError
from coterie.rewards.base import OF_ROLLOUT, Score
from coterie.rewards.by_value import is_by_value
from coterie.rewards.registry import BUILT_IN, STEPS
from coterie.text import counted
from coterie.types import Prompt

Level = Literal["ok", "warn", "fail"]

JUDGES = ("task", "exact", "number", "math")
"""Built-in parts that must give 1 to a gold answer and 0 to garbage."""
ENVIRONMENT = "environment"
"""The built-in part that no text has without an episode."""
CONSOLATION = 0.05
"""Highest score that a reasoning-gym scorer may give to a wrong answer."""
GARBAGE = ("", "zzz no answer zzz")
LAYOUTS = ("{}", "<think>Known.</think>\n<answer>{}</answer>", "\\boxed{{{}}}")
"""A gold answer counts as accepted when it is accepted in one of these."""
MAX_SHARE = 0.05
"""A larger share of failing prompts fails the check; below it is a warning."""
ROW = "reward"
"""`RowFailure.part` of a row that could not be scored as a whole."""
_SHOWN = 3
_CALLED = 4
"""Prompts on which functions of the user's own are called before the model is loaded."""


class Scorer(Protocol):
    config: RewardsConfig

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        *,
        lengths: Sequence[int] | None = None,
        tokens: Sequence[Sequence[int]] | None = None,
    ) -> Sequence[Score]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCheck:
    """Result of a reward part."""

    label: str
    judge: bool
    """True if it must give 1 to gold answers and 0 to garbage."""
    gold: float | None
    """Mean over prompts of the best layout's value; None where it never applied."""
    garbage: float | None
    """Mean over prompts of the largest value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFailure:
    """A prompt that is not scored as it should be."""

    prompt_id: str
    part: str
    """Label of the part, or `ROW`."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardCheck:
    """The facts of a self-test."""

    checked: int
    """Prompts with a gold answer that were scored."""
    without_gold: int
    """Prompts among those looked at that have none."""
    parts: tuple[PartCheck, ...]
    failures: tuple[RowFailure, ...]
    open_ended: int = 0
    """Prompts without a gold answer that were scored."""
    silent: int = 0
    """Those among them to which no part applied."""

    @property
    def ok(self) -> bool:
        failed = {failure.prompt_id for failure in self.failures}
        return len(failed) <= MAX_SHARE * (self.checked + self.open_ended)

    def lines(self) -> list[tuple[Level, str, str]]:
        """Verdict, subject and text of each fact, for a person."""
        lines: list[tuple[Level, str, str]] = []
        if not self.checked:
            lines.append(("warn", "rewards", "no prompt has a gold answer to check the reward with"))
        raised = any(failure.part == ROW for failure in self.failures)
        for part in self.parts if self.checked else ():
            broken = any(failure.part == part.label for failure in self.failures)
            level: Level = ("warn" if self.ok else "fail") if broken else "ok"
            text = f"gold answers score {_shown(part.gold)}, garbage {_shown(part.garbage)}"
            if not part.judge and not broken and (part.gold is None or part.gold <= (part.garbage or 0.0)):
                if raised:
                    continue  # the errors are listed below, and what they left is not the whole comparison
                level, text = "warn", f"{text}: no difference"
            lines.append((level, f"reward {part.label}", f"{text} ({counted(self.checked, 'prompt')})"))
        for failure in self.failures[:_SHOWN]:
            subject = "reward" if failure.part == ROW else f"reward {failure.part}"
            lines.append(("warn" if self.ok else "fail", subject, failure.text))
        if len(self.failures) > _SHOWN:
            lines.append(("warn", "rewards", f"{len(self.failures) - _SHOWN} more failures like these"))
        if self.silent:
            lines.append(
                (
                    "warn",
                    "rewards",
                    f"no part applied to {counted(self.silent, 'prompt')} without a gold answer, when the completion "
                    "was garbage",
                )
            )
        return lines


def unjudged(parts: Sequence[RewardConfig], prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts that cannot be scored whatever the completion is: all weighted parts compare with a gold answer, and
    there is none."""
    weighted = [part for part in parts if part.weight]
    if any(part.name not in JUDGES for part in weighted):
        return []
    generated = any(part.name == "task" for part in weighted)
    return [
        prompt
        for prompt in prompts
        if prompt.answer is None and not (generated and tasks.is_item(prompt.attributes.get(tasks.ATTRIBUTE)))
    ]


def self_test(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    *,
    limit: int = 32,
    encode: Callable[[str], Sequence[int]] | None = None,
) -> RewardCheck:
    """Score the gold answers (in several layouts) and garbage of up to `limit` prompts, spread over all of them; of
    prompts without a gold answer garbage alone, unless nothing can judge them.

    Args:
        encode: text to token ids, for functions that ask for those; without it they get None.

    Raises:
        RewardError: a reward function cannot be imported, or does not take its params.
    """
    sample = spread(prompts, limit)
    sound = [prompt for prompt in sample if prompt.answer is not None]
    hopeless = {prompt.id for prompt in unjudged(scorer.config.functions, sample)}
    open_ended = [prompt for prompt in sample if prompt.answer is None and prompt.id not in hopeless]
    golds = [layout.format(prompt.answer) for layout in LAYOUTS for prompt in sound]
    junk = [text for text in GARBAGE for _ in (*sound, *open_ended)]
    asked = [*sound * len(LAYOUTS), *[*sound, *open_ended] * len(GARBAGE)]
    tokens = None if encode is None else [list(encode(text)) for text in golds + junk]
    scores = scorer.score(asked, golds + junk, tokens=tokens)
    good = _rows(scores[: len(golds)], len(sound))
    bad = _rows(scores[len(golds) :], len(sound) + len(open_ended))
    outside = [part for part in scorer.config.functions if part.name != ENVIRONMENT]
    parts: list[PartCheck] = []
    failures: list[RowFailure] = []
    silent = 0
    if any(part.weight for part in outside):
        table = [*good, *(row[: len(sound)] for row in bad)]
        failures = _errors(sound, table) + _errors(open_ended, [row[len(sound) :] for row in bad], silent=True)
        silent = sum(all(_nothing_applies(row[len(sound) + k]) for row in bad) for k in range(len(open_ended)))
    for part in outside:
        judge = part.name in JUDGES
        gold, garbage = _best(good, part.key), _best([row[: len(sound)] for row in bad], part.key)
        parts.append(PartCheck(label=part.key, judge=judge, gold=_mean(gold), garbage=_mean(garbage)))
        if judge:
            failures += _misjudged(sound, part.key, gold, garbage)
    return RewardCheck(
        checked=len(sound),
        without_gold=len(sample) - len(sound),
        parts=tuple(parts),
        failures=tuple(failures),
        open_ended=len(open_ended),
        silent=silent,
    )


def spread(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """At most `limit` of the prompts, evenly spread."""
    return [prompts[k * len(prompts) // limit] for k in range(limit)] if len(prompts) > limit else list(prompts)


def _rows(scores: Sequence[Score], width: int) -> list[Sequence[Score]]:
    """[texts][prompts]"""
    return [scores[start : start + width] for start in range(0, len(scores), width)] if width else []


def require_sound(scorer: Scorer, prompts: Sequence[Prompt], *, limit: int = 16) -> None:
    """Refuse to train with a built-in reward that refuses gold answers, or accepts garbage: hours would teach the
    wrong thing. Functions of the user's own may mean anything; they are refused when they fail on every prompt."""
    if any(part.name in JUDGES for part in scorer.config.functions):
        test = self_test(scorer, prompts, limit=limit)
        misjudged = {failure.prompt_id: failure for failure in test.failures}
        if not test.ok:
            first = next(iter(misjudged.values()))
            raise RewardError(
                f"the reward misjudges gold answers or garbage: {len(misjudged)} of "
                f"{counted(test.checked + test.open_ended, 'prompt')} looked at get a wrong score or none; the first: "
                f"{first.text}. Fix the gold answers or choose another reward; `coterie validate` shows more",
                function=first.part,
            )
    elif prompts:
        _require_scores(scorer, spread(prompts, _CALLED))


def _require_scores(scorer: Scorer, prompts: Sequence[Prompt]) -> None:
    """One completion a prompt, in one call: what fails on all of them would fail after the first step was sampled."""
    texts = [GARBAGE[-1] if prompt.answer is None else prompt.answer for prompt in prompts]
    words = [text.split() for text in texts]
    lengths, tokens = [len(each) for each in words], [list(range(len(each))) for each in words]
    scores = scorer.score(prompts, texts, lengths=lengths, tokens=tokens)
    errors = [str(score.error) for score in scores if score.error is not None and not _nothing_applies(score)]
    of_episodes = any(f"needs {name!r}" in error for error in errors for name in OF_ROLLOUT)
    if len(errors) == len(scores) and not of_episodes:
        raise RewardError(
            f"the reward fails on every prompt looked at ({len(scores)}); the first: {errors[0]}. `coterie validate` "
            "shows more",
            function=scorer.config.functions[0].name,
        )


def _nothing_applies(score: Score) -> bool:
    return score.error is not None and "no reward part applies" in score.error


def _errors(prompts: Sequence[Prompt], table: Sequence[Sequence[Score]], *, silent: bool = False) -> list[RowFailure]:
    """The first error of each prompt. That nothing applies is one only where nothing does to any text.

    Args:
        table: [texts][prompts]
        silent: that nothing applies is no failure at all.
    """
    failures = []
    for column, prompt in enumerate(prompts):
        scores = [row[column] for row in table]
        errors = [score.error for score in scores if score.error is not None and not _nothing_applies(score)]
        if not errors and scores and not silent and all(_nothing_applies(score) for score in scores):
            errors = [scores[0].error]
        if errors:
            failures.append(RowFailure(prompt_id=prompt.id, part=ROW, text=str(errors[0])))
    return failures


def _misjudged(
    prompts: Sequence[Prompt], label: str, gold: Sequence[float | None], garbage: Sequence[float | None]
) -> list[RowFailure]:
    failures = []
    for prompt, right, wrong in zip(prompts, gold, garbage, strict=True):
        if right is not None and right < 1 - 1e-6:
            text = f"the gold answer {prompt.answer!r} of prompt {prompt.id} scores {right:g}; expected 1"
            failures.append(RowFailure(prompt_id=prompt.id, part=label, text=text))
        if wrong is not None and wrong > CONSOLATION:
            text = f"garbage as an answer to prompt {prompt.id} scores {wrong:g}; expected 0"
            failures.append(RowFailure(prompt_id=prompt.id, part=label, text=text))
    return failures


def _best(table: Sequence[Sequence[Score]], label: str) -> list[float | None]:
    """[prompts] largest value of a part over the rows of the table; None where it never applied."""
    columns = zip(*table, strict=True)
    values = [[score.parts[label] for score in column] for column in columns]
    return [max((value for value in column if value is not None), default=None) for column in values]


def _mean(values: Sequence[float | None]) -> float | None:
    applicable = [value for value in values if value is not None]
    return sum(applicable) / len(applicable) if applicable else None


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:g}"


# Fingerprint of a reward: it changes with the settings, and with the source of custom functions.


def identity(rewards: RewardsConfig, environment: EnvironmentConfig | None = None) -> str:
    """Fingerprint of parts, steps and environment, with the source of their modules; deadlines and workers do not
    matter.

    A module is found where a worker looks for it, and read without being imported. What it imports in turn is not
    looked at, and one that is no Python file counts by its name.
    """
    settings = rewards.model_dump(mode="json", include={"functions", "steps"})
    for part in (*settings["functions"], *settings["steps"]):
        for form in ("completions", "prompts"):
            if part[form] == "auto":  # follows from the function, whose source is part of the name
                del part[form]
        if not part["gate"]:
            del part["gate"]  # as before there were gates
    if environment is not None and environment.talks:
        settings["environment"] = environment.model_dump(mode="json")
    named = [settings, sources(rewards, environment)]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def sources(rewards: RewardsConfig, environment: EnvironmentConfig | None = None) -> dict[str, str]:
    """For each `module:function` that scores or is a tool, the sha256 of its module's file; empty text without one.

    Built-in functions are left out, and functions of a Python session, whose names have a hash of the code in them.
    """
    names = {part.name for part in (*rewards.functions, *rewards.steps)} - {*BUILT_IN, *STEPS}
    names = {name for name in names if not is_by_value(name)}
    if environment is not None and environment.talks and ":" in environment.name:
        names.add(environment.name)
    if environment is not None and environment.name == "tools":
        entries = environment.params.get("tools") or ()
        targets = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in entries]
        names |= {target for target in targets if isinstance(target, str) and ":" in target}
    return {name: _digest(name.partition(":")[0]) for name in sorted(names)}


def _digest(module: str) -> str:
    places: Iterable[str] = [*search_path(), *filter(None, sys.path)]
    spec = None
    for name in _parents(module):
        spec = PathFinder.find_spec(name, list(places))
        if spec is None:
            return ""
        places = spec.submodule_search_locations or ()
    try:
        return "" if spec is None or spec.origin is None else hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    except OSError:
        return ""


def _parents(module: str) -> list[str]:
    """`a.b.c` → a, a.b, a.b.c."""
    names = module.split(".")
    return [".".join(names[: count + 1]) for count in range(len(names))]
