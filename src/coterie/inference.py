"""Inference with a model without a run of its own: evaluation, sampling, chat, and comparison with a base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from coterie.algo.kl import k3
from coterie.batches.pack import plan_scoring
from coterie.build.reading import Inputs, device_of, locate_model, read_inputs
from coterie.build.run import (
    collector_for,
    engine_for,
    evaluator_for,
    load_policy,
    policy_for,
    sampling_for,
    use_threads,
)
from coterie.callbacks import Callback, ToStderr, printing_to
from coterie.config.load import load_file
from coterie.config.objective import ReferenceConfig
from coterie.config.schema import RunConfig
from coterie.data.chat import load_chat
from coterie.data.order import PromptOrder
from coterie.engines.base import Engine, Request, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.errors import ConfigError, DataError, EngineError
from coterie.policy.forward import ForwardPass
from coterie.policy.kernels import choose_kernel
from coterie.policy.model import Policy
from coterie.policy.reference import Reference
from coterie.rewards.pool import Scorer
from coterie.runs.models import resolve
from coterie.text import before_stop
from coterie.train.evaluate import EVALUATING, Evaluation, interval_over_prompts
from coterie.types import (
    PASS,
    POOLED,
    EvalResult,
    Interval,
    Message,
    Prompt,
    Rollout,
    RolloutScores,
    SampleKey,
    metric_of,
)

# A conversation with a policy.


class ChatTemplate(Protocol):
    """The chat template as far as a conversation needs it."""

    def render(self, messages: Sequence[Message]) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class ChatSession:
    """A conversation; each reply is sampled from all messages so far.

    Args:
        context: longest sequence of the model, in tokens; an answer gets what the conversation leaves.
        system: first message of the conversation.
        seed: of the samples; two sessions with the same seed and the same questions give the same answers.
    """

    def __init__(
        self,
        engine: Engine,
        talk: ChatTemplate,
        sampling: Sampling,
        *,
        context: int,
        seed: int,
        system: str | None = None,
    ) -> None:
        self.engine = engine
        self.talk = talk
        self.sampling = sampling
        self.context = context
        self.seed = seed
        self.messages: list[Message] = [Message(role="system", content=system)] if system else []

    def reply(self, text: str) -> str:
        """Say `text`, return the answer; both become part of the conversation.

        Raises:
            EngineError: the conversation has outgrown the model's context; it is left as it was.
        """
        asked: list[Message] = [*self.messages, Message(role="user", content=text)]
        key = SampleKey(seed=self.seed, version=self.engine.version, prompt="chat", sample=0, turn=len(asked))
        request = Request(key=key, prompt_tokens=tuple(self.talk.render(asked)))
        room = self.context - len(request.prompt_tokens)
        if room < 1:
            raise EngineError(
                f"the conversation has {len(request.prompt_tokens)} tokens and the model's context is {self.context}; "
                "start a new one"
            )
        sampling = replace(self.sampling, max_tokens=min(self.sampling.max_tokens, room))
        (turn,) = self.engine.generate([request], sampling)
        answer = before_stop(self.talk.decode(turn.tokens), sampling.stop)
        self.messages = [*asked, Message(role="assistant", content=answer)]
        return answer


def model_of(target: str, runs: Path = Path("runs")) -> str:
    """The model folder behind a run (its newest verified checkpoint), a checkpoint folder, a model folder; an asset's
    name or a hub id as it is.

    Raises:
        ModelError, RunError: as `runs.models.resolve`.
    """
    return resolve(target, runs).name


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A model that can be sampled and scored, without a run."""

    config: RunConfig
    inputs: Inputs
    policy: Policy
    engine: Engine

    def evaluate(self, callback: Callback) -> Evaluation:
        """Held-out accuracy of the model, with the rollouts."""
        step = _step_of(self.config.model.name)
        self.engine.commit(step)  # a checkpoint's own draws: the run's own evaluation comes out again
        with printing_to(ToStderr()), Scorer(self.config.rewards) as scorer:
            scorer.start(self.inputs.prompts)
            evaluator = evaluator_for(self.config, self.engine, self.inputs.chat, scorer, self.inputs.heldout)
            return evaluator.evaluate(
                step, lambda done, total: callback.on_progress(EVALUATING, done, total, "completions")
            )


def sampler_for(config: RunConfig, callback: Callback, *, need_train: bool) -> Sampler:
    """The configured model, ready to be sampled.

    Args:
        need_train: False does without enough training prompts for a step.
    """
    device_of(config)
    use_threads(config)
    inputs = read_inputs(config, callback, need_train=need_train)
    callback.on_progress("loading the model")
    policy = policy_for(config, inputs)
    for note in policy.notes:
        callback.on_event("model", note)
    return Sampler(config=config, inputs=inputs, policy=policy, engine=engine_for(config, inputs, policy))


def with_model(config: RunConfig, target: str | None) -> RunConfig:
    """The same settings for another model; None keeps the configured one."""
    if target is None:
        return config
    name = model_of(target, Path(config.runs))
    # A finished adapter is read as it is; a new one on top would be another model.
    model = config.model.model_copy(update={"name": name, "lora": None})
    return config.model_copy(update={"model": model})


def require_heldout(config: RunConfig) -> None:
    """Refuse settings without held-out prompts.

    Raises:
        DataError: no held-out prompts are configured.
    """
    if not config.data.heldout:
        raise DataError(
            "data.heldout is empty: add a [[data.heldout]] source (@ FILE.toml), or name a run that has one"
        )


def evaluate(target: str | None, config: RunConfig, callback: Callback | None = None) -> list[EvalResult]:
    """Held-out accuracy of a run, checkpoint or model on `data.heldout`.

    Raises:
        DataError: no held-out prompts are configured.
    """
    callback = callback or Callback()
    config = with_model(config, target)
    require_heldout(config)
    results = list(sampler_for(config, callback, need_train=False).evaluate(callback).results)
    callback.on_evaluate(results)
    return results


def _step_of(model: str) -> int:
    """Training step of a checkpoint's model folder; 0 for any other model."""
    folder = Path(model).parent
    number = folder.name.removeprefix("step_")
    return int(number) if folder.parent.name == "checkpoints" and number.isdecimal() else 0


def sample(
    config: RunConfig, count: int, target: str | None = None, callback: Callback | None = None
) -> Iterator[tuple[Prompt, Rollout]]:
    """Sample and score one rollout of each of `count` training prompts, without training."""
    callback = callback or Callback()
    config = with_model(config, target)
    ready = sampler_for(config, callback, need_train=False)
    order = PromptOrder(ready.inputs.train.prompts or ready.inputs.heldout.prompts, seed=config.seed)
    if not order.prompts:
        raise DataError("data.train is empty: add a [[data.train]] source to sample from")
    with printing_to(ToStderr()), Scorer(config.rewards) as scorer:
        collector = collector_for(config, ready.engine, ready.inputs.chat, scorer, seed=config.seed)
        drawn = order.draw(0, count)
        sampling = replace(
            sampling_for(config, config.sampling.temperature),
            progress=lambda done, total: callback.on_progress("sampling", done, total, "completions"),
        )
        experience = collector.collect(drawn, samples=1, sampling=sampling)
    for rollout in experience.rollouts:
        yield experience.prompt_of(rollout), rollout


def complete(
    target: str,
    prompts: Sequence[str | Sequence[Mapping[str, str]]],
    *,
    samples: int = 1,
    temperature: float = 0.7,
    max_tokens: int = 128,
    system: str | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> list[list[str]]:
    """Completions of a run's or a model's policy: `samples` texts for each prompt, in order.

    Args:
        prompts: a text each, or a list of messages.
        system: put before each prompt that is a text; None takes the one a run was trained with, if any.

    Raises:
        DataError: a prompt is neither text nor messages.
        EngineError: a prompt does not fit the model's context.
    """
    config = with_model(RunConfig(), target)
    use_threads(config)
    callback = callback or Callback()
    source = locate_model(config.model.name, callback)
    talk = load_chat(source, config.model.revision, skip_special_tokens=config.sampling.skip_special_tokens)
    system = _system_of(target) if system is None else system
    conversations = [_conversation(prompt, number, system) for number, prompt in enumerate(prompts)]
    callback.on_progress("loading the model")
    engine = EmbeddedEngine(load_policy(config, source), talk)
    requests = [
        Request(
            key=SampleKey(seed=seed, version=engine.version, prompt=str(number), sample=attempt, turn=0),
            prompt_tokens=tuple(talk.render(conversation)),
        )
        for number, conversation in enumerate(conversations)
        for attempt in range(samples)
    ]
    sampling = Sampling(
        temperature=temperature,
        max_tokens=max_tokens,
        progress=lambda done, total: callback.on_progress("sampling", done, total, "completions"),
    )
    texts = [talk.decode(turn.tokens) for turn in engine.generate(requests, sampling)]
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def _conversation(prompt: str | Sequence[Mapping[str, str]], number: int, system: str | None) -> list[Message]:
    if isinstance(prompt, str):
        opening: list[Message] = [Message(role="system", content=system)] if system else []
        return [*opening, Message(role="user", content=prompt)]
    try:
        return [Message(role=message["role"], content=message["content"]) for message in prompt]
    except (TypeError, KeyError) as error:
        raise DataError(
            f"prompt {number} is {prompt!r}; expected text, or a list of messages with role and content"
        ) from error


def chat(
    target: str,
    *,
    system: str | None = None,
    temperature: float = 0.7,
    max_tokens: int = 512,
    seed: int | None = None,
    callback: Callback | None = None,
) -> ChatSession:
    """A conversation with a run's or a model's policy: `.reply(text)`.

    Args:
        system: system message; None takes the one the run was trained with, if any.
        seed: None takes a fresh one.
    """
    config = with_model(RunConfig(), target)
    use_threads(config)
    callback = callback or Callback()
    source = locate_model(config.model.name, callback, Path(config.runs), config.model.revision)
    talk = load_chat(source, config.model.revision, skip_special_tokens=config.sampling.skip_special_tokens)
    callback.on_progress("loading the model")
    policy = load_policy(config, source)
    engine = EmbeddedEngine(policy, talk, max_num_seqs=1)
    sampling = Sampling(temperature=temperature, top_p=0.95, max_tokens=max_tokens)
    return ChatSession(
        engine,
        talk,
        sampling,
        context=policy.context,
        seed=int.from_bytes(os.urandom(4), "little") if seed is None else seed,
        system=_system_of(target) if system is None else system,
    )


def _system_of(target: str) -> str | None:
    """The system message that a run was trained with."""
    run = resolve(target, check_files=False).run
    return None if run is None else load_file(run / "config.toml").config.data.system


# Divergence of a model from another one by task: what it gained, and what it may have forgotten.
#
# KL(model‖base) is high where the model says what the base would not: it has learned, or gone astray. KL(base‖model) is
# high where it no longer says what the base would have said: it has forgotten.


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Divergence on one task; `all` pools them. Intervals are over prompts; KL in nats a token."""

    task: str
    prompts: int
    base: Interval | None
    """The base's result, by `metric`."""
    model: Interval | None
    """The model's."""
    forward: Interval
    """KL(model‖base), on rollouts of the model."""
    reverse: Interval
    """KL(base‖model), on rollouts of the base."""
    metric: str = PASS
    """Metric of `base` and `model`: `pass@1`, or `reward` where the evaluated reward is graded."""


def measure(
    target: str | None, config: RunConfig, against: str | None = None, callback: Callback | None = None
) -> list[Drift]:
    """Sample both models on `data.heldout` as an evaluation does, and let each score what the other said.

    Args:
        target: run, checkpoint, model folder, asset or id.
        against: the base; None takes `model.name`, from which a run started.

    Raises:
        ConfigError: both are the same model, or they read different tokens.
        DataError: no held-out prompts are configured.
        RunError: a run has no checkpoint yet.
    """
    callback = callback or Callback()
    settings = [with_model(config, name) for name in (target, against)]
    require_heldout(config)
    if settings[0].model.name == settings[1].model.name:
        raise ConfigError(f"{settings[0].model.name} would be compared with itself; name a run, or a base by --against")
    model, base = (sampler_for(_plain(section), callback, need_train=False) for section in settings)
    if model.inputs.heldout.token_ids != base.inputs.heldout.token_ids:
        raise ConfigError(
            f"{settings[0].model.name} and {settings[1].model.name} read the same prompts as different tokens, so "
            "neither can score what the other says; compare models of one tokenizer and chat template"
        )
    evaluations = model.evaluate(callback), base.evaluate(callback)
    moved = _divergence(model, base, _rollouts(evaluations[0])), _divergence(base, model, _rollouts(evaluations[1]))
    return _table(evaluations, moved, config.seed)


def _plain(config: RunConfig) -> RunConfig:
    """The settings without a new adapter on top of the model."""
    return config.model_copy(update={"model": config.model.model_copy(update={"lora": None})})


def _rollouts(evaluation: Evaluation) -> Sequence[Rollout]:
    return () if evaluation.experience is None else evaluation.experience.rollouts


def _divergence(sampler: Sampler, other: Sampler, rollouts: Sequence[Rollout]) -> dict[str, tuple[str, float]]:
    """Task and KL(sampler‖other) in nats a token by prompt id, over what `sampler` sampled. k3 of each token, whose
    expectation is the KL of the two distributions there, and which is never negative."""
    config = sampler.config
    reference = Reference(sampler.policy, other.policy, ReferenceConfig())
    kernel = choose_kernel(sampler.policy, config.optim.attention)
    passes = ForwardPass(sampler.policy, kernel, temperature=config.eval.temperature, reference=reference, critic=None)
    batches = plan_scoring(rollouts, max_tokens_per_microbatch=config.optim.max_tokens_per_microbatch)
    scores: dict[str, RolloutScores] = {}
    for batch in batches:
        scores |= passes.score(batch, entropy=False)
    sums: dict[str, np.ndarray] = {}
    tasks = {item.context.prompt_id: item.context.task for item in rollouts}
    for item in rollouts:
        if item.id not in scores:
            continue
        scored = scores[item.id]
        assert scored.reference is not None
        values = k3(torch.from_numpy(scored.logprobs), torch.from_numpy(scored.reference))
        sums.setdefault(item.context.prompt_id, np.zeros(2))
        sums[item.context.prompt_id] += float(values.sum()), len(values)
    return {name: (tasks[name], float(total / count)) for name, (total, count) in sums.items()}


def _table(
    evaluations: tuple[Evaluation, Evaluation], moved: tuple[Mapping[str, tuple[str, float]], ...], seed: int
) -> list[Drift]:
    model, base = ({result.task: result for result in evaluation.results} for evaluation in evaluations)

    def interval(task: str, number: int) -> Interval:
        values = [value for prompt_task, value in moved[number].values() if task in (prompt_task, POOLED)]
        return interval_over_prompts(values, seed, task, f"kl {number}")

    metrics = {task: metric_of([base[task], result]) for task, result in model.items() if task in base}
    return [
        Drift(
            task=task,
            prompts=model[task].prompts,
            base=base[task].metric(metric),
            model=model[task].metric(metric),
            forward=interval(task, 0),
            reverse=interval(task, 1),
            metric=metric,
        )
        for task, metric in metrics.items()
    ]
