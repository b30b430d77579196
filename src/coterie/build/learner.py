"""Settings → what learns: objective, credit, reference, critic, and the learner around them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from coterie.algo.advantages import AdvantageRule
from coterie.algo.entropy import AdaptiveEntropy, EntropyState
from coterie.algo.estimators import Estimator, GaeEstimator, GroupEstimator, Terms
from coterie.algo.gae import GaeRule
from coterie.algo.kl import AdaptiveBeta
from coterie.algo.losses import check_choices
from coterie.algo.objective import Objective
from coterie.config.base import user_function
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError
from coterie.grouping.estimator import GroupAwareEstimator, custom_baseline, custom_key
from coterie.grouping.features import Embed, PromptFeatures
from coterie.policy.critic import Critic
from coterie.policy.learner import Learner
from coterie.policy.model import Policy
from coterie.policy.reference import Reference
from coterie.rewards.check import identity
from coterie.train.schedules import Schedules
from coterie.types import Prompt

Load = Callable[[], Policy]
"""Loads the starting policy once more: for a frozen reference, or a critic's own decoder."""


def _reference(config: RunConfig, policy: Policy, load: Load) -> Reference | None:
    """What the KL is taken to: a frozen copy, or the model without its adapter."""
    if config.objective.kl_beta == 0:
        return None
    copy = None
    if config.model.lora is None:
        copy = load()
        copy.model.requires_grad_(False)
    return Reference(policy, copy, config.reference)


def _critic(config: RunConfig, policy: Policy, load: Load, total_steps: int) -> Critic | None:
    """A head on the policy's states, or on those of a second model."""
    if config.critic is None:
        return None
    trunk = load() if config.critic.kind == "model" else None
    return Critic(policy, trunk, config=config.critic, optim=config.optim, total_steps=total_steps)


def objective_for(config: RunConfig) -> Objective:
    """The loss's choices as the pure record that `coterie.algo.losses` takes.

    Raises:
        ConfigError: your own loss cannot be had, or choices do not fit each other.
    """
    settings, correction = config.objective, config.rollout_correction
    own = ":" in settings.loss
    choices = dict[str, Any](
        ratio=settings.ratio,
        loss=user_function(settings.loss) if own else settings.loss,
        dual_clip=settings.dual_clip,
        delta=settings.delta,
        sapo_tau_pos=settings.sapo_tau_pos,
        sapo_tau_neg=settings.sapo_tau_neg,
        off_policy_mask=settings.off_policy_mask,
        kl_beta=settings.kl_beta if settings.kl_in == "loss" else 0.0,
        kl_estimator=settings.kl_estimator,
        entropy_bonus=settings.entropy_bonus,
        correction=correction.kind,
        correction_low=correction.low,
        correction_high=correction.high,
        veto=correction.veto,
        params=settings.params,
    )
    try:
        objective = Objective(**choices)
        check_choices(objective)
    except ValueError as error:
        raise ConfigError(f"[objective] or [rollout_correction]: {error}") from None
    return objective


def warnings_of(config: RunConfig) -> list[str]:
    """What is allowed and probably not meant, one line each."""
    default = "lr" not in config.optim.model_fields_set
    if config.model.lora is None or not default:
        return []
    return [
        f"optim.lr was left at {config.optim.lr:g}, the default for training all weights; with model.lora the same "
        "progress takes about ten times that of full training, and usual values are 1e-5 to 2e-4. Set e.g. "
        "optim.lr = 1e-4"
    ]


def terms_for(config: RunConfig) -> Terms:
    """What is the same for every way of giving credit."""
    objective = config.objective
    return Terms(
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        kl_beta=objective.kl_beta if objective.kl_in == "reward" else 0.0,
        environment=config.rewards.environment,
    )


def estimator_for(config: RunConfig) -> Estimator:
    """Who gives credit: the group, or a critic.

    Raises:
        ConfigError: your own baseline cannot be had.
    """
    advantage = config.advantage
    terms = terms_for(config)
    critic = config.critic
    if critic is not None:
        rule = GaeRule(
            gamma=critic.gamma,
            lam=critic.lam,
            critic_lam=critic.value_lam,
            length_alpha=critic.length_alpha,
            whiten=advantage.whiten != "none",
        )
        return GaeEstimator(rule=rule, terms=terms)
    baseline: Any = advantage.baseline
    if ":" in advantage.baseline:
        baseline = functools.partial(user_function(baseline), **advantage.params)
    return GroupEstimator(
        rule=AdvantageRule(
            baseline=baseline,
            scale=advantage.scale,
            whiten=advantage.whiten,
            per_reward=advantage.per_reward,
            step_weight=advantage.step_weight,
            gigpo_weight=advantage.gigpo_weight,
            anchor_gamma=advantage.gamma,
        ),
        terms=terms,
        part_weights={part.key: part.weight for part in config.rewards.functions},
        step_weights=config.rewards.step_weights(),
    )


def group_aware_estimator_for(config: RunConfig, prompts: Sequence[Prompt], embed: Embed | None) -> GroupAwareEstimator:
    """Credit from groups at several scales.

    Args:
        prompts: those of training.
        embed: what they mean; None leaves that out.
    """
    return GroupAwareEstimator(
        config.grouping,
        terms=terms_for(config),
        features=PromptFeatures(
            prompts,
            embed,
            key=custom_key(config.grouping),
            dimensions=config.grouping.dimensions,
            seed=config.seed,
        ),
        own=custom_baseline(config.grouping),
        part_weights={part.key: part.weight for part in config.rewards.functions},
        seed=config.seed,
        reward=identity(config.rewards, config.environment),
        reference=str(config.model.name),
    )


def schedules_for(config: RunConfig) -> Schedules:
    """The weights of the objective that adapt themselves."""
    objective = config.objective
    beta = entropy = None
    if objective.kl_target is not None:
        beta = AdaptiveBeta(target=objective.kl_target, horizon=objective.kl_horizon)
    if objective.entropy_target is not None:
        entropy = AdaptiveEntropy(target=objective.entropy_target)
    state = EntropyState(coefficient=objective.entropy_bonus)
    return Schedules(beta=beta, entropy=entropy, entropy_state=state)


def learner_for(config: RunConfig, policy: Policy, load: Load) -> Learner:
    """The learner with all that the objective needs beside the policy."""
    total_steps = config.steps * config.optim.minibatches * config.optim.epochs
    warmup = 0 if config.critic is None else config.critic.warmup * config.optim.minibatches * config.optim.epochs
    return Learner(
        policy,
        optim=config.optim,
        objective=objective_for(config),
        temperature=config.sampling.temperature,
        total_steps=total_steps,
        reference=_reference(config, policy, load),
        critic=_critic(config, policy, load, total_steps),
        entropy_share=config.objective.entropy_share,
        score_norm=config.grouping.weights == "score_norm" and config.grouping.preset != "prompt",
        movement=config.grouping.clock == "policy" and config.grouping.preset != "prompt",
        warmup=warmup,
    )
