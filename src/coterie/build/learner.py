"""Settings → the learning parts: objective, estimator, reference, critic, and the learner around them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from coterie.algo.distill import DistillEstimator, Teach
from coterie.algo.entropy import AdaptiveEntropy, EntropyState
from coterie.algo.estimators import Estimator, GaeEstimator, GroupEstimator, Terms
from coterie.algo.kl import AdaptiveBeta
from coterie.algo.losses import check_choices
from coterie.algo.objective import Objective
from coterie.config.objective import CriticConfig
from coterie.config.parts import ESTIMATORS, part
from coterie.config.schema import RunConfig
from coterie.config.user_functions import user_function
from coterie.errors import ConfigError
from coterie.grouping.estimator import GroupAwareEstimator, custom_baseline, custom_key
from coterie.grouping.estimator import check as check_grouping
from coterie.grouping.features import Embed, PromptFeatures
from coterie.policy.critic import Critic
from coterie.policy.learner import Learner
from coterie.policy.model import Policy
from coterie.policy.reference import Reference
from coterie.rewards.check import identity
from coterie.train.schedules import Schedules
from coterie.train.sft import IMITATION
from coterie.types import Prompt

Load = Callable[[], Policy]
"""Loads the starting policy once more: for a frozen reference, or a critic's own decoder."""


def _reference(config: RunConfig, policy: Policy, load: Load, named: Load | None) -> Reference | None:
    """The policy that the KL is taken to: a named model, a copy of the start, or the model without its adapter."""
    if config.objective.kl_beta == 0:
        return None
    copy = None
    if named is not None or config.model.lora is None:
        copy = (named or load)()
        copy.model.requires_grad_(False)
    return Reference(policy, copy, config.reference)


def _critic(config: RunConfig, policy: Policy, load: Load, total_steps: int) -> Critic | None:
    """A head on the policy's states, or on those of a second model."""
    if config.critic is None:
        return None
    trunk = load() if config.critic.kind == "model" else None
    return Critic(policy, trunk, config=config.critic, optim=config.optim, total_steps=total_steps)


def objective_for(config: RunConfig) -> Objective:
    """The loss with the user's own function, where the settings name one.

    Raises:
        ConfigError: it cannot be had, or choices do not fit each other.
    """
    settings = config.objective
    function = user_function(settings.loss) if ":" in settings.loss else None
    objective = Objective(settings=settings, correction=config.rollout_correction, function=function)
    try:
        check_choices(objective)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return objective


def warnings_of(config: RunConfig) -> list[str]:
    """Settings that are allowed and probably not meant, one line each."""
    default = "lr" not in config.optim.model_fields_set
    if config.model.lora is None or not default:
        return []
    return [
        f"optim.lr was left at {config.optim.lr:g}, the default for training all weights; with model.lora the same "
        "progress takes about ten times that of full training, and usual values are 1e-5 to 2e-4. Set e.g. "
        "optim.lr = 1e-4"
    ]


def terms_for(config: RunConfig) -> Terms:
    """Shared arguments of all estimators."""
    objective = config.objective
    return Terms(
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        kl_beta=objective.kl_beta if objective.kl_in == "reward" else 0.0,
        environment=config.rewards.environment,
    )


def _part_weights(config: RunConfig) -> dict[str, float]:
    return {part.key: part.weight for part in config.rewards.functions}


def group_estimator(config: RunConfig, prompts: Sequence[Prompt] = (), embed: Embed | None = None) -> GroupEstimator:
    """Advantages relative to the attempts at the same prompt."""
    advantage = config.advantage
    baseline = None
    if ":" in advantage.baseline:
        baseline = functools.partial(user_function(advantage.baseline), **advantage.params)
    return GroupEstimator(
        config=advantage,
        baseline=baseline,
        terms=terms_for(config),
        part_weights=_part_weights(config),
        step_weights=config.rewards.step_weights(),
    )


def gae_estimator(config: RunConfig, prompts: Sequence[Prompt] = (), embed: Embed | None = None) -> GaeEstimator:
    """Advantages by generalised advantage estimation over the critic's values."""
    return GaeEstimator(
        config=config.critic or CriticConfig(), whiten=config.advantage.whiten != "none", terms=terms_for(config)
    )


def group_aware_estimator(
    config: RunConfig, prompts: Sequence[Prompt] = (), embed: Embed | None = None
) -> GroupAwareEstimator:
    """Advantages from groups at several scales."""
    grouping = config.grouping
    baseline, key = custom_baseline(grouping), custom_key(grouping)
    check_grouping(grouping)
    return GroupAwareEstimator(
        grouping,
        terms=terms_for(config),
        features=PromptFeatures(prompts, embed, key=key, dimensions=grouping.dimensions),
        baseline=baseline,
        part_weights=_part_weights(config),
        seed=config.seed,
        reward=identity(config.rewards, config.environment),
        reference=str(config.model.name),
        lag=config.engine.lag,
    )


def estimator_for(config: RunConfig, prompts: Sequence[Prompt] = (), embed: Embed | None = None) -> Estimator:
    """The estimator of advantages.

    Args:
        prompts: those of training.
        embed: makes their embeddings; None leaves these out.

    Raises:
        ConfigError: your own estimator or baseline cannot be had, or the choices do not fit each other.
    """
    return part(ESTIMATORS, config.estimator)(config, prompts, embed)


def taught_estimator(config: RunConfig, rewarded: Estimator, teach: Teach) -> Estimator:
    """The estimator of a distillation: a teacher's advantages beside those of the rewards.

    Raises:
        ConfigError: the settings name no teacher.
    """
    settings = config.require_teacher().distill
    assert settings is not None
    return DistillEstimator(config=settings, terms=terms_for(config), teach=teach, rewarded=rewarded)


def sft_learner(config: RunConfig, policy: Policy, kind: type[Learner] = Learner) -> Learner:
    """The learner of imitation: no reference, no critic, no temperature."""
    total = config.steps * config.optim.minibatches
    return kind(policy, optim=config.optim, objective=IMITATION, temperature=1.0, total_steps=total)


def schedules_for(config: RunConfig, learner: Learner) -> Schedules:
    """The learner's objective and reference, and what changes them between steps."""
    objective = config.objective
    beta = entropy = None
    if objective.kl_target is not None:
        beta = AdaptiveBeta(target=objective.kl_target, horizon=objective.kl_horizon)
    if objective.entropy_target is not None:
        entropy = AdaptiveEntropy(target=objective.entropy_target)
    return Schedules(
        objective=learner.objective,
        beta=beta,
        entropy=entropy,
        entropy_state=EntropyState(coefficient=objective.entropy_bonus),
        reference=learner.reference,
    )


def learner_for(
    config: RunConfig, policy: Policy, load: Load, reference: Load | None = None, kind: type[Learner] = Learner
) -> Learner:
    """The learner with reference and critic, where there are any.

    Args:
        load: loads the starting policy once more.
        reference: loads the reference, where that is another model.
        kind: of the learner.
    """
    total_steps = config.steps * config.optim.minibatches * config.optim.epochs
    warmup = 0 if config.critic is None else config.critic.warmup * config.optim.minibatches * config.optim.epochs
    return kind(
        policy,
        optim=config.optim,
        objective=objective_for(config),
        temperature=config.sampling.temperature,
        total_steps=total_steps,
        reference=_reference(config, policy, load, reference),
        critic=_critic(config, policy, load, total_steps),
        entropy_share=config.objective.entropy_share,
        warmup=warmup,
    )
