"""Argument forms of reward functions: completions and prompts as text, or as TRL's lists of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coterie.config.rewards import RewardConfig
from coterie.rewards.base import Form
from coterie.rewards.round import Manner, Rollouts, ScoringBatch
from coterie.types import Prompt

SIGNS = (
    "string indices must be integers",
    "list indices must be integers",
    "'str' object has no attribute",
    "'list' object has no attribute",
    "'str' object does not support",
    "expected string or bytes-like object",
    "can only concatenate",
    "must be str, not list",
)
"""Python's messages for text used as a list of messages, or the reverse."""
_TRIED: tuple[tuple[Form, Form], ...] = (("text", "messages"), ("messages", "messages"), ("text", "text"))
"""(completions, prompts) in the order of preference; the second and third are TRL's two."""


class Forms:
    """Argument forms of all parts, and the trial calls that decide open ones.

    The outcome depends on the function and the first prompt alone, never on what a model says, so that a resumed run
    comes to the same.

    Args:
        parts: settings of all parts, step rewards included.
    """

    def __init__(self, parts: Sequence[RewardConfig]) -> None:
        self.parts = parts
        self.manners = [Manner()] * len(parts)
        self.notes: list[str] = []
        self._open: dict[int, list[tuple[Form, Form]]] = {}
        """Forms that are still possible, by part."""
        self._inspected = False

    @property
    def resolved(self) -> bool:
        return self._inspected and not self._open

    def add_facts(self, facts: Sequence[Mapping[str, Any]]) -> None:
        """Add what a worker read off the imported functions; only the first time counts."""
        if self._inspected:
            return
        self._inspected = True
        for index, (part, fact) in enumerate(zip(self.parts, facts, strict=True)):
            chosen = {"completions": part.completions, "prompts": part.prompts}
            forms = {name: fact["forms"][name] if form == "auto" else form for name, form in chosen.items()}
            possible = [
                pair
                for pair in _TRIED
                if all(forms[name] in (None, form) for name, form in zip(chosen, pair, strict=True))
            ]
            if not possible:  # the fourth pair, which somebody asked for
                possible = [(forms["completions"] or "text", forms["prompts"] or "messages")]
            self._choose(index, possible[0], ids=fact["ids"], told=part.completions == "auto")
            if len(possible) > 1:
                self._open[index] = possible

    def trials(self, prompt: Prompt, names: Sequence[str], state: Mapping[str, int]) -> Iterator[ScoringBatch]:
        """Trial calls to be run one by one: each open part, with one row, in each form until it accepts one.

        Args:
            names: columns that any prompt has.
        """
        text = prompt.answer if prompt.answer and prompt.answer.strip() else "42"
        for index, possible in list(self._open.items()):
            for number, (completions, prompts) in enumerate(possible):
                manner = Manner(completions=completions, prompts=prompts, ids=self.manners[index].ids)
                rollouts = Rollouts(lengths=[8], tokens=[list(range(8))], state=state)
                manners = [manner] * len(self.parts)
                scoring = ScoringBatch(
                    self.parts, [prompt], [text], shares=1, columns=names, rollouts=rollouts, manners=manners
                )
                scoring.restrict(index)
                yield scoring
                error = scoring.first_error()
                if number == 0 and (error is None or not any(sign in error for sign in SIGNS)):
                    break
                if error is None:
                    self._choose(index, (completions, prompts), ids=manner.ids, told=True)
                    break
            del self._open[index]

    def _choose(self, index: int, pair: tuple[Form, Form], *, ids: bool, told: bool) -> None:
        completions, prompts = pair
        self.manners[index] = Manner(completions=completions, prompts=prompts, ids=ids)
        if not told or pair == _TRIED[0]:
            return
        name, value = ("completions", completions) if completions == "messages" else ("prompts", prompts)
        form = "lists of messages, TRL's conversational form" if value == "messages" else "text"
        self.notes.append(
            f"reward {self.parts[index].name!r} is written for {name} as {form}, and gets them so "
            f'({name} = "{value}" in its table says the same)'
        )
