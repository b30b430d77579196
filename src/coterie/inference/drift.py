"""Divergence of a model from its base by task: what it gained, and what it may have forgotten.

KL(model‖base) is high where the model says what the base would not: it has learned, or gone astray. KL(base‖model) is
high where it no longer says what the base would have said: it has forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from coterie.algo.kl import k3
from coterie.batches.pack import plan_scoring
from coterie.callbacks import Callback
from coterie.config.objective import ReferenceConfig
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError
from coterie.inference.heldout import Sampler, require_heldout, sampler_for, with_model
from coterie.policy.forward import ForwardPass
from coterie.policy.kernels import choose_kernel
from coterie.policy.reference import Reference
from coterie.train.evaluate import Evaluation, interval_over_prompts
from coterie.types import PASS, POOLED, Interval, Rollout, RolloutScores, metric_of


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


def drift(
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
