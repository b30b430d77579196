"""How far a model has moved from another one, on which tasks: what it gained, and what it may have forgotten.

KL(model‖base) is high where the model says what the base would not: it has learned, or gone astray. KL(base‖model) is
high where it no longer says what the base would have said: it has forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from coterie.algo.kl import k3
from coterie.batches.plan import plan_scoring
from coterie.config.objective import ReferenceConfig
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError
from coterie.observer import PASS, POOLED, Interval, Observer, Silent, metric_of
from coterie.one_off import Sampler, require_heldout, sampler_for, with_model
from coterie.policy.kernel import choose_kernel
from coterie.policy.passes import Passes
from coterie.policy.reference import Reference
from coterie.train.evaluation import Evaluation, interval_over_prompts
from coterie.types import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """On one task; `all` pools them. Intervals are over prompts; KL in nats a token."""

    task: str
    prompts: int
    base: Interval | None
    """The base's result, by `metric`."""
    model: Interval | None
    """The model's."""
    forward: Interval
    """KL(model‖base), on what the model says."""
    reverse: Interval
    """KL(base‖model), on what the base says."""
    metric: str = PASS
    """What `base` and `model` are: `pass@1`, or `reward` where the evaluated reward is graded."""


def measure(
    target: str | None, config: RunConfig, against: str | None = None, observer: Observer | None = None
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
    observer = observer or Silent()
    settings = [with_model(config, one) for one in (target, against)]
    require_heldout(config)
    if settings[0].model.name == settings[1].model.name:
        raise ConfigError(f"{settings[0].model.name} would be compared with itself; name a run, or a base by --against")
    model, base = (sampler_for(_plain(one), observer, need_train=False) for one in settings)
    if model.inputs.heldout.token_ids != base.inputs.heldout.token_ids:
        raise ConfigError(
            f"{settings[0].model.name} and {settings[1].model.name} read the same prompts as different tokens, so "
            "neither can score what the other says; compare models of one tokenizer and chat template"
        )
    said = model.evaluate(observer), base.evaluate(observer)
    moved = _divergence(model, base, _rollouts(said[0])), _divergence(base, model, _rollouts(said[1]))
    return _table(said, moved, config.seed)


def _plain(config: RunConfig) -> RunConfig:
    """Without a new adapter on top of it."""
    return config.model_copy(update={"model": config.model.model_copy(update={"lora": None})})


def _rollouts(said: Evaluation) -> Sequence[Rollout]:
    return () if said.experience is None else said.experience.rollouts


def _divergence(one: Sampler, other: Sampler, rollouts: Sequence[Rollout]) -> dict[str, tuple[str, float]]:
    """Task and KL(one‖other) in nats a token by prompt id, from what `one` said. k3 of each token, whose expectation
    over it is the KL of the two distributions there, and which is never negative."""
    config = one.config
    reference = Reference(one.policy, other.policy, ReferenceConfig())
    kernel = choose_kernel(one.policy, config.optim.attention)
    passes = Passes(one.policy, kernel, temperature=config.eval.temperature, reference=reference, critic=None)
    batches = plan_scoring(rollouts, token_budget=config.optim.token_budget)
    scores = {name: found for batch in batches for name, found in passes.score(batch, entropy=False).items()}
    sums: dict[str, np.ndarray] = {}
    tasks = {item.context.prompt_id: item.context.task for item in rollouts}
    for item in rollouts:
        if item.id not in scores:
            continue
        found = scores[item.id]
        assert found.reference is not None
        values = k3(torch.from_numpy(found.logprobs), torch.from_numpy(found.reference))
        sums.setdefault(item.context.prompt_id, np.zeros(2))
        sums[item.context.prompt_id] += float(values.sum()), len(values)
    return {name: (tasks[name], float(total / count)) for name, (total, count) in sums.items()}


def _table(
    said: tuple[Evaluation, Evaluation], moved: tuple[Mapping[str, tuple[str, float]], ...], seed: int
) -> list[Drift]:
    model, base = ({result.task: result for result in one.results} for one in said)

    def interval(task: str, number: int) -> Interval:
        values = [value for own, value in moved[number].values() if task in (own, POOLED)]
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
