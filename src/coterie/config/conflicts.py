"""Settings that exclude each other, each with the message that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coterie.config.objective import AdvantageConfig

SHIPPED = ("group", "gae", "group_aware")
"""Estimators that sections of the settings choose."""


def _baselined(advantage: AdvantageConfig) -> dict[str, Any]:
    """What is set of a group's baseline and scale."""
    return advantage.model_dump(exclude_defaults=True, exclude={"estimator"})


CONFLICTS: tuple[tuple[Callable[[Any], object], str], ...] = (
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
        lambda c: c.engine.replicas > 1 and c.cluster.host == "local",
        'engine.replicas = {c.engine.replicas} are services in processes of their own, and cluster.host = "local" has '
        'none; set cluster.host = "processes" or "ray", or engine.replicas = 1',
    ),
    (
        lambda c: c.engine.name == "vllm" and c.cluster.host == "local",
        'engine.name = "vllm" samples in a process of its own; set cluster.host = "processes"',
    ),
    (
        lambda c: c.cluster.learners > 1 and c.cluster.host == "local",
        'cluster.learners = {c.cluster.learners} are processes of their own, and cluster.host = "local" has none; set '
        'cluster.host = "processes" or "ray", or cluster.learners = 1',
    ),
    (
        lambda c: c.cluster.strategy == "fsdp" and c.cluster.learners == 1,
        'cluster.strategy = "fsdp" shares one set of weights out among learner ranks, and cluster.learners = 1 is one '
        'process; set cluster.learners = 2 or more with cluster.host = "processes" or "ray", or cluster.strategy = '
        '"replicate"',
    ),
    (
        lambda c: c.cluster.strategy == "fsdp" and c.optim.moments == "8bit",
        'optim.moments = "8bit" has a scale for each 256 values of a whole tensor, and cluster.strategy = "fsdp" cuts '
        'tensors elsewhere; set optim.moments = "float32", which fsdp shares out, or cluster.strategy = "replicate"',
    ),
    (
        lambda c: c.cluster.strategy == "fsdp" and c.optim.compile_layers,
        'optim.compile_layers with cluster.strategy = "fsdp" is not supported; set one of them otherwise',
    ),
    (
        lambda c: c.cluster.strategy == "fsdp" and c.optim.activation_offload,
        'optim.activation_offload knows weights by their memory, which cluster.strategy = "fsdp" gives back after each '
        'layer; use optim.gradient_checkpointing, or cluster.strategy = "replicate"',
    ),
    (
        lambda c: c.engine.python and c.cluster.host == "ray",
        "engine.python = {c.engine.python!r} is another interpreter, and a Ray actor has that of its node; install "
        'vLLM beside coterie there, or set cluster.host = "processes"',
    ),
    (
        lambda c: c.engine.name == "http" and c.cluster.host != "local",
        'engine.name = "http" samples in a server that lives elsewhere already; set cluster.host = "local"',
    ),
    (
        lambda c: c.engine.lag and c.cluster.host == "local",
        "engine.lag = {c.engine.lag} samples while the learner updates, which needs an engine of its own: in one "
        'process both would share the weights and the processor; set cluster.host = "processes" or "ray", or '
        "engine.lag = 0",
    ),
    (
        lambda c: c.engine.enable_lora and (c.engine.name != "vllm" or c.model.lora is None),
        'engine.enable_lora = true is of a LoRA run with vLLM; set engine.name = "vllm" and [model.lora], or '
        "engine.enable_lora = false",
    ),
    (
        lambda c: c.engine.sleep_mode and c.cluster.host == "local",
        'engine.sleep_mode = true is of engine services, and with cluster.host = "local" the engine reads the '
        'learner\'s weights in place; set cluster.host = "processes" or "ray", or engine.sleep_mode = false',
    ),
    (
        lambda c: c.engine.sleep_mode and c.engine.lag,
        "engine.sleep_mode = true has engines sleep while the learner updates, and with engine.lag = {c.engine.lag} "
        "they sample then; leave out either",
    ),
    (
        lambda c: c.engine.lag and c.rollout_correction.kind == "none" and not c.rollout_correction.bypass_mode,
        'engine.lag = {c.engine.lag} with rollout_correction.kind = "none" would take the learner for the policy that '
        "sampled; set rollout_correction.bypass_mode = true (the ratio is learner/sampler), rollout_correction.kind = "
        '"token_truncate" (a weight learner/sampler), or engine.lag = 0',
    ),
    (
        lambda c: c.engine.lag and c.grouping.allocate,
        "grouping.allocate chooses prompts by all steps before, of which engine.lag = {c.engine.lag} are not over when "
        "a batch is begun; leave out grouping.allocate, or set engine.lag = 0",
    ),
    (
        lambda c: c.replay.groups and c.engine.lag >= c.replay.max_age,
        "replay.groups finds nothing: with engine.lag = {c.engine.lag} a group is {c.engine.lag} versions old when it "
        "is fresh, and replay.max_age = {c.replay.max_age}; raise replay.max_age, or lower engine.lag",
    ),
    (
        lambda c: c.engine.draft != "off" and c.cluster.host != "local",
        'engine.draft = "{c.engine.draft}" guesses from attempts that this process keeps, and a service has none; set '
        'engine.draft = "off", or cluster.host = "local"',
    ),
    (
        lambda c: c.collect.group_size < 2 and c.needs_siblings,
        "collect.group_size = {c.collect.group_size} is too small: advantage.baseline = "
        '"{c.advantage.baseline}" needs at least 2 rollouts per prompt',
    ),
    (
        lambda c: (
            c.advantage.baseline == "optimal_token"
            and (
                c.advantage.whiten != "none"
                or c.advantage.per_reward
                or (c.objective.kl_beta > 0 and c.objective.kl_in == "reward")
            )
        ),
        'advantage.baseline = "optimal_token" is one baseline of the whole reward for every token: set '
        'advantage.whiten = "none", advantage.per_reward = false and objective.kl_in = "loss"',
    ),
    (
        lambda c: c.reference.sync_every and c.objective.kl_beta == 0,
        "reference.sync_every needs objective.kl_beta > 0: without a KL there is no reference",
    ),
    (
        lambda c: c.reference.model and c.objective.kl_beta == 0,
        "reference.model = {c.reference.model!r} needs objective.kl_beta > 0: without a KL there is no reference",
    ),
    (
        lambda c: c.reference.sync_every and c.model.lora is not None,
        "reference.sync_every needs all weights to be trained: the reference of an adapter is the model without it; "
        "set reference.sync_every = 0, or leave out model.lora",
    ),
    (
        lambda c: c.advantage.estimator in SHIPPED and c.estimator != c.estimator_of_sections,
        'advantage.estimator = "{c.advantage.estimator}" does not fit the other settings, which make it '
        '"{c.estimator_of_sections}": gae needs critic, group_aware a grouping.preset other than "prompt", and group '
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
        lambda c: sum(table is not None for table in (c.sft, c.rejection, c.distill)) > 1,
        "a run is one of sft, rejection and distill: leave out the other tables",
    ),
    (
        lambda c: c.distill and c.replay.groups,
        "replay.groups trains on advantages as they were credited, and a teacher's are made of the student's log-probs "
        "of then; leave out distill, or set replay.groups = 0",
    ),
    (
        lambda c: c.distill and c.distill.remote and c.sampling.temperature != 1,
        "distill.teacher = {c.distill.teacher!r} is a server, whose log-probs are those of temperature 1, and "
        "sampling.temperature = {c.sampling.temperature}; set it to 1, or name the teacher's folder",
    ),
    (
        lambda c: c.taught_alone and (c.critic or c.grouping.preset != "prompt" or _baselined(c.advantage)),
        "distill.reward_weight = 0 takes the teacher's signal alone, so critic, grouping and advantage mean nothing; "
        "leave them out, or set distill.reward_weight above 0",
    ),
    (
        lambda c: c.taught_alone and c.collect.dynamic_sampling,
        "collect.dynamic_sampling leaves out groups of equal rewards, which a teacher can teach; set "
        "collect.dynamic_sampling = false, or distill.reward_weight above 0",
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
"""Settings that exclude each other: (predicate of the conflict on a `RunConfig`, message)."""
