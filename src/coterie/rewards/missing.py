"""Mismatches of data and rewards: prompts that no reward can score, columns that no function can get."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.config.rewards import RewardsConfig
from coterie.data.layouts import likely_answer, listed
from coterie.data.prompts import PromptSet, SourceColumns
from coterie.rewards.base import RESERVED
from coterie.rewards.check import unjudged
from coterie.text import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Prompts of one source that cannot be scored."""

    text: str
    fatal: bool
    """They are too many of a prompt set to begin with."""


def unscorable_prompts(rewards: RewardsConfig, prompts: PromptSet, max_error_share: float) -> list[Gap]:
    """Prompts without a gold answer where every part with a weight needs one.

    Args:
        max_error_share: a larger share of them is fatal.
    """
    parts = rewards.functions
    hopeless = {prompt.id for prompt in unjudged(parts, prompts.prompts)}
    fatal = len(hopeless) > max_error_share * len(prompts.prompts)
    names = ", ".join(part.key for part in parts if part.weight)
    gaps = []
    for source in prompts.sources:
        missing = hopeless & source.prompts
        if missing:
            number = f"{len(missing)} of {counted(len(source.prompts), 'prompt')} of {source.source}"
            text = f"{number} cannot be scored: {names} needs a gold answer, and they have none; {_remedy(source)}"
            gaps.append(Gap(text=text, fatal=fatal))
            hopeless -= missing
    if hopeless:
        text = f"{counted(len(hopeless), 'prompt')} cannot be scored: {names} needs a gold answer, and they have none"
        gaps.append(Gap(text=text, fatal=fatal))
    return gaps


def hidden_columns(prompts: PromptSet) -> list[str]:
    """Warnings of data columns that are hidden by an argument of the same name."""
    names = {name for prompt in prompts.prompts for name in prompt.attributes} & set(RESERVED)
    return [
        f"the column {name!r} of the data does not reach reward functions: they get what belongs to the rollout under "
        "this name; rename the column"
        for name in sorted(names)
    ]


def _remedy(source: SourceColumns) -> str:
    columns = [column for column in source.columns if column not in ("prompt", "question")]
    example = likely_answer(columns)
    why = "; `solution` ends neither in a box nor in a `####` line" if source.unmarked else ""
    return (
        f"its columns are {listed(source.columns)}{why}; set answer_column on this source"
        + (f', e.g. answer_column = "{example}"' if example else "")
        + ", or add a reward that needs no gold answer"
    )
