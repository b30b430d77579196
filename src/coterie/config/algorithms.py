"""Algorithm presets: published methods as sets of settings. The user's own settings take precedence over a preset, and
whatever it leaves out is GRPO's.

Learning rates, batch sizes and rewards belong to a recipe and are no part of a preset.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One published method."""

    title: str
    formula: str
    """The objective in plain characters: ρ the ratio, A the advantage, r the reward, L tokens of a completion."""
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key → value."""
    note: str = ""
    """Differences from the paper, or further settings of the paper."""

    @property
    def off_policy(self) -> bool:
        """True if its ratio, loss or bounds need several optimizer steps a batch: with one, every ratio is exactly
        1."""
        bounds = ("ratio", "loss", "clip_low", "clip_high", "delta", "dual_clip")
        return any(key == f"objective.{name}" for key in self.settings for name in bounds)


_PLAIN = {"advantage.scale": "none", "objective.loss_agg_mode": "seq-mean-token-sum", "objective.loss": "unclipped"}
_K1_REWARD = {"objective.kl_in": "reward", "objective.kl_estimator": "k1", "objective.kl_beta": 0.01}

ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm(
        title="Group Relative Policy Optimization",
        formula="mean_i mean_t min(ρA, clip(ρ, 1 ± 0.2)A),  A = (r - mean r) / std r over the group",
        source="DeepSeekMath, arXiv 2402.03300, eq. 3",
        note="The paper adds β = 0.04 of the k3 KL (`deepseekmath`); without it no reference model is needed.",
    ),
    "deepseekmath": Algorithm(
        title="GRPO as in DeepSeekMath",
        formula="GRPO - 0.04 · k3(π, π_ref)",
        source="DeepSeekMath, arXiv 2402.03300, eq. 3-4 and §4.2",
        settings={"objective.kl_beta": 0.04},
        note="Learning rate 1e-6, 64 rollouts a prompt, one update a batch.",
    ),
    "r1": Algorithm(
        title="GRPO as in DeepSeek-R1",
        formula="GRPO with clip(ρ, -9, 11) - 0.001 · k3(π, π_ref), reference renewed every 400 steps, 16 minibatches",
        source="DeepSeek-R1, Nature 2025, Methods",
        settings={
            "objective.clip_low": 10.0,
            "objective.clip_high": 10.0,
            "objective.kl_beta": 0.001,
            "reference.sync_every": 400,
            "optim.minibatches": 16,
        },
        note="Learning rate 3e-6, 32 prompts × 16 rollouts, temperature 1. Its eq. 1 is read per token. An adapter's "
        "reference cannot be renewed: set reference.sync_every = 0 with model.lora.",
    ),
    "dr_grpo": Algorithm(
        title="Dr. GRPO (GRPO done right)",
        formula="(1/N) Σ_i (1/L_max) Σ_t min(ρA, clip(ρ)A),  A = r - mean r",
        source="arXiv 2503.20783",
        settings={"advantage.scale": "none", "objective.loss_agg_mode": "seq-mean-token-sum-norm"},
    ),
    "dapo": Algorithm(
        title="DAPO (decoupled clip and dynamic sampling)",
        formula="(1/Σ L) Σ_i Σ_t min(ρA, clip(ρ, 0.8, 1.28)A), groups without variance replaced",
        source="arXiv 2503.14476",
        settings={
            "objective.clip_high": 0.28,
            "objective.loss_agg_mode": "token-mean",
            "collect.dynamic_sampling": True,
        },
        note="Missing groups are drawn again one for one, at most collect.dynamic_sampling_limit times; the paper "
        "draws whole batches and stops with an error. Variance is that of the evaluated reward part, as in verl. Its "
        "punishment of "
        'long completions is a part of the reward: [[rewards.functions]] name = "overlong".',
    ),
    "rloo": Algorithm(
        title="REINFORCE leave-one-out",
        formula="(1/N) Σ_i Σ_t ρA,  A = r_i - mean of the other r",
        source="arXiv 2402.14740",
        settings={**_PLAIN, "advantage.baseline": "leave_one_out"},
        note='The paper puts a k1 KL into the reward: objective.kl_in = "reward", kl_estimator = "k1", kl_beta.',
    ),
    "reinforce++": Algorithm(
        title="REINFORCE++",
        formula="(1/Σ L) Σ_i Σ_t min(ρA, clip(ρ)A),  A = whitened over all tokens of r - β Σ_{s ≥ t} k1_s",
        source="arXiv 2501.03262; β of OpenRLHF",
        settings={
            **_K1_REWARD,
            "advantage.baseline": "none",
            "advantage.scale": "none",
            "advantage.whiten": "tokens",
            "objective.loss_agg_mode": "token-mean",
        },
    ),
    "reinforce++-baseline": Algorithm(
        title="REINFORCE++ with the group's mean as baseline",
        formula="(1/Σ L) Σ_i Σ_t min(ρA, clip(ρ)A) - 0.01 · k2,  A = whitened over all tokens of r - mean r",
        source="arXiv 2501.03262",
        settings={
            "advantage.scale": "none",
            "advantage.whiten": "tokens",
            "objective.loss_agg_mode": "token-mean",
            "objective.kl_estimator": "k2",
            "objective.kl_beta": 0.01,
        },
    ),
    "gspo": Algorithm(
        title="Group Sequence Policy Optimization",
        formula="mean_i min(sA, clip(s, 1 - 3e-4, 1 + 4e-4)A),  s = exp(mean_t log ρ)",
        source="arXiv 2507.18071",
        settings={
            "objective.ratio": "sequence",
            "objective.clip_low": 3e-4,
            "objective.clip_high": 4e-4,
            "optim.minibatches": 4,
        },
    ),
    "gspo-token": Algorithm(
        title="GSPO with the gradient of each token",
        formula="mean_i mean_t min(sA_t, clip(s)A_t),  s_t = sg[s] π_t / sg[π_t]",
        source="arXiv 2507.18071, §4.3",
        settings={
            "objective.ratio": "sequence_token",
            "objective.clip_low": 3e-4,
            "objective.clip_high": 4e-4,
            "optim.minibatches": 4,
        },
        note="The same gradient as gspo while a completion has one advantage.",
    ),
    "luspo": Algorithm(
        title="Length-unbiased sequence policy optimization",
        formula="(1/N) Σ_i L_i · min(sA, clip(s, 1 - 2e-3, 1 + 2.5e-3)A)",
        source="arXiv 2602.05261; bounds of TRL",
        settings={
            "objective.ratio": "sequence",
            "objective.loss_agg_mode": "seq-mean-token-sum",
            "objective.clip_low": 2e-3,
            "objective.clip_high": 2.5e-3,
        },
    ),
    "gmpo": Algorithm(
        title="Geometric-mean policy optimization",
        formula="mean_i A · exp(mean_t clipped log ρ),  log ρ clipped at ± 0.4 on the side that A pushes to",
        source="arXiv 2507.20673",
        settings={"objective.loss": "gmpo", "objective.clip_low": 0.4, "objective.clip_high": 0.4},
    ),
    "cispo": Algorithm(
        title="CISPO (clipped importance weights)",
        formula="(1/Σ L) Σ sg[min(ρ, 5)] A log π",
        source="MiniMax-M1, arXiv 2506.13585; bound of ScaleRL",
        settings={
            "objective.loss": "cispo",
            "objective.clip_low": 1.0,
            "objective.clip_high": 4.0,
            "objective.loss_agg_mode": "token-mean",
        },
    ),
    "sapo": Algorithm(
        title="Soft adaptive policy optimization",
        formula="mean_i mean_t A (4/τ) sigmoid(τ(ρ - 1)),  τ = 1 for A > 0, else 1.05",
        source="arXiv 2511.20347",
        settings={"objective.loss": "sapo"},
    ),
    "vespo": Algorithm(
        title="Variational sequence-level soft policy optimization",
        formula="(1/Σ L) Σ sg[φ(W)] A log π,  φ = e^λ W^k e^(-λW),  (k, λ) = (2, 3) for A ≥ 0, else (3, 2)",
        source="arXiv 2602.10693; constants of TRL",
        settings={"objective.loss": "vespo", "objective.loss_agg_mode": "token-mean"},
    ),
    "dppo": Algorithm(
        title="Divergence PPO, total variation",
        formula="(1/Σ L) Σ sg[ρ] A log π, without tokens whose probability has moved 0.15 too far",
        source="arXiv 2602.04879; threshold of the authors' scripts in verl",
        settings={
            "objective.loss": "dppo_tv",
            "objective.loss_agg_mode": "token-mean",
            "objective.clip_low": 0.15,
            "objective.clip_high": 0.15,
        },
        note='The bounds are differences of probabilities; loss = "dppo_kl" bounds the divergence instead, there by '
        '0.05. The scripts also take the mean of Dr. GRPO (loss_agg_mode = "seq-mean-token-sum-norm", advantage.scale '
        '= "none"), and '
        "their trust region is around the sampler's own probabilities; here it is around the policy at the start of "
        "the update.",
    ),
    "gdpo": Algorithm(
        title="Group reward-decoupled normalisation",
        formula="GRPO with A = normalised over the batch of Σ_n w_n (r_n - mean r_n) / std r_n",
        source="arXiv 2601.05242",
        settings={"advantage.per_reward": True, "advantage.whiten": "samples"},
    ),
    "opo": Algorithm(
        title="On-policy optimal baseline",
        formula="(1/N) Σ_i Σ_t ρA,  A = r_i - Σ L_j r_j / Σ L_j over the others",
        source="arXiv 2505.23585",
        settings={**_PLAIN, "advantage.baseline": "length_weighted"},
        note="The paper's mean contains the rollout itself; leaving it out keeps the gradient unbiased.",
    ),
    "otb": Algorithm(
        title="Optimal token baseline",
        formula="(1/N) Σ_i Σ_t ρA,  A_t = r_i - Σ W_jt r_j / Σ W_jt over the others,  W_jt = Σ_{s ≤ t} (1 - p_js)²",
        source="arXiv 2602.07078; optimal_token_baseline in verl",
        settings={**_PLAIN, "advantage.baseline": "optimal_token"},
        note="The paper's W is Σ (1 - 2p + Σ_v π_v²), between this one and twice this one, and its mean contains the "
        "rollout itself; leaving it out keeps the gradient unbiased. Where no other rollout is as long, the mean of "
        "the others instead of 0.",
    ),
    "bnpo": Algorithm(
        title="Beta normalisation policy optimization",
        formula="GRPO with A = (r - mean r) / f(mean r),  f a Beta density fitted to the batch's group means",
        source="arXiv 2506.02864",
        settings={"advantage.scale": "bnpo"},
        note="For rewards of 0 and 1. TRL's loss type of this name is another thing: token means of a micro-batch.",
    ),
    "maxrl": Algorithm(
        title="Maximum-likelihood reinforcement learning",
        formula="GRPO with A = (r - mean r) / mean r",
        source="arXiv 2602.02710",
        settings={"advantage.scale": "group_mean"},
    ),
    "pass_at_k": Algorithm(
        title="Pass@k training",
        formula="GRPO with A = (best r - second best r) / std r for the best rollout, 0 for the others",
        source="arXiv 2503.19595",
        settings={"advantage.baseline": "second_best"},
    ),
    "js2": Algorithm(
        title="Shrinkage baseline",
        formula="(1/N) Σ_i Σ_t ρA,  A = r_i - ((1 - λ) mean of the other attempts + λ mean of the other prompts)",
        source="arXiv 2511.03710",
        settings={**_PLAIN, "advantage.baseline": "js2"},
    ),
    "lite_ppo": Algorithm(
        title="Lite PPO",
        formula="(1/Σ L) Σ min(ρA, clip(ρ)A),  A = (r - mean of the group) / std of the batch",
        source="arXiv 2508.08221",
        settings={"advantage.scale": "batch_std", "objective.loss_agg_mode": "token-mean"},
    ),
    "scalerl": Algorithm(
        title="ScaleRL's objective",
        formula="mean over prompts of the token mean of sg[min(ρ, 5)] A log π,  A = (r - mean) / std of the batch",
        source="arXiv 2510.13786",
        settings={
            "objective.loss": "cispo",
            "objective.clip_low": 1.0,
            "objective.clip_high": 4.0,
            "objective.loss_agg_mode": "prompt-mean",
            "objective.drop_zero_variance": True,
            "advantage.scale": "batch_std",
        },
        note="Prompts whose rewards are all equal are left out of the mean over prompts, as in the paper. Its "
        "curriculum (prompts solved nearly always are not drawn again) and its forced ends of thoughts are not here.",
    ),
    "intellect2": Algorithm(
        title="GRPO with a two-sided bound",
        formula="(1/Σ L) Σ min(min(ρ, 4)A, clip(ρ, 0.8, 1.2)A) - 0.001 · k3(π, π_ref)",
        source="INTELLECT-2, arXiv 2505.07291; β as in TRL's index of papers",
        settings={"objective.delta": 4.0, "objective.loss_agg_mode": "token-mean", "objective.kl_beta": 0.001},
        note="The KL needs a reference model: objective.kl_beta = 0 saves its memory.",
    ),
    "deepseek_v32": Algorithm(
        title="GRPO as in DeepSeek-V3.2",
        formula="GRPO - 0.001 · ρ k3, without completions that have A < 0 and have become unlikely",
        source="DeepSeek-V3.2, arXiv 2512.02556; threshold suggested by TRL",
        settings={
            "objective.kl_beta": 0.001,
            "objective.kl_estimator": "k3_unbiased",
            "objective.off_policy_mask": 0.5,
        },
    ),
    "entropy_minority": Algorithm(
        title="GRPO on the tokens of highest entropy",
        formula="DAPO's clip and denominator over the fifth of the tokens with the highest entropy",
        source="arXiv 2506.01939",
        settings={
            "objective.entropy_share": 0.2,
            "objective.clip_high": 0.28,
            "objective.loss_agg_mode": "token-mean",
        },
    ),
    "clip_cov": Algorithm(
        title="Clip-Cov",
        formula="(1/Σ L) Σ min(ρA, clip(ρ)A) without 2e-4 of the tokens, drawn where "
        "1 < (lp - mean lp)(A - mean A) < 5",
        source="arXiv 2505.22617, eq. 9-11",
        settings={"objective.loss": "clip_cov", "objective.loss_agg_mode": "token-mean", "optim.minibatches": 8},
        note="On a step of few tokens the least, one token, is a larger share.",
    ),
    "kl_cov": Algorithm(
        title="KL-Cov",
        formula="(1/Σ L) Σ ρA, less |log ρ| for the 2e-4 of the tokens with the highest (lp - mean lp)(A - mean A)",
        source="arXiv 2505.22617, eq. 12-13; the penalty as in verl",
        settings={"objective.loss": "kl_cov", "objective.loss_agg_mode": "token-mean", "optim.minibatches": 8},
        note="The paper takes a share of 2e-3 for 7B and 2e-4 for 32B parameters. The penalty has no gradient in the "
        "first optimizer step of a batch.",
    ),
    "gigpo": Algorithm(
        title="Group-in-Group Policy Optimization",
        formula="GRPO with A = (r - mean r) + ω (R_k - mean of R from the same state),  R_k = Σ_l≥k γ^(l-k) r_l",
        source="arXiv 2505.10978, with F = 1",
        settings={"advantage.gigpo_weight": 1.0, "advantage.gamma": 0.95, "advantage.scale": "none"},
        note="For environments of several turns (`environment.name`): every turn has its term, also that of an episode "
        "which ends after one; in an environment of one turn there is none. The paper's mean of a state holds the turn "
        "itself and all visits of the same attempt, whose returns overlap; here the whole attempt is left out of its "
        'own mean. Its F = std is advantage.scale = "group_std". The presets of [grouping] have the same scale, '
        "weighed by evidence.",
    ),
    "ppo": Algorithm(
        title="Proximal Policy Optimization with a learned critic",
        formula="(1/Σ L) Σ min(ρA, clip(ρ)A) - c/2 (V - R)²,  A = generalised advantage estimation, whitened",
        source="arXiv 1707.06347 and 1506.02438",
        settings={
            "critic.kind": "head",
            "critic.value_lam": 0.95,
            "advantage.whiten": "tokens",
            "objective.loss_agg_mode": "token-mean",
        },
        note="c is critic.coefficient. Clipping the value's change, as PPO's code does, is critic.clip. A decoder of "
        'its own, as in most of the literature on language models, is critic.kind = "model".',
    ),
}
"""Presets by name, as `algorithm` names them."""


def find(name: object) -> Algorithm:
    """The preset of this name."""
    if isinstance(name, str) and name in ALGORITHMS:
        return ALGORITHMS[name]
    raise ConfigError(f"algorithm = {name!r} is none of {', '.join(ALGORITHMS)}{_near(str(name))}")


def _near(name: str) -> str:
    """`; did you mean dapo or dppo?`: the nearest names, all of them where they are equally near."""
    asked = name.lower().replace("-", "_")
    near = difflib.get_close_matches(asked, ALGORITHMS, n=3)
    ratios = {other: difflib.SequenceMatcher(None, other, asked).ratio() for other in near}
    best = [other for other in ALGORITHMS if ratios.get(other, 0.0) >= max(ratios.values(), default=1.0) - 0.01]
    return f"; did you mean {' or '.join(best)}?" if best else ""


def filled(data: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings completed by the preset of their `algorithm`, for `BaseModel.model_validate`.

    >>> filled({"algorithm": "lite_ppo", "objective": {"clip_low": 0.1}})["objective"]
    {'clip_low': 0.1, 'loss_agg_mode': 'token-mean'}
    """
    settings = {key: dict(value) if isinstance(value, Mapping) else value for key, value in data.items()}
    for key, value in find(settings.get("algorithm", "grpo")).settings.items():
        section, _, name = key.partition(".")
        table = settings.setdefault(section, {})
        if table is not None:
            table.setdefault(name, value)
    return settings


def stored(config: Any) -> dict[str, Any]:
    """Settings as plain data, for a file that loads to the same settings.

    A file cannot hold a None, and what it leaves out would be filled by the method's row or the default: where those
    have a value, the text `none` stands.
    """
    under = filled({"algorithm": config.algorithm})
    return _explicit(config.model_dump(mode="json"), type(config)().model_dump(mode="json"), under)


def _explicit(data: Mapping[str, Any], default: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    explicit: dict[str, Any] = {}
    for key, value in data.items():
        below, above = default.get(key), row.get(key)
        if value is None and (below is not None or above is not None):
            explicit[key] = "none"
        elif isinstance(value, Mapping) and (isinstance(below, Mapping) or isinstance(above, Mapping)):
            explicit[key] = _explicit(value, below or {}, above or {})
        else:
            explicit[key] = value
    return explicit
