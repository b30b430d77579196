"""Does the reward know right from wrong? Gold answers and garbage, scored through the real path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from coterie.config.rewards import RewardsConfig
from coterie.errors import RewardError
from coterie.rewards.base import Score
from coterie.types import Prompt

JUDGES = ("task", "exact", "number", "math")
"""Built-in parts that must give 1 to a gold answer and 0 to garbage."""
ENVIRONMENT = "environment"
"""The built-in part that no text has without an episode."""
CONSOLATION = 0.05
"""What a reasoning-gym scorer may give to a wrong answer."""
GARBAGE = ("", "zzz no answer zzz")
LAYOUTS = ("{}", "<think>Known.</think>\n<answer>{}</answer>", "\\boxed{{{}}}")
"""A gold answer counts as accepted when it is accepted in one of these."""
MAX_SHARE = 0.05
"""A larger share of failing prompts fails the check; below it is a warning."""
_SHOWN = 3


class Scorer(Protocol):
    config: RewardsConfig

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Sequence[Score]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCheck:
    """What one part gives."""

    label: str
    judge: bool
    """Whether it must give 1 to gold answers and 0 to garbage."""
    gold: float | None
    """Mean over prompts of the best layout's value; None where it never applied."""
    garbage: float | None
    """Mean over prompts of the largest value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFailure:
    """A prompt that is not scored as it should be."""

    prompt_id: str
    part: str
    """Label of the part, or `reward` where the whole row could not be scored."""
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

    @property
    def ok(self) -> bool:
        failed = {failure.prompt_id for failure in self.failures}
        return len(failed) <= MAX_SHARE * self.checked

    def lines(self) -> list[tuple[Literal["ok", "warn", "fail"], str, str]]:
        """Verdict, subject and text of each fact, for a person."""
        if not self.checked:
            return [("warn", "rewards", "no prompt has a gold answer, so the reward cannot be checked before the run")]
        lines: list[tuple[Literal["ok", "warn", "fail"], str, str]] = []
        for part in self.parts:
            broken = any(failure.part == part.label for failure in self.failures)
            level = ("warn" if self.ok else "fail") if broken else "ok"
            text = f"gold answers score {_shown(part.gold)}, garbage {_shown(part.garbage)}"
            if not part.judge and not broken and (part.gold is None or part.gold <= (part.garbage or 0.0)):
                level, text = "warn", f"{text}: it does not tell them apart"
            lines.append((level, f"reward {part.label}", f"{text} ({self.checked} prompts)"))
        for failure in self.failures[:_SHOWN]:
            lines.append(("warn" if self.ok else "fail", f"reward {failure.part}", failure.text))
        if len(self.failures) > _SHOWN:
            lines.append(("warn", "rewards", f"{len(self.failures) - _SHOWN} more failures like these"))
        return lines


def self_test(scorer: Scorer, prompts: Sequence[Prompt], *, limit: int = 32) -> RewardCheck:
    """Score the gold answers (in several layouts) and garbage of up to `limit` prompts, spread over all of them.

    Raises:
        RewardError: a reward function cannot be imported, or does not take its params.
    """
    seen = [prompts[k * len(prompts) // limit] for k in range(limit)] if len(prompts) > limit else list(prompts)
    sound = [prompt for prompt in seen if prompt.answer is not None]
    golds = [layout.format(prompt.answer) for layout in LAYOUTS for prompt in sound]
    junk = [text for text in GARBAGE for _ in sound]
    asked = sound * (len(LAYOUTS) + len(GARBAGE))
    scores = scorer.score(asked, golds + junk)
    # [row of scores per layout or garbage text][prompt]
    table = [scores[k * len(sound) : (k + 1) * len(sound)] for k in range(len(LAYOUTS) + len(GARBAGE))]
    good, bad = table[: len(LAYOUTS)], table[len(LAYOUTS) :]
    asked_here = [part for part in scorer.config.parts if part.name != ENVIRONMENT]
    parts, failures = [], _errors(sound, table) if any(part.weight for part in asked_here) else []
    for part in asked_here:
        judge = part.name in JUDGES
        gold, garbage = _best(good, part.key), _best(bad, part.key)
        parts.append(PartCheck(label=part.key, judge=judge, gold=_mean(gold), garbage=_mean(garbage)))
        if judge:
            failures += _misjudged(sound, part.key, gold, garbage)
    return RewardCheck(
        checked=len(sound), without_gold=len(seen) - len(sound), parts=tuple(parts), failures=tuple(failures)
    )


def require_sound(scorer: Scorer, prompts: Sequence[Prompt], *, limit: int = 16) -> None:
    """Refuse to train with a built-in judge that refuses the gold answers, or accepts garbage: hours would teach the
    wrong thing. Functions of the user's own may mean anything, and are not asked.

    Raises:
        RewardError: more than `MAX_SHARE` of the prompts looked at are misjudged; the first is named.
    """
    if not any(part.name in JUDGES for part in scorer.config.parts):
        return
    found = self_test(scorer, prompts, limit=limit)
    misjudged = {failure.prompt_id: failure for failure in found.failures}
    if len(misjudged) > MAX_SHARE * found.checked:
        first = next(iter(misjudged.values()))
        raise RewardError(
            f"the reward does not know right from wrong: of {found.checked} prompts looked at, {len(misjudged)} are "
            f"misjudged; the first: {first.text}. Mend the gold answers or choose another reward; `coterie validate` "
            "shows more",
            function=first.part,
        )


def _errors(prompts: Sequence[Prompt], table: Sequence[Sequence[Score]]) -> list[RowFailure]:
    """The first error of each prompt."""
    failures = []
    for column, prompt in enumerate(prompts):
        errors = [scores[column].error for scores in table if scores[column].error is not None]
        if errors:
            failures.append(RowFailure(prompt_id=prompt.id, part="reward", text=str(errors[0])))
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
    found = [[score.parts[label] for score in column if score.parts[label] is not None] for column in columns]
    return [max((v for v in values if v is not None), default=None) for values in found]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:g}"
