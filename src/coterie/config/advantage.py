"""Settings of the group-aware baseline."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from coterie.config.base import Section
from coterie.config.objective import UserFunction

Part = Literal[
    "siblings",
    "batch",
    "prompt",
    "tree",
    "key",
    "linear",
    "root",
    "state",
    "semantic",
    "complexity",
    "task",
    "reward",
    "temporal",
]


class GroupingConfig(Section):
    """Baselines from groups at several scales: siblings, step, the prompt's past, regions of similar prompts, all."""

    preset: Literal["prompt", "rloo", "global", "tracker", "js2", "empirical_bayes", "mixture"] | UserFunction = (
        "prompt"
    )
    """prompt is plain GRPO (see `advantage`); global, the step's other rollouts; tracker, the prompt's own past (SPO);
    empirical_bayes, every scale in one model; mixture, several of these, weighted by what their errors cost; or your
    own baseline as `module:function`, which gets a view of the step (`coterie.grouping.custom.View`) and returns one
    number for each rollout."""
    ablate: list[Part] = Field(default_factory=list)
    """Scales (siblings, batch, prompt, tree, key, linear, root; state, of turns that other attempts took from the same
    state) and signals (semantic, complexity, task, key, reward, temporal) to leave out: an ablation."""
    weights: Literal["probability", "length", "none"] = "length"
    """What a rollout counts for in means and errors, so that the variance of the gradient falls and not only the error
    of the mean: Σ (1 - p)² over its tokens as sampled (about the squared norm of its score), its length, or all alike.
    What is expected of a prompt, for `allocate` and `scale = "expected"`, is a plain mean whatever this says."""
    embedding: Annotated[str, Field(min_length=1)] = "policy"
    """Similarity of prompts: `policy`, the mean of its own hidden states half way up; `none`; or a sentence encoder, by
    asset name (`minilm-l6`), folder or transformers id."""
    key: UserFunction | None = None
    """A scale of your own: `module:function` gets a prompt and returns a text, whose prompts become a group, or a
    number; regions may be drawn by either."""
    dimensions: int = Field(default=16, ge=1)
    """Principal directions kept of the embedding."""
    decay_steps: float = Field(default=40.0, gt=0)
    """Steps in which what is known of a region fades to 1/e."""
    prompt_decay_steps: float = Field(default=120.0, gt=0)
    """Steps in which what is special to a prompt fades to 1/e."""
    max_leaves: int = Field(default=48, ge=1)
    """Most regions."""
    min_weight: float = Field(default=40.0, gt=0)
    """Rollouts that a region needs."""
    refit_every: int = Field(default=10, ge=1)
    """Steps between two drawings of the regions' boundaries (more often at the start)."""
    reward_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        default_factory=lambda: [0.0, 1.0]
    )
    """Smallest and largest reward; none measures the range on the first step."""
    scale: Literal["history", "expected", "none"] = "history"
    """Scale of the advantages: history, the root mean squared error of the past, one number for all; expected,
    the standard deviation that is expected of the prompt, √(p(1 - p)), so that hard ones count more, as in GRPO; or
    nothing."""
    per_reward: bool = False
    """One model for each reward; their advantages are added with the rewards' weights. Experimental."""
    allocate: bool = False
    """Draw the prompts, and how many rollouts each gets, by what they are expected to teach: p(1 - p)."""
    candidates: int = Field(default=4, ge=1)
    """Prompts looked at for each one drawn."""
    least: int = Field(default=1, ge=1)
    """Fewest rollouts of a drawn prompt."""
    most: int = Field(default=8, ge=1)
    """Most rollouts of a drawn prompt."""
    review: float = Field(default=0.1, ge=0, lt=1)
    """Share of the drawn prompts from regions that are solved, so that they stay so."""
    unbiased: bool = False
    """Weigh advantages so that the objective stays the mean over all prompts. Experimental."""

    @model_validator(mode="after")
    def _fits(self) -> GroupingConfig:
        if self.reward_range is not None and self.reward_range[0] >= self.reward_range[1]:
            raise ValueError(f"reward_range = {self.reward_range} must be the smallest reward, then the largest")
        if self.scale == "expected" and self.reward_range is None:
            raise ValueError(
                'scale = "expected" needs reward_range, the smallest and the largest: between them a mean says '
                "how far rewards can spread"
            )
        if self.least > self.most:
            raise ValueError(f"least = {self.least} must not be above most = {self.most}")
        if self.key and self.preset not in ("empirical_bayes", "mixture") and ":" not in self.preset:
            raise ValueError(
                f'key = "{self.key}" is read by empirical_bayes, mixture and your own baseline only, not '
                f'"{self.preset}"'
            )
        if self.allocate and (self.preset in ("prompt", "rloo", "global", "js2") or ":" in self.preset):
            raise ValueError(
                "allocate = true needs a preset that expects something of a prompt, tracker, empirical_bayes or "
                "mixture; it is "
                f'"{self.preset}"'
            )
        return self
