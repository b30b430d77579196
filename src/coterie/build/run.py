"""Settings → objects: one function per part of a run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from coterie import machine
from coterie.algo.estimators import Estimator
from coterie.batches.batch import shared_head
from coterie.batches.pack import Packing
from coterie.build.learner import (
    estimator_for,
    group_aware_estimator,
    learner_for,
    objective_for,
    schedules_for,
    sft_learner,
    taught_estimator,
)
from coterie.build.reading import Inputs, device_of, prompt_order, remote_teacher
from coterie.build.services import engine_services, joined_learner, require_host, require_vllm, vllm_engine
from coterie.cluster.engine_pool import EnginePool
from coterie.config.parts import ENGINES, part
from coterie.config.paths import portable
from coterie.config.schema import RunConfig
from coterie.config.user_functions import search_in
from coterie.data.chat import Chat
from coterie.data.prompts import PromptSet
from coterie.engines.base import Engine, Sampling
from coterie.engines.completion_client import CompletionClient
from coterie.engines.embedded import EmbeddedEngine
from coterie.engines.http_engine import HttpEngine
from coterie.engines.http_teacher import HttpTeacher
from coterie.envs.registry import environment_for, limits_of
from coterie.errors import ConfigError, DataError
from coterie.grouping.features import Embed
from coterie.policy.activations import keep_freed
from coterie.policy.device import dtype_named
from coterie.policy.embedding import embed_prompts
from coterie.policy.learner import Learner
from coterie.policy.model import Policy, load
from coterie.policy.sharding import Sharding
from coterie.policy.teacher import Teacher
from coterie.policy.waiting import WAIT_POLICY
from coterie.rewards.check import CONSOLATION, identity
from coterie.rewards.pool import Scorer
from coterie.rewards.registry import BINARY
from coterie.rollout.collector import Collector
from coterie.rollout.lagged_sampler import LaggedSampler
from coterie.rollout.replay import ReplayBuffer
from coterie.rollout.sampler import AllocatedSampler, Metric, PromptSampler, SequentialSampler
from coterie.train.evaluate import Criterion, Evaluator, Scale
from coterie.train.grpo import Trainer
from coterie.train.recorder import Recorder
from coterie.train.step import LoopSettings

STOP_TOKENS = 24
"""The engine looks for stop strings in the last 32 tokens."""

EVAL_STREAM = 1 << 40
"""Added to the seed of held-out samples: a training and a held-out prompt may share an id, never a random stream."""


def use_threads(config: RunConfig) -> int:
    """Set the number of compute threads, how idle ones wait, and how freed memory is kept; returns the number."""
    count = machine.count(config.threads)
    torch.set_num_threads(count)
    WAIT_POLICY.start()
    keep_freed()
    return count


def dtype_of(config: RunConfig, device: torch.device) -> torch.dtype:
    """Number format of the model; `auto` is bfloat16 where the hardware multiplies it natively, else float32."""
    return dtype_named(config.model.dtype, device)


def load_policy(config: RunConfig, source: str) -> Policy:
    """The model to be trained or sampled."""
    device = device_of(config)
    return load(config.model, source, dtype=dtype_of(config, device), device=device, seed=config.seed)


def teacher_for(config: RunConfig, inputs: Inputs) -> Teacher | HttpTeacher:
    """The teacher of a distillation: frozen, on the student's device and in its number format, or at its server.

    Raises:
        ModelError: it cannot be loaded.
        EngineError: its server is not there.
        DataError: the longest prompt and completion do not fit its context.
    """
    settings = config.require_teacher().distill
    assert settings is not None
    if settings.remote:
        teacher = remote_teacher(settings)
    else:
        policy = _frozen(config, inputs.teacher)
        teacher = Teacher(policy, temperature=config.sampling.temperature, optim=config.optim)
    teacher.require_room(longest_episode(config, inputs))
    return teacher


def _frozen(config: RunConfig, source: str) -> Policy:
    """Another model beside the policy, in its number format and on its device."""
    device = device_of(config)
    model = config.model.model_copy(update={"name": source, "revision": None, "lora": None})
    return load(model, source, dtype=dtype_of(config, device), device=device)


def run_learner(config: RunConfig, inputs: Inputs, policy: Policy, recorder: Recorder | None = None) -> Learner:
    """The learner of a run, with its other ranks where the settings have several.

    Args:
        recorder: of the run, whose folder gets the ranks' logs; None without a run.
    """
    build = partial(rank_learner, config, policy, inputs.source, inputs.reference)
    if config.cluster.learners == 1:
        return build(Learner)
    return joined_learner(config, inputs, policy.device, build, recorder)


def rank_learner(
    config: RunConfig,
    policy: Policy,
    source: str,
    reference: str | None,
    kind: type[Learner],
    sharding: Sharding | None = None,
) -> Learner:
    """One rank's learner, of which every model is cut where there is a sharding."""

    def cut(model: Policy) -> Policy:
        return model if sharding is None else sharding.cut(model)

    if config.sft is not None:
        return sft_learner(config, cut(policy), kind)
    frozen = (lambda: cut(_frozen(config, reference))) if reference else None
    return learner_for(config, cut(policy), lambda: cut(load_policy(config, source)), frozen, kind)


def policy_for(config: RunConfig, inputs: Inputs) -> Policy:
    """The model, checked against its tokenizer and the prompts before anything is sampled.

    Raises:
        ModelError: the tokenizer has ids that the model does not.
        DataError: the longest prompt and completion do not fit the model's context.
    """
    _check_stops(config, inputs.chat)
    _check_room(config, inputs)
    policy = load_policy(config, inputs.source)
    inputs.chat.check_vocabulary(policy.head.weight.shape[0])
    for name, ids in (*inputs.train.token_ids.items(), *inputs.heldout.token_ids.items()):
        if len(ids) + config.sampling.max_tokens > policy.context:
            raise DataError(
                f"prompt {name!r} has {len(ids)} tokens, which with sampling.max_tokens = {config.sampling.max_tokens} "
                f"is more than the model's context of {policy.context}; lower data.max_prompt_tokens (longer rows are "
                "then left out) or sampling.max_tokens"
            )
    longest = None if inputs.demonstrations is None else inputs.demonstrations.longest()
    if longest is not None and longest.tokens > policy.context:
        raise DataError(
            f"{longest.source} row {longest.row} has {longest.tokens} tokens, more than the model's context of "
            f"{policy.context}; lower sft.max_tokens (longer rows are then left out)"
        )
    if config.environment.talks and config.environment.max_tokens > policy.context:
        raise ConfigError(
            f"environment.max_tokens = {config.environment.max_tokens} is more than the model's context of "
            f"{policy.context}; lower it"
        )
    return policy


def _check_room(config: RunConfig, inputs: Inputs) -> None:
    """Refuse a limit of the episode into which the first turn does not fit."""
    limit, first_turn = config.environment.max_tokens, inputs.longest() + config.sampling.max_tokens
    if config.environment.talks and first_turn > limit:
        raise ConfigError(
            f"environment.max_tokens = {limit}, but the longest prompt and one turn of sampling.max_tokens = "
            f"{config.sampling.max_tokens} have {first_turn} tokens; raise the first, or lower the second or "
            "data.max_prompt_tokens"
        )


def _check_stops(config: RunConfig, chat: Chat) -> None:
    for stop in config.sampling.stop:
        ids = chat.tokenizer(stop, add_special_tokens=False)["input_ids"]
        if len(ids) > STOP_TOKENS or stop not in chat.decode(ids):
            raise ConfigError(
                f"sampling.stop holds {stop!r}, which can never match: a stop string is plain text of at most "
                f"{STOP_TOKENS} tokens; the model's own end tokens always stop"
            )


def check_trainable(config: RunConfig) -> None:
    """Refuse settings that sampling may have, but training may not.

    Raises:
        ConfigError: the sampler would not be the policy, or the choices of the objective do not fit each other.
    """
    search_in(config.module_path)
    require_host(config)
    if config.sft is not None:
        return
    if config.engine.name == "http" and not config.engine.weights_folder:
        raise ConfigError(
            'engine.name = "http" without engine.weights_folder samples from the weights that the server has, which '
            "training would leave behind; name the folder that `coterie serve --weights-folder` reads"
        )
    require_vllm(config)
    objective_for(config)
    estimator_for(config)
    if config.sampling.top_p < 1 or config.sampling.top_k > 0:
        raise ConfigError(
            f"sampling.top_p = {config.sampling.top_p} and sampling.top_k = {config.sampling.top_k} cut the "
            "distribution, so the ratio would compare two different policies; train with top_p = 1 and top_k = 0"
        )


def embedded_engine(policy: Policy, chat: Chat, config: RunConfig, capacity: int) -> EmbeddedEngine:
    """The engine that samples from the learner's own weights."""
    settings = config.engine
    return EmbeddedEngine(
        policy,
        chat,
        max_num_seqs=settings.max_num_seqs,
        capacity=capacity,
        max_kept_tokens=settings.max_kept_tokens,
        draft=settings.draft == "history",
    )


def http_engine(policy: Policy, chat: Chat, config: RunConfig, capacity: int) -> HttpEngine:
    """The engine that samples from a server of completions."""
    settings = config.engine
    client = CompletionClient(
        base_url=settings.base_url,
        api_key_var=settings.api_key_var,
        timeout_s=settings.timeout_s,
        retry_s=settings.retry_s,
    )
    return HttpEngine(
        policy,
        client,
        model=settings.model,
        max_num_seqs=settings.max_num_seqs,
        weights_folder=Path(settings.weights_folder) if settings.weights_folder else None,
        longest=capacity,
    )


def engine_for(
    config: RunConfig, inputs: Inputs, policy: Policy, capacity: int | None = None, recorder: Recorder | None = None
) -> Engine:
    """The engine that the settings name, in this process or as services.

    Args:
        capacity: tokens of the longest sequence, 0 where it is not known; None: of these settings and prompts.
        recorder: of the run, whose folder gets the services' logs; None without a run.
    """
    longest = longest_episode(config, inputs) if capacity is None else capacity
    if config.cluster.host == "local":
        return part(ENGINES, config.engine.name)(policy, inputs.chat, config, longest)
    if config.engine.name == "vllm":
        return vllm_engine(policy, inputs.chat, config, longest, recorder)
    return engine_services(config, inputs, policy, longest, recorder)


def engine_notes(config: RunConfig, engine: Engine) -> list[str]:
    """Settings of the engine that have no effect here, one line each."""
    if config.engine.draft == "off" or (isinstance(engine, EmbeddedEngine) and engine.drafts is not None):
        return []
    reason = "the engine makes no drafts"
    if isinstance(engine, EmbeddedEngine):
        reason = "drafts need a packed model (docs/models.md), and a device other than CUDA"
    return [f"engine.draft = {config.engine.draft!r} has no effect: {reason}. The tokens are the same without"]


def longest_episode(config: RunConfig, inputs: Inputs) -> int:
    """Tokens of the longest sequence that can be sampled."""
    if config.environment.talks:
        return config.environment.max_tokens
    return inputs.longest() + config.sampling.max_tokens


def sampling_for(config: RunConfig, temperature: float) -> Sampling:
    settings = config.sampling
    return Sampling(
        temperature=temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_tokens,
        stop=tuple(settings.stop),
        timeout_s=settings.timeout_s,
    )


def collector_for(config: RunConfig, engine: Engine, chat: Chat, scorer: Scorer, *, seed: int) -> Collector:
    return Collector(
        engine=engine,
        environment=environment_for(config.environment),
        chat=chat,
        scorer=scorer,
        seed=seed,
        max_error_share=config.collect.max_error_share,
        limits=limits_of(config.environment),
    )


def criterion_for(config: RunConfig) -> Criterion:
    """The criterion of correctness. Only the built-in scorer of reasoning-gym gives something to a wrong answer."""
    part = config.eval.reward or config.rewards.labels()[0]
    names = {label: part.name for label, part in zip(config.rewards.labels(), config.rewards.functions, strict=True)}
    scorer = names[part] == "task"
    return Criterion(
        part=part,
        threshold=config.eval.correct_threshold,
        wrong=CONSOLATION if scorer else 0.0,
        scale=Scale(binary=names[part] in BINARY, by_task=scorer),
    )


def evaluator_for(config: RunConfig, engine: Engine, chat: Chat, scorer: Scorer, heldout: PromptSet) -> Evaluator:
    sampling = sampling_for(config, config.eval.temperature)
    # The deadline is for a training step's worth of rollouts; an evaluation may be many times as large.
    steps = len(heldout.prompts) * config.eval.samples / (config.collect.prompts_per_step * config.collect.group_size)
    return Evaluator(
        collector_for(config, engine, chat, scorer, seed=config.seed + EVAL_STREAM),
        heldout.prompts,
        config=config.eval,
        sampling=replace(sampling, timeout_s=sampling.timeout_s * max(1.0, steps)),
        criterion=criterion_for(config),
        seed=config.seed,
    )


def embed_for(config: RunConfig, inputs: Inputs, policy: Policy) -> Embed | None:
    """Embeddings of prompts by a sentence encoder or the policy; None without any."""
    encoder, token_ids = inputs.encoder, inputs.train.token_ids
    if encoder is not None:
        return lambda prompts: encoder.embed([prompt.messages[-1]["content"] for prompt in prompts])
    if config.grouping.embedding == "none":
        return None
    return lambda prompts: embed_prompts(policy, [token_ids[prompt.id] for prompt in prompts])


def sampler_and_estimator(
    config: RunConfig, inputs: Inputs, policy: Policy, collector: Collector, sampling: Sampling, metric: Metric
) -> tuple[PromptSampler, Estimator]:
    """The sampler of a step's prompts and the estimator of their advantages, which may also allocate the rollouts.

    Args:
        metric: evaluated rewards of a group, by which dynamic sampling keeps it.
    """
    prompts, embed, order = inputs.train.prompts, embed_for(config, inputs, policy), prompt_order(config, inputs.train)
    if not config.grouping.allocate:
        sampler = SequentialSampler(collector, order, config=config.collect, sampling=sampling, metric=metric)
        return sampler, estimator_for(config, prompts, embed)
    estimator = group_aware_estimator(config, prompts, embed)
    allocated = AllocatedSampler(
        collector,
        order,
        config=config.collect,
        sampling=sampling,
        allocate=partial(estimator.allocate, tokens=_own_tokens(inputs.train), max_tokens=config.sampling.max_tokens),
        candidates=config.grouping.candidates,
    )
    return allocated, estimator


def _own_tokens(prompts: PromptSet) -> dict[str, int]:
    """Tokens of each prompt without the beginning that all share, where that is computed once for all."""
    shared = shared_head(list(prompts.token_ids.values()))
    return {name: len(ids) - shared for name, ids in prompts.token_ids.items()}


def loop_settings_for(config: RunConfig) -> LoopSettings:
    """The settings of the loop itself."""
    return LoopSettings(
        steps=config.steps,
        eval_every=config.eval.every,
        checkpoint_every=config.checkpoint.every,
        packing=Packing(
            loss_agg_mode=config.objective.loss_agg_mode,
            max_tokens_per_microbatch=config.optim.max_tokens_per_microbatch,
            skip_zero=config.advantages_alone,
            max_tokens=config.sampling.max_tokens,
            minibatches=config.optim.minibatches,
            epochs=config.optim.epochs,
            seed=config.seed,
        ),
        mask_truncated=config.objective.mask_truncated,
        drop_zero_variance=config.objective.drop_zero_variance,
        subsample=config.optim.subsample,
        seed=config.seed,
    )


def replay_for(config: RunConfig) -> ReplayBuffer:
    """The memory of past groups; with `replay.groups = 0` it keeps none."""
    return ReplayBuffer(
        config.replay,
        seed=config.seed,
        reward=identity(config.rewards, config.environment),
        reference=portable(config.model.name),
        renewed_every=config.reference.sync_every,
    )


def trainer_for(config: RunConfig, inputs: Inputs, scorer: Scorer, recorder: Recorder, policy: Policy) -> Trainer:
    """The loop with all its parts."""
    engine = engine_for(config, inputs, policy, recorder=recorder)
    evaluator = evaluator_for(config, engine, inputs.chat, scorer, inputs.heldout)
    sampler, estimator = sampler_and_estimator(
        config,
        inputs,
        policy,
        collector_for(config, engine, inputs.chat, scorer, seed=config.seed),
        replace(
            sampling_for(config, config.sampling.temperature),
            progress=lambda done, total: recorder.callback.on_progress("sampling", done, total, "completions"),
        ),
        evaluator.criterion.of_group,
    )
    if config.distill is not None:
        estimator = taught_estimator(config, estimator, teacher_for(config, inputs))
    learner = run_learner(config, inputs, policy, recorder)
    lagged = None
    if config.engine.lag:
        assert isinstance(sampler, SequentialSampler), "the settings refuse others"
        assert isinstance(engine, EnginePool), "the settings refuse others"
        lagged = LaggedSampler(sampler, engine, lag=config.engine.lag, steps=config.steps)
    return Trainer(
        sampler=sampler,
        lagged=lagged,
        estimator=estimator,
        replay=replay_for(config),
        history=engine.history if isinstance(engine, EmbeddedEngine) else None,
        learner=learner,
        engine=engine,
        schedules=schedules_for(config, learner),
        evaluator=evaluator,
        recorder=recorder,
        settings=loop_settings_for(config),
    )
