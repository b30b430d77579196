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
    empirical_bayes, one model of all scales; mixture, a mixture of these with weights learned from their errors; or
    your own baseline as `module:function`, which gets a view of the step (`coterie.grouping.custom.View`) and returns
    one number for each rollout."""
    ablate: list[Part] = Field(default_factory=list)
    """Ablation: scales (siblings, batch, prompt, tree, key, linear, root, state) and signals (semantic, complexity,
    task, key, reward, temporal) to leave out."""
    weights: Literal["probability", "length", "none"] = "length"
    """Weight of a rollout in means and errors: probability, Σ (1 - p)² over its tokens as sampled (about the squared
    norm of its score), for the least variance of the gradient; length, its tokens; none, 1. The expected reward of a
    prompt, for `allocate` and `scale = "expected"`, is always a plain mean."""
    embedding: Annotated[str, Field(min_length=1)] = "policy"
    """Similarity of prompts: `policy`, the mean of the policy's hidden states at the middle layer; `none`; or a
    sentence encoder, by asset name (`minilm-l6`), folder or transformers id."""
    key: UserFunction | None = None
    """A scale of your own: `module:function` gets a prompt and returns a text (prompts of the same text are a group) or
    a number (a feature); regions may be split by either."""
    dimensions: int = Field(default=16, ge=1)
    """Principal components of the embedding."""
    decay_steps: float = Field(default=40.0, gt=0)
    """Steps in which evidence about a region decays to 1/e."""
    prompt_decay_steps: float = Field(default=120.0, gt=0)
    """Steps in which evidence about a single prompt decays to 1/e."""
    max_leaves: int = Field(default=48, ge=1)
    """Maximum number of regions."""
    min_weight: float = Field(default=40.0, gt=0)
    """Minimum number of rollouts of a region."""
    refit_every: int = Field(default=10, ge=1)
    """Steps between fits of the tree of regions (more often at the start)."""
    reward_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        default_factory=lambda: [0.0, 1.0]
    )
    """Smallest and largest reward; none measures the range on the first step."""
    scale: Literal["history", "expected", "none"] = "history"
    """What advantages are divided by: history, the root mean squared error of past predictions, one number for all
    prompts; expected, the expected standard deviation of the prompt's rewards, √(p(1 - p)), which gives hard and easy
    prompts more weight, as in GRPO; or nothing."""
    per_reward: bool = False
    """One model for each reward; their advantages are added with the rewards' weights. Experimental."""
    allocate: bool = False
    """Draw prompts by the expected standard deviation of their rewards, √(p(1 - p)), over the root of their expected
    cost; how many rollouts each gets is the two-stage optimum within `least` and `most`."""
    candidates: int = Field(default=4, ge=1)
    """Prompts considered for each one of `collect.prompts_per_step`."""
    answer_cost: float = Field(default=3.0, gt=0)
    """Cost of a sampled token in tokens of a prompt: sampling and update over prefill and update."""
    skip: float = Field(default=0.0, ge=0, lt=0.5)
    """Prompts whose expected reward lies within this share of the range from its smallest or largest value are skipped,
    but for `review`; 0 skips none."""
    least: int = Field(default=1, ge=1)
    """Fewest rollouts of a drawn prompt."""
    most: int = Field(default=8, ge=1)
    """Most rollouts of a drawn prompt."""
    review: float = Field(default=0.1, ge=0, lt=1)
    """Share of the draws for prompts that are skipped, so that what is solved does not fade and nothing is lost for
    good."""
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
        if self.skip and not self.review:
            raise ValueError(
                f"skip = {self.skip} with review = 0 would lose what is skipped for good; give review a share of the "
                "draws"
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
                "allocate = true needs a preset with an expected reward of each prompt, tracker, empirical_bayes or "
                "mixture; it is "
                f'"{self.preset}"'
            )
        return self
