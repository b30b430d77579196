"""Settings → objects: one function per part of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from coterie import machine
from coterie.algo.estimators import Estimator
from coterie.batches.pack import Packing
from coterie.build.learner import (
    estimator_for,
    group_aware_estimator,
    learner_for,
    objective_for,
    schedules_for,
)
from coterie.callbacks import Callback
from coterie.config.data import Source
from coterie.config.parts import ENGINES, part
from coterie.config.paths import portable
from coterie.config.schema import RunConfig
from coterie.config.user_functions import search_in
from coterie.data import prompts
from coterie.data.chat import Chat, load_chat
from coterie.data.order import PromptOrder
from coterie.data.prompts import PromptSet
from coterie.data.tool_templates import equip
from coterie.engines.base import Engine, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.envs.registry import environment_for, limits_of
from coterie.envs.tool_use import ToolUse
from coterie.errors import ConfigError, DataError
from coterie.grouping.features import Embed
from coterie.policy.activations import keep_freed
from coterie.policy.device import device_named, dtype_named
from coterie.policy.embedding import Encoder, embed_prompts, load_encoder
from coterie.policy.model import Policy, load
from coterie.policy.waiting import WAIT_POLICY
from coterie.rewards.check import CONSOLATION, identity
from coterie.rewards.pool import Scorer
from coterie.rewards.registry import BINARY
from coterie.rollout.collector import Collector
from coterie.rollout.replay import ReplayBuffer
from coterie.rollout.sampler import AllocatedSampler, Metric, PromptSampler, SequentialSampler
from coterie.runs import models
from coterie.runs.durable import json_dumps
from coterie.runs.models import Kind
from coterie.train.evaluate import Criterion, Evaluator, Scale
from coterie.train.grpo import Trainer
from coterie.train.recorder import Recorder
from coterie.train.step import LoopSettings
from coterie.types import Prompt

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


def device_of(config: RunConfig) -> torch.device:
    """Device of the model; `auto` is the first CUDA device, else the CPU."""
    return device_named(config.model.device)


def dtype_of(config: RunConfig, device: torch.device) -> torch.dtype:
    """Number format of the model; `auto` is bfloat16 where the hardware multiplies it natively, else float32."""
    return dtype_named(config.model.dtype, device)


def locate_model(
    name: str, callback: Callback, runs: Path = Path("runs"), revision: str | None = None, kind: Kind = "model"
) -> str:
    """Folder or hub id behind a model's name; an asset is fetched if need be."""
    return models.locate(
        models.resolve(name, runs, kind),
        revision,
        note=lambda message: callback.on_event("progress", message),
        arrived=lambda done, total: callback.on_progress(f"downloading {name}", done, total, "bytes"),
    )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Tokenizer and prompts, read before anything is written: bad input leaves nothing behind."""

    source: str
    chat: Chat
    train: PromptSet
    heldout: PromptSet
    encoder: Encoder | None = None
    """Embeds the prompts, where it is not the policy that does."""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All of them, training prompts first."""
        return (*self.train.prompts, *self.heldout.prompts)

    def longest(self) -> int:
        """Tokens of the longest prompt."""
        sets = (self.train.token_ids, self.heldout.token_ids)
        return max((len(ids) for token_ids in sets for ids in token_ids.values()), default=0)

    def digest(self) -> str:
        """Hash of the prompts, as the model sees them, and of their gold answers."""
        digest = hashlib.sha256(self.chat.template_hash.encode())
        for source in (self.train, self.heldout):
            for prompt in source.prompts:
                digest.update(json_dumps([prompt.id, list(source.token_ids[prompt.id]), prompt.answer]).encode())
        return digest.hexdigest()[:16]


def read_inputs(config: RunConfig, callback: Callback, *, need_train: bool = True) -> Inputs:
    """Load the tokenizer and every prompt, rendered and checked.

    Raises:
        DataError: no training prompts, or too many bad rows, or the chat template does not do for the environment.
        ConfigError: there is no such environment, or it does not take its params.
    """
    search_in(config.module_path)
    source = locate_model(config.model.name, callback, Path(config.runs), config.model.revision)
    callback.on_progress("loading the tokenizer")
    chat = load_chat(source, config.model.revision, skip_special_tokens=config.sampling.skip_special_tokens)
    callback.on_progress("reading and tokenizing the prompts")
    environment = environment_for(config.environment)
    if isinstance(environment, ToolUse):
        chat = equip(chat, environment.schemas, environment.preamble, environment.role)
    if config.environment.talks:
        chat.check_turns()
    train = _load(config.data.train, config, chat)
    if need_train:
        _check_enough(config, train)
    heldout = _load(config.data.heldout, config, chat, exclude=train, limit=config.eval.limit)
    encoder = encoder_for(config, callback) if need_train else None
    return Inputs(source=source, chat=chat, train=train, heldout=heldout, encoder=encoder)


def _order(config: RunConfig, train: PromptSet) -> PromptOrder:
    return PromptOrder(train.prompts, seed=config.seed, presence=train.presence, rehearsal=config.data.rehearsal)


def _check_enough(config: RunConfig, train: PromptSet) -> None:
    """Refuse fewer prompts than a step draws, all different, also where sources have left or not yet joined."""
    needed = config.collect.prompts_per_step
    order = _order(config, train)
    for stage in order.stages:
        count = order.available(stage.start)
        if count < needed:
            when = f" after {stage.start} drawn ones" if stage.start else ""
            raise DataError(
                f"data.train has {count} usable prompts{when}, fewer than the {needed} that one step draws "
                '(collect.prompts_per_step); add a [[data.train]] source, e.g. type = "reasoning_gym", or draw fewer'
            )


def encoder_for(config: RunConfig, callback: Callback) -> Encoder | None:
    """The sentence encoder that the settings ask for."""
    if config.grouping.preset == "prompt" or config.grouping.embedding in ("policy", "none"):
        return None
    source = locate_model(config.grouping.embedding, callback, kind="encoder")
    return load_encoder(source, device_of(config))


def _load(
    sources: Sequence[Source],
    config: RunConfig,
    chat: Chat,
    *,
    exclude: PromptSet | None = None,
    limit: int | None = None,
) -> PromptSet:
    if not sources:
        return PromptSet.empty()
    return prompts.load(sources, config.data, chat, exclude or (), limit=limit)


def load_policy(config: RunConfig, source: str) -> Policy:
    """The model to be trained or sampled."""
    device = device_of(config)
    return load(config.model, source, dtype=dtype_of(config, device), device=device, seed=config.seed)


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
    )


def engine_for(config: RunConfig, inputs: Inputs, policy: Policy, capacity: int | None = None) -> Engine:
    """The engine that the settings name.

    Args:
        capacity: tokens of the longest sequence, 0 where it is not known; None: of these settings and prompts.
    """
    longest = longest_episode(config, inputs) if capacity is None else capacity
    return part(ENGINES, config.engine.name)(policy, inputs.chat, config, longest)


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
    prompts, embed, order = inputs.train.prompts, embed_for(config, inputs, policy), _order(config, inputs.train)
    if not config.grouping.allocate:
        sampler = SequentialSampler(collector, order, config=config.collect, sampling=sampling, metric=metric)
        return sampler, estimator_for(config, prompts, embed)
    estimator = group_aware_estimator(config, prompts, embed)
    allocated = AllocatedSampler(
        collector,
        order,
        config=config.collect,
        sampling=sampling,
        allocate=estimator.allocate,
        candidates=config.grouping.candidates,
    )
    return allocated, estimator


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
    engine = engine_for(config, inputs, policy)
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
    learner = learner_for(config, policy, lambda: load_policy(config, inputs.source))
    return Trainer(
        sampler=sampler,
        estimator=estimator,
        replay=replay_for(config),
        learner=learner,
        engine=engine,
        schedules=schedules_for(config, learner),
        evaluator=evaluator,
        recorder=recorder,
        settings=loop_settings_for(config),
    )
