"""Settings of the objective: loss, advantages, train-inference mismatch, reference model and critic.

Each setting is one choice; a published method is a preset of them in `coterie.config.algorithms`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from coterie.config.base import Section
from coterie.config.parts import ESTIMATORS, Named
from coterie.config.user_functions import FUNCTION

UserFunction = Annotated[str, Field(pattern=FUNCTION)]


class ObjectiveConfig(Section):
    """The policy loss, its trust region, its denominator, and the KL and entropy terms."""

    ratio: Literal["token", "sequence", "sequence_token"] = "token"
    """Importance-sampling level: token (PPO, GRPO), sequence, the geometric mean over the completion (GSPO), or
    sequence_token, that mean with each token's own gradient (GSPO-token)."""
    loss: (
        Literal["clip", "unclipped", "cispo", "sapo", "gmpo", "dppo_tv", "dppo_kl", "vespo", "clip_cov", "kl_cov"]
        | UserFunction
    ) = "clip"
    """Policy loss: clip, PPO's min(ρA, clip(ρ)A); unclipped, ρA; cispo, the clipped ratio as a constant weight; sapo, a
    sigmoid gate; gmpo, the clipped geometric mean; dppo_tv or dppo_kl, a mask by the change of the token's probability;
    vespo, a smooth weight of the whole completion's ratio; clip_cov, clip without some of the tokens whose log-prob and
    advantage covary; kl_cov, ρA with a penalty on those that covary most; or `module:function`."""
    clip_low: float = Field(default=0.2, gt=0)
    """Lower bound: 1 - clip_low of the ratio (clip, cispo; 1 or more is no bound), e^-clip_low (gmpo), or the allowed
    fall of a probability (dppo_tv) and the allowed divergence (dppo_kl)."""
    clip_high: float = Field(default=0.2, gt=0)
    """Upper bound, in the same units."""
    dual_clip: float | None = Field(default=None, gt=1)
    """For negative advantages, the ratio counts at most this much (dual-clip PPO); none = no bound."""
    delta: float | None = Field(default=None, gt=1)
    """Two-sided clipping: the ratio never counts more than this, for either sign (INTELLECT-2, TRL's delta); larger
    than 1 + clip_high."""
    sapo_tau_pos: float = Field(default=1.0, gt=0)
    """Temperature of SAPO's gate for positive advantages."""
    sapo_tau_neg: float = Field(default=1.05, gt=0)
    """Temperature of SAPO's gate for negative advantages."""
    clip_cov_ratio: float = Field(default=2e-4, gt=0, le=1)
    """Share of the tokens of an optimizer step that clip_cov leaves out, at least one (verl)."""
    clip_cov_lb: float = 1.0
    """clip_cov draws them among the tokens whose covariance is above this, in nats times advantage,"""
    clip_cov_ub: float = 5.0
    """and below this."""
    kl_cov_ratio: float = Field(default=2e-4, gt=0, le=1)
    """Share of the tokens of an optimizer step, those of highest covariance, that kl_cov penalises (verl); at least
    one."""
    ppo_kl_coef: float = Field(default=1.0, ge=0)
    """Coefficient of kl_cov's penalty, |log ρ|, which has no gradient at ρ = 1: in the first optimizer step of a
    batch."""
    positive_weight: float = Field(default=1.0, ge=0)
    """Weight of the policy term of tokens with a positive advantage: below 1, entropy is spent more slowly
    (W-REINFORCE: 0.1), and the gradient is no longer that of the mean reward."""
    off_policy_mask: float | None = Field(default=None, gt=0)
    """Leave out completions with a negative advantage whose tokens have become less likely than when sampled by more
    than this, in nats a token (DeepSeek-V3.2)."""
    loss_agg_mode: Literal[
        "seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm", "seq-mean-token-sum", "prompt-mean"
    ] = "seq-mean-token-mean"
    """Loss aggregation, in verl's names: seq-mean-token-mean, mean over a rollout's tokens, then over rollouts (GRPO);
    token-mean, mean over all tokens (DAPO); seq-mean-token-sum-norm, sum over tokens / sampling.max_tokens (Dr. GRPO);
    seq-mean-token-sum, sum over tokens, mean over rollouts (REINFORCE, RLOO); prompt-mean, mean over the tokens of a
    prompt, then over prompts (ScaleRL)."""
    kl_beta: float = Field(default=0.0, ge=0)
    """Coefficient of the KL to the reference model; 0 needs no reference model."""
    kl_estimator: Literal["k1", "k2", "k3", "k3_unbiased", "k3_straight"] = "k3"
    """k3 is GRPO's; k3_unbiased (times the ratio) and k3_straight (k2's gradient) follow the reverse KL; k1 belongs in
    the reward: in the loss its gradient has mean zero."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL counts: a term of the loss, or a penalty on each token's reward (k1), before the advantage."""
    kl_target: float | None = Field(default=None, gt=0)
    """Adapt kl_beta so that the KL to the reference, in nats a token, stays near this; none = constant.
    Experimental."""
    kl_horizon: float = Field(default=10_000, gt=0)
    """Rollouts over which the adaptation acts."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Coefficient of the entropy bonus."""
    entropy_target: float | None = Field(default=None, gt=0)
    """Adapt entropy_bonus in steps of 0.005 while the entropy is below this, in nats a token; none = constant.
    Experimental."""
    entropy_share: float = Field(default=1.0, gt=0, le=1)
    """Share of tokens, those of highest entropy in an optimizer step, whose policy gradient counts; 0.2 in the paper
    on high-entropy minority tokens."""
    mask_truncated: bool = False
    """Leave rollouts that hit the token limit out of the update: out of the policy term, the KL, the entropy and the
    denominator. Their rewards still count in their group."""
    drop_zero_variance: bool = False
    """Leave groups in which no rollout has an advantage (all rewards equal) out of the denominator, the KL and the
    entropy, as ScaleRL does; by default they count there, so a step with few mixed groups is a smaller step."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of your own loss."""

    @model_validator(mode="after")
    def _bounds(self) -> ObjectiveConfig:
        for name in ("dual_clip", "delta"):
            if getattr(self, name) is not None and self.loss != "clip":
                raise ValueError(f'{name} bounds loss = "clip" only; leave it out with "{self.loss}"')
        if self.delta is not None and self.delta <= 1 + self.clip_high:
            raise ValueError(
                f"delta = {self.delta} must be larger than 1 + clip_high = {1 + self.clip_high}, which "
                "bounds the ratio already"
            )
        if self.clip_cov_lb >= self.clip_cov_ub:
            raise ValueError(
                f"clip_cov_lb = {self.clip_cov_lb} must be smaller than clip_cov_ub = {self.clip_cov_ub}: clip_cov "
                "draws tokens between them"
            )
        if self.kl_in == "reward" and self.kl_estimator != "k1":
            raise ValueError(
                f'kl_in = "reward" needs kl_estimator = "k1": as a reward, {self.kl_estimator} has a wrong gradient'
            )
        if self.kl_in == "loss" and self.kl_estimator == "k1" and self.kl_beta > 0:
            raise ValueError(
                'kl_estimator = "k1" in the loss has a gradient of mean zero: noise that does not pull towards the '
                'reference; set kl_in = "reward", or use k3'
            )
        if self.kl_target is not None and (self.kl_beta == 0 or self.kl_in == "reward"):
            raise ValueError(
                'kl_target adapts the KL in the loss: it needs kl_in = "loss" and a kl_beta to start from, e.g. '
                f'0.01; they are "{self.kl_in}" and {self.kl_beta}'
            )
        return self


class AdvantageConfig(Section):
    """Advantages: the baseline of a rollout's reward, and the scale."""

    estimator: Annotated[str, Named(ESTIMATORS, others=("auto",))] = "auto"
    """Estimator of advantages: auto is gae with a `[critic]`, group_aware with a `grouping.preset`, else group, to
    which the settings below belong; or your own as `module:function` (docs/extending.md)."""
    baseline: (
        Literal[
            "group_mean",
            "leave_one_out",
            "batch_mean",
            "length_weighted",
            "optimal_token",
            "second_best",
            "js2",
            "none",
        ]
        | UserFunction
    ) = "group_mean"
    """Baseline subtracted from the reward: the group's mean (GRPO), the mean of the others (RLOO), the batch's, the
    others' mean weighted by length (OPO) or, for every token, by the squared norm of their score up to it (OTB), the
    second best for the best and nothing for the rest (pass@k), the group's mean shrunk towards the other groups' (js2),
    nothing, or `module:function`."""
    scale: Literal["group_std", "batch_std", "group_mean", "bnpo", "none"] = "group_std"
    """What advantages are divided by: the group's standard deviation (GRPO), the batch's, the group's mean (MaxRL), a
    Beta density (bnpo), or nothing (Dr. GRPO)."""
    whiten: Literal["none", "samples", "tokens"] = "none"
    """Shift and scale the advantages of the whole batch to mean 0 and deviation 1, over rollouts or over tokens."""
    per_reward: bool = False
    """Estimate each reward on its own, then add (GDPO)."""
    step_weight: float = Field(default=0.0, ge=0)
    """Weight of the advantages of reasoning steps (process supervision), added to the outcome's. Experimental."""
    gigpo_weight: float = Field(default=0.0, ge=0)
    """Weight of the advantage of each turn among those that other attempts took from the same state (GiGPO), added to
    the episode's advantage; an environment of one turn has no states."""
    gamma: float = Field(default=0.95, ge=0, le=1)
    """Discount a turn of the returns that `gigpo_weight` compares."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of your own baseline."""

    @model_validator(mode="after")
    def _anchored(self) -> AdvantageConfig:
        if self.gigpo_weight and self.scale not in ("group_std", "none"):
            raise ValueError(
                f"gigpo_weight = {self.gigpo_weight} divides by the standard deviation of the returns from a state, or "
                "by "
                f'nothing; set scale = "group_std" or "none", not "{self.scale}"'
            )
        return self


class RolloutCorrectionConfig(Section):
    """Correction of the train-inference mismatch: sampler and learner give the same token different probabilities."""

    kind: Literal[
        "none",
        "token_truncate",
        "token_clip",
        "token_mask",
        "sequence_truncate",
        "sequence_mask",
        "geometric_mask",
    ] = "token_truncate"
    """Importance weight learner/sampler: token_truncate, at most `high` (truncated importance sampling, TIS);
    token_clip, clipped at both ends; token_mask, zero outside (IcePop); sequence_*, the same for the whole completion;
    geometric_mask, drop completions whose geometric mean is outside."""
    low: float = Field(default=0.0, ge=0)
    """Lower bound of the weight."""
    high: float = Field(default=2.0, gt=0)
    """Upper bound of the weight."""
    veto: float | None = Field(default=None, gt=0, lt=1)
    """Drop a completion when any of its tokens has a weight below this. Experimental."""
    bypass_mode: bool = False
    """Take the sampler's log-probs as those of the old policy (verl's bypass_mode): several optimizer steps per batch
    then need no scoring pass, and the clipped ratio is learner/sampler, so that a weight beside it is always 1."""

    @model_validator(mode="after")
    def _ordered(self) -> RolloutCorrectionConfig:
        if self.low >= self.high:
            raise ValueError(
                f"rollout_correction.low = {self.low} must be smaller than rollout_correction.high = {self.high}"
            )
        return self


class ReferenceConfig(Section):
    """The reference model of the KL: the initial policy, unless another is named or it is synced with the current."""

    model: str | None = None
    """Another model as the reference: a run, a folder, an asset or a transformers id, with the policy's tokenizer.
    none: the policy as it starts. DeepSeek-R1 keeps the model of the cold start."""
    sync_every: int = Field(default=0, ge=0)
    """Steps between syncs of the reference model with the policy (TRL's ref_model_sync_steps; DeepSeek-R1: 400);
    0 = never."""
    sync_ema: float | None = Field(default=None, gt=0, lt=1)
    """Mix this share of the policy into the old reference at each sync (TRL's ref_model_mixup_alpha; TR-DPO: 0.6);
    none = copy the policy."""

    @model_validator(mode="after")
    def _renewed(self) -> ReferenceConfig:
        if self.sync_ema is not None and not self.sync_every:
            raise ValueError("reference.sync_ema needs reference.sync_every: how many steps lie between two renewals")
        return self


class DistillConfig(Section):
    """On-policy distillation: the student samples, and a teacher's log-probs of the same tokens are the signal."""

    teacher: str
    """The model to learn from: a run, a folder, an asset or a transformers id, with the student's tokenizer. It sees
    the tokens that the student saw and sampled, and is never trained. Or the address of a server that holds it, such as
    http://127.0.0.1:8000/v1 (`coterie serve`, vLLM)."""
    teacher_model: str = ""
    """Name of the model at that server; its first one when empty."""
    api_key_var: str = "COTERIE_API_KEY"
    """Environment variable that holds the server's key; the key itself is never written."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds without a byte from the server after which a connection counts as lost."""
    retry_s: float = Field(default=300.0, gt=0)
    """Seconds in which a lost server must be back; requests are repeated until then, then the run ends."""
    weight: float = Field(default=1.0, gt=0)
    """Coefficient of log π_teacher - log π_student in a token's advantage: the negative reverse KL, of one sample."""
    reward_weight: float = Field(default=0.0, ge=0)
    """Coefficient of the advantage that the rewards give, GRPO's or another estimator's; 0 = the teacher alone."""
    discount: float = Field(default=0.0, ge=0, le=1)
    """Discount of later tokens' signal in a token's advantage; 0 = each token answers for itself."""
    clip: float | None = Field(default=None, gt=0)
    """Largest signal of one token of either sign, nats; none = no bound."""

    @property
    def remote(self) -> bool:
        """True if a server holds the teacher."""
        return "://" in self.teacher


class CriticConfig(Section):
    """A critic, for PPO: a learned value of each token as the baseline. Leave it out for GRPO."""

    kind: Literal["head", "model"] = "head"
    """head: one linear layer on the policy's last hidden states, which it also trains; model: a copy of the policy's
    decoder of its own."""
    lr: float = Field(default=1e-5, gt=0)
    """Learning rate of the critic's own weights; warm-up and schedule are those of `optim`."""
    coefficient: float = Field(default=0.5, gt=0)
    """Weight of the value loss."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount a token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """λ of generalised advantage estimation, for the policy."""
    value_lam: float = Field(default=1.0, ge=0, le=1)
    """λ of the critic's targets; 1 = the return itself (VC-PPO)."""
    length_alpha: float | None = Field(default=None, gt=0)
    """Let λ grow with the completion, 1 - 1/(length_alpha · tokens), instead of `lam` (VAPO: 0.05). Experimental."""
    clip: float | None = Field(default=None, gt=0)
    """Clip the value's change in one update to this, as PPO's code does; it slows the critic. none = off."""
    warmup: int = Field(default=0, ge=0)
    """Steps at the start in which only the critic is trained."""
    bounded: bool = False
    """Read the value as a probability, and train it with cross-entropy: for rewards between 0 and 1."""
