"""The settings, with their bounds, defaults and meaning. One class per section of the TOML file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from coterie.config.advantage import GroupingConfig
from coterie.config.algorithms import find
from coterie.config.base import Section
from coterie.config.conflicts import CONFLICTS
from coterie.config.data import DataConfig
from coterie.config.environment import ClusterConfig, EngineConfig, EnvironmentConfig
from coterie.config.imitation import RejectionConfig, SftConfig
from coterie.config.objective import (
    AdvantageConfig,
    CriticConfig,
    DistillConfig,
    ObjectiveConfig,
    ReferenceConfig,
    RolloutCorrectionConfig,
)
from coterie.config.optim import OptimConfig
from coterie.config.rewards import RewardsConfig
from coterie.config.stop import StopConfig
from coterie.errors import ConfigError


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
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
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
    distill: DistillConfig | None = None
    """Set to learn from a teacher's log-probs of the sampled tokens: on-policy distillation (`coterie distill`)."""
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

    def require_teacher(self) -> RunConfig:
        """The settings, which name a teacher.

        Raises:
            ConfigError: they do not.
        """
        if self.distill is None:
            raise ConfigError(
                "distill.teacher is missing: name the model that the student learns from, a run, a folder or an asset, "
                "e.g. --distill.teacher runs/NAME"
            )
        return self

    @property
    def advantages_alone(self) -> bool:
        """True if the gradient of a rollout is proportional to its advantage."""
        objective = self.objective
        in_loss = objective.kl_beta > 0 and objective.kl_in == "loss"
        entropy = objective.entropy_bonus > 0 or objective.entropy_target is not None
        # These look at every token.
        everywhere = objective.entropy_share < 1 or ":" in objective.loss or objective.loss in ("clip_cov", "kl_cov")
        return not (in_loss or entropy or everywhere or self.critic is not None)

    @property
    def estimator(self) -> str:
        """Name of the estimator of advantages."""
        return self.estimator_of_sections if self.advantage.estimator == "auto" else self.advantage.estimator

    @property
    def estimator_of_sections(self) -> str:
        """The estimator that the sections of the settings ask for."""
        if self.critic is not None:
            return "gae"
        return "group" if self.grouping.preset == "prompt" else "group_aware"

    @property
    def taught_alone(self) -> bool:
        """True if the teacher's signal is all that a token's advantage is made of."""
        return self.distill is not None and self.distill.reward_weight == 0

    @property
    def needs_siblings(self) -> bool:
        """True if the baseline is made of the other rollouts of the same prompt."""
        if self.sft is not None or self.rejection is not None or self.taught_alone:
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
