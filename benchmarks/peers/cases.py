"""What is measured: one visible table. Every case is the same work for each side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coterie.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shape of a GRPO step."""

    name: str
    prompts: int
    """Distinct prompts."""
    group_size: int
    """Rollouts per prompt."""
    prompt_tokens: int
    """About how long a prompt is, chat template included."""
    max_tokens: int
    """Longest completion."""
    kl_beta: float = 0.0
    """Weight of the KL to the frozen reference."""
    lora_rank: int = 0
    """Rank of an adapter on all linear layers; 0 trains all weights."""

    @property
    def rollouts(self) -> int:
        return self.prompts * self.group_size

    @property
    def title(self) -> str:
        """One line for a table's row."""
        extra = [f"LoRA {self.lora_rank}"] * bool(self.lora_rank) + [f"β = {self.kl_beta:g}"] * bool(self.kl_beta)
        shape = f"{self.prompts}×{self.group_size}, prompt ~{self.prompt_tokens}, ≤ {self.max_tokens} new"
        return ", ".join([shape, *extra])


# The longer the prompt, the fewer rollouts: a peer that pads and repeats needs minutes and many GB for them already.
CASES: tuple[Case, ...] = (
    Case(name="headline", prompts=8, group_size=8, prompt_tokens=64, max_tokens=64),
    Case(name="4x16", prompts=4, group_size=16, prompt_tokens=64, max_tokens=64),
    Case(name="new-256", prompts=8, group_size=8, prompt_tokens=64, max_tokens=256),
    Case(name="prompt-512", prompts=4, group_size=8, prompt_tokens=512, max_tokens=64),
    Case(name="prompt-2048", prompts=2, group_size=8, prompt_tokens=2048, max_tokens=64),
    Case(name="kl", prompts=8, group_size=8, prompt_tokens=64, max_tokens=64, kl_beta=0.04),
    Case(name="lora", prompts=8, group_size=8, prompt_tokens=64, max_tokens=64, lora_rank=16),
)
HEADLINE = CASES[0]


def select(names: str | None) -> Sequence[Case]:
    """The cases of a comma-separated list; all of them for None.

    A list may also hold shapes that the table lacks, as `PROMPTSxGROUP:PROMPT_TOKENS:MAX_TOKENS`, e.g. `2x2:64:8`.

    Raises:
        ConfigError: no such case.
    """
    if names is None:
        return CASES
    by_name = {case.name: case for case in CASES}
    return [by_name[name] if name in by_name else _shape(name, by_name) for name in names.split(",")]


def _shape(text: str, cases: dict[str, Case]) -> Case:
    try:
        size, length, limit = text.split(":")
        prompts, group_size = size.split("x")
        case = Case(
            name=text,
            prompts=int(prompts),
            group_size=int(group_size),
            prompt_tokens=int(length),
            max_tokens=int(limit),
        )
    except ValueError:
        case = None
    if case is None or min(case.prompts, case.prompt_tokens, case.max_tokens) < 1 or case.group_size < 2:
        raise ConfigError(
            f"there is no case {text!r}; expected some of {', '.join(cases)}, or a shape such as 2x2:64:8 "
            "(prompts x group size : prompt tokens : longest completion)"
        )
    return case
