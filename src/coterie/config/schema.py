"""The settings, with their bounds, defaults and meaning. One class per section of the TOML file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from coterie.config.advantage import GroupingConfig
from coterie.config.algorithms import find
from coterie.config.base import Section
from coterie.config.data import DataConfig
from coterie.config.imitation import RejectionConfig, SftConfig
from coterie.config.objective import (
    AdvantageConfig,
    CriticConfig,
    ObjectiveConfig,
    ReferenceConfig,
    RolloutCorrectionConfig,
)
from coterie.config.optim import OptimConfig
from coterie.config.parts import ENGINES, ENVIRONMENTS, Named
from coterie.config.rewards import RewardsConfig
from coterie.config.stop import StopConfig


class LoraConfig(Section):
    """Train a low-rank adapter (PEFT layout) instead of all weights."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Module names to adapt."""


class ModelConfig(Section):
    """The model to train."""

    name: str = "smollm2-135m"
    """An asset name (`coterie assets ls`), a local folder, or a transformers id."""
    revision: str | None = None
    """Pinned revision of a transformers id."""
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """Number format of the compute copy; auto = bfloat16 where the machine computes it natively. Master weights are
    float32 (float64 under float64)."""
    device: str = "auto"
    """auto (the first CUDA device, else the CPU), cpu, cuda, cuda:N, mps, xpu, or another device of torch."""
    lora: LoraConfig | None = None
    """Set to train an adapter; leave out to train all weights."""


class EnvironmentConfig(Section):
    """The environment of an episode: one completion, or several turns."""

    name: Annotated[str, Named(ENVIRONMENTS)] = "single_turn"
    """single_turn, the prompt and one answer; retry, another attempt after a wrong answer; running_sum, a sum asked one
    step at a time; dialogue, a user with a script; tools, which the model may call before it answers (docs/tools.md);
    or your own as `module:object`, a generator function or a class (docs/environments.md)."""
    max_turns: int = Field(default=8, ge=1)
    """Maximum number of turns of an episode; a longer one is truncated."""
    max_tokens: int = Field(default=1024, ge=2)
    """Longest episode in tokens, prompt and environment included. A turn is begun only if sampling.max_tokens, the
    limit of each turn, still fits."""
    delay: int = Field(default=1, ge=1)
    """Passes of the engine, about a token each, from the end of a turn to the next turn of its episode. An environment
    has that long before sampling waits for it; which turns share a pass never depends on how long it took."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of the environment's answer to a turn, seconds; an episode that misses it ends as env_error."""
    workers: int = Field(default=16, ge=1)
    """Most episodes whose environments answer at once, in threads; the built-in retry and running_sum need none."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the environment."""

    @model_validator(mode="after")
    def _used(self) -> EnvironmentConfig:
        if self.params and not self.talks:
            raise ValueError(f'name = "single_turn" takes no params, but params = {self.params}')
        return self

    @property
    def talks(self) -> bool:
        """True if there may be more than one turn."""
        return self.name != "single_turn"


class ReplayConfig(Section):
    """Train on whole groups of earlier steps again, while the policy is near the one that sampled them."""

    groups: int = Field(default=0, ge=0)
    """Past groups that join each step's update; 0 = off."""
    capacity: int = Field(default=64, ge=1)
    """Maximum number of kept groups; those with the least priority are removed first."""
    candidates: int = Field(default=2, ge=1)
    """Groups that are scored with the current policy (one forward pass each) for each one that may join."""
    max_age: int = Field(default=4, ge=1)
    """Greatest age of a group, in policy versions."""
    min_ratio: float = Field(default=0.5, gt=0, lt=1)
    """Lower limit of the geometric mean of π_now / π_sampler of each rollout; groups outside the limits are left
    out."""
    max_ratio: float = Field(default=2.0, gt=1)
    """Upper limit of the same mean."""
    half_life: float = Field(default=2.0, gt=0)
    """Versions in which a group's priority, its mean |advantage|, halves."""
    unbiased: bool = False
    """Weigh replayed advantages by the inverse of the probability to be drawn, so that all kept groups have the same
    expected weight; else groups with large advantages and fresh groups have more. Experimental."""

    @model_validator(mode="after")
    def _fits(self) -> ReplayConfig:
        if self.groups > self.capacity:
            raise ValueError(
                f"groups = {self.groups} past groups a step cannot come from a memory of capacity = {self.capacity}"
            )
        return self


class SamplingConfig(Section):
    """Sampling of rollouts."""

    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature: divides the logits, when sampling and when training."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; below 1 the sampler is no longer the policy, so training needs 1."""
    top_k: int = Field(default=0, ge=0)
    """Keep the k likeliest tokens; 0 = off. Training needs 0."""
    max_tokens: int = Field(default=128, ge=1)
    """Maximum completion length in tokens (max_new_tokens); with several turns, of each turn."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Strings that end a completion, beside the model's own end tokens. The tokens that write one are kept and trained;
    the text that rewards, environments and records see ends before it."""
    skip_special_tokens: bool = False
    """Leave every special token out of that text. By default only those that end, begin or pad a text or write the chat
    template's turns are left out, so that a `<think>` that is one token stays."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Timeout of one generation call in seconds of wall-clock time, all turns of the episodes together; unfinished
    completions are truncated. Hitting it makes a run irreproducible, and is reported."""


class CollectConfig(Section):
    """Collection of the rollouts of a step."""

    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts drawn per step."""
    group_size: int = Field(default=8, ge=1)
    """Rollouts per prompt. A batch is prompts_per_step × group_size rollouts. A group of one has no baseline of its
    own."""
    max_error_share: float = Field(default=0.1, ge=0, le=1)
    """Stop the run when a larger share of a step's rollouts ends in an error."""
    dynamic_sampling: bool = False
    """Replace groups whose attempts all have the same evaluated reward (eval.reward) by other prompts (DAPO's dynamic
    sampling)."""
    dynamic_sampling_limit: int = Field(default=10, ge=1)
    """Maximum number of times that a step samples, the first time included."""
    oversample: float = Field(default=1.0, ge=1)
    """Sample this many times the prompts, and stop when enough groups are complete; the other prompts are re-sampled in
    the next step, which waits for them. Faster, but it favours short completions. Experimental."""


class EngineConfig(Section):
    """Sampling engine."""

    name: Annotated[str, Named(ENGINES)] = "embedded"
    """`embedded` reads the learner's weights in place; or your own as `module:function` (docs/extending.md)."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Decode batch size, as in vLLM: sequences decoded at once, with continuous batching."""
    max_kept_tokens: int = Field(default=0, ge=0)
    """Most tokens of conversations between two turns whose keys and values are kept; beyond that the oldest is computed
    anew when its next turn comes. 0 = as many as the sequences decoded at once may hold."""


class EvalConfig(Section):
    """Held-out evaluation, at both ends and every n steps."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 = only at both ends."""
    samples: int = Field(default=4, ge=1)
    """Samples (completions) per held-out prompt."""
    k: int = Field(default=4, ge=1)
    """pass@k is reported in addition to pass@1; where only `samples` is set, at most that many."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the evaluation."""
    limit: int | None = Field(default=None, ge=1)
    """Evaluate only the first held-out prompts of each source."""
    reward: str = ""
    """Label of the reward that says what is correct (when it reaches 1); the first one when empty."""
    correct_threshold: float | None = None
    """A completion is correct, and counts in pass@k, when the evaluated part is at least this. none: when it reaches 1,
    if the part is binary (0 or 1); a graded part then has no pass@k, and the mean reward is reported alone."""

    @model_validator(mode="after")
    def _enough_samples(self) -> EvalConfig:
        if "k" not in self.model_fields_set:
            self.__dict__["k"] = min(self.k, self.samples)  # frozen for everybody else
        if self.k > self.samples:
            raise ValueError(f"eval.k = {self.k} needs at least as many eval.samples, which is {self.samples}")
        return self


class CheckpointConfig(Section):
    """Checkpoints."""

    every: int = Field(default=10, ge=0)
    """Steps between checkpoints; 0 = only at the end and on Ctrl-C."""
    keep: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep."""


class RunConfig(Section):
    """One training run."""

    name: str = ""
    """Folder under `runs`; made from the model, the task and a number when empty. Never overwritten."""
    runs: str = "runs"
    """Folder that holds all runs. Relative paths start at the file that names them, those of flags and of this default
    at the current directory."""
    module_path: list[str] = Field(default_factory=list)
    """Folders in which the modules of `module:function` are looked for first, in this order. The folder of each file
    that names such a function is added; then come the current directory and the installed modules."""
    seed: int = Field(default=0, ge=0)
    """Random seed; every random draw derives from it."""
    algorithm: str = "grpo"
    """Algorithm preset, e.g. dapo (`coterie algo ls`); your own settings override what it sets."""
    steps: int = Field(default=50, ge=1)
    """Training steps: collect, group, credit, update."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    """Trackers that are told every metric, beside the run's own records; each is an extra of its own."""
    threads: int = Field(default=0, ge=0)
    """Number of compute threads; 0 = OMP_NUM_THREADS, else the fastest measured (`coterie doctor` says why)."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    collect: CollectConfig = Field(default_factory=CollectConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    rewards: RewardsConfig = Field(default_factory=RewardsConfig)
    environment: EnvironmentConfig = Field(default_factory=EnvironmentConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    advantage: AdvantageConfig = Field(default_factory=AdvantageConfig)
    rollout_correction: RolloutCorrectionConfig = Field(default_factory=RolloutCorrectionConfig)
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    grouping: GroupingConfig = Field(default_factory=GroupingConfig)
    replay: ReplayConfig = Field(default_factory=ReplayConfig)
    critic: CriticConfig | None = None
    """Set to learn a value of each token (PPO); leave out for GRPO."""
    sft: SftConfig | None = None
    """Set to imitate the rows of data.train instead of sampling: supervised fine-tuning, which `coterie sft` sets."""
    rejection: RejectionConfig | None = None
    """Set to keep the best rollouts as rows instead of training: rejection sampling (`coterie rejection`)."""
    optim: OptimConfig = Field(default_factory=OptimConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    stop: StopConfig = Field(default_factory=StopConfig)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        self._check_algorithm()
        labels = self.rewards.labels()
        if self.eval.reward and self.eval.reward not in labels:
            raise ValueError(f"eval.reward = {self.eval.reward!r} is not a reward part; expected one of {labels}")
        for conflict, message in CONFLICTS:
            if conflict(self):
                raise ValueError(message.format(c=self))
        if self.grouping.preset != "prompt" and self.grouping.reward_range is not None:
            self._check_bounds(*self.grouping.reward_range)
        return self

    def with_table(self, name: Literal["sft", "rejection"]) -> RunConfig:
        """The settings with this table, where they had none."""
        table = {"sft": SftConfig, "rejection": RejectionConfig}[name]
        return self if getattr(self, name) is not None else self.model_copy(update={name: table()})

    @property
    def advantages_alone(self) -> bool:
        """True if the gradient of a rollout is proportional to its advantage."""
        objective = self.objective
        in_loss = objective.kl_beta > 0 and objective.kl_in == "loss"
        entropy = objective.entropy_bonus > 0 or objective.entropy_target is not None
        everywhere = objective.entropy_share < 1 or ":" in objective.loss  # these look at every token
        return not (in_loss or entropy or everywhere or self.critic is not None)

    @property
    def estimator(self) -> str:
        """Name of the estimator of advantages."""
        return self._estimator_of_sections if self.advantage.estimator == "auto" else self.advantage.estimator

    @property
    def _estimator_of_sections(self) -> str:
        if self.critic is not None:
            return "gae"
        return "group" if self.grouping.preset == "prompt" else "group_aware"

    @property
    def needs_siblings(self) -> bool:
        """True if the baseline is made of the other rollouts of the same prompt."""
        if self.sft is not None or self.rejection is not None:
            return False
        apart = self.advantage.baseline in ("none", "batch_mean") or ":" in self.advantage.baseline
        shipped = ":" not in self.estimator and self.estimator != "gae"
        return shipped and not apart and self.grouping.preset in ("prompt", "rloo", "js2")

    def _check_algorithm(self) -> None:
        """Refuse settings made in Python that name a preset without containing it."""
        for key in find(self.algorithm).settings:
            section, _, name = key.partition(".")
            table = getattr(self, section)
            given = section in self.model_fields_set if table is None else name in table.model_fields_set
            if not given:
                raise ValueError(
                    f"algorithm = {self.algorithm!r} sets {key}, which is missing: put the settings through "
                    "coterie.config.algorithms.filled first"
                )

    def _check_bounds(self, smallest: float, largest: float) -> None:
        """Check `grouping.reward_range` against the possible rewards: shipped functions lie within 0 and 1, penalties
        within -1 and 0, and a sum outside would end the run at the first such rollout."""
        parts = [part for part in self.rewards.functions if not part.gate]
        sizes = [(-1.0, 0.0) if part.name in ("overlong", "call_cost") else (0.0, 1.0) for part in parts]
        weights = [1.0 if self.grouping.per_reward else part.weight for part in parts]
        ends = [(weight * low, weight * high) for weight, (low, high) in zip(weights, sizes, strict=True)]
        if self.grouping.per_reward:
            low, high = min(min(pair) for pair in ends), max(max(pair) for pair in ends)
        else:
            low, high = sum(min(pair) for pair in ends), sum(max(pair) for pair in ends)
        low = min(low, 0.0) if len(parts) < len(self.rewards.functions) else low  # a closed gate
        if low < smallest - 1e-9 or high > largest + 1e-9:
            raise ValueError(
                f"the reward may lie between {low:g} and {high:g}, beyond grouping.reward_range = "
                f"[{smallest}, {largest}]; set grouping.reward_range = [{low:g}, {high:g}], or none to measure it"
            )


SHIPPED = ("group", "gae", "group_aware")
"""Estimators that sections of the settings choose."""


def _baselined(advantage: AdvantageConfig) -> dict[str, Any]:
    """What is set of a group's baseline and scale."""
    return advantage.model_dump(exclude_defaults=True, exclude={"estimator"})


CONFLICTS: tuple[tuple[Callable[[RunConfig], object], str], ...] = (
    (
        lambda c: not c.environment.talks and c.rewards.environment,
        'the reward part "environment" is what an environment gives, and environment.name = "single_turn" gives '
        "nothing; name another environment, or leave the part out",
    ),
    (
        lambda c: c.environment.talks and c.collect.oversample > 1,
        "collect.oversample = {c.collect.oversample} stops when enough prompts are whole, which is not known before "
        "the last turn of environment.name = {c.environment.name!r}; set collect.oversample = 1",
    ),
    (
        lambda c: c.environment.talks and c.environment.max_tokens <= c.sampling.max_tokens,
        "environment.max_tokens = {c.environment.max_tokens} leaves no room for a prompt beside a turn of "
        "sampling.max_tokens = {c.sampling.max_tokens}; raise it, or lower sampling.max_tokens",
    ),
    (
        lambda c: any(part.gate for part in c.rewards.functions) and (c.advantage.per_reward or c.grouping.per_reward),
        "a gate multiplies the sum of the parts, and per_reward judges each part on its own; leave out gate or "
        "per_reward",
    ),
    (
        lambda c: c.collect.group_size < 2 and c.needs_siblings,
        "collect.group_size = {c.collect.group_size} is too small: advantage.baseline = "
        '"{c.advantage.baseline}" needs at least 2 rollouts per prompt',
    ),
    (
        lambda c: c.reference.sync_every and c.objective.kl_beta == 0,
        "reference.sync_every needs objective.kl_beta > 0: without a KL there is no reference",
    ),
    (
        lambda c: c.reference.sync_every and c.model.lora is not None,
        "reference.sync_every needs all weights to be trained: the reference of an adapter is the model without it; "
        "set reference.sync_every = 0, or leave out model.lora",
    ),
    (
        lambda c: c.advantage.estimator in SHIPPED and c.estimator != c._estimator_of_sections,
        'advantage.estimator = "{c.advantage.estimator}" does not fit the other settings, which make it '
        '"{c._estimator_of_sections}": gae needs critic, group_aware a grouping.preset other than "prompt", and group '
        "neither",
    ),
    (
        lambda c: c.grouping.allocate and c.estimator != "group_aware",
        "grouping.allocate is of the group-aware estimator; leave it out with advantage.estimator = "
        '"{c.advantage.estimator}"',
    ),
    (
        lambda c: c.estimator == "gae" and _baselined(c.advantage) not in ({}, {"whiten": "tokens"}),
        'with a critic, advantages are its own: of [advantage] only whiten = "none" or "tokens" applies',
    ),
    (
        lambda c: c.critic and c.critic.bounded and c.critic.clip is not None,
        "critic.clip bounds a squared error; with critic.bounded = true leave it out",
    ),
    (
        lambda c: (
            c.collect.dynamic_sampling
            and (
                c.critic
                or c.grouping.preset not in ("prompt", "rloo")
                or c.advantage.baseline in ("none", "batch_mean", "js2")
            )
        ),
        "collect.dynamic_sampling keeps groups by their outcome, which biases a baseline that is not the group's own; "
        "set collect.dynamic_sampling = false",
    ),
    (
        lambda c: c.grouping.preset != "prompt" and (c.critic or _baselined(c.advantage)),
        'grouping.preset = "{c.grouping.preset}" has a baseline and a scale of its own; leave out critic and the '
        "settings of advantage",
    ),
    (
        lambda c: c.grouping.allocate and not c.grouping.least <= c.collect.group_size <= c.grouping.most,
        "grouping.least = {c.grouping.least} and most = {c.grouping.most} must have collect.group_size = "
        "{c.collect.group_size}, the mean, between them",
    ),
    (
        lambda c: c.grouping.preset != "prompt" and c.grouping.unbiased and c.objective.loss_agg_mode == "prompt-mean",
        'grouping.unbiased weighs rollouts; objective.loss_agg_mode = "prompt-mean" would undo it',
    ),
    (
        lambda c: c.grouping.allocate and (c.collect.dynamic_sampling or c.collect.oversample > 1),
        "grouping.allocate chooses the prompts; leave out collect.dynamic_sampling and collect.oversample",
    ),
    (
        lambda c: c.replay.groups and c.critic,
        "replay.groups trains on advantages as they were credited, and a critic's are made of its values of then; "
        "leave out critic, or set replay.groups = 0",
    ),
    (
        lambda c: c.replay.groups and c.reference.sync_every == 1,
        "replay.groups finds nothing: a renewed reference empties the memory, and reference.sync_every = 1 renews it "
        "after every step; renew it less often, or set replay.groups = 0",
    ),
    (
        lambda c: c.optim.minibatches > c.collect.prompts_per_step * c.collect.group_size,
        "optim.minibatches = {c.optim.minibatches} is more than the batch of {c.collect.prompts_per_step} prompts × "
        "{c.collect.group_size} rollouts",
    ),
    (
        lambda c: c.optim.subsample and not c.advantages_alone,
        "optim.subsample = {c.optim.subsample} leaves rollouts out by their advantage, but here a rollout without any "
        "has a gradient too: it needs no KL in the loss, no entropy term (entropy_bonus, entropy_target, "
        "entropy_share < 1), no loss of your own and no critic",
    ),
)
"""Settings that exclude each other: (predicate of the conflict, message)."""
