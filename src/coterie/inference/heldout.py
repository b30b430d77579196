"""Held-out evaluation of a model, and samples of it, without a run of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from coterie.build.reading import Inputs, device_of, read_inputs
from coterie.build.run import collector_for, engine_for, evaluator_for, policy_for, sampling_for, use_threads
from coterie.callbacks import Callback, ToStderr, printing_to
from coterie.config.schema import RunConfig
from coterie.data.order import PromptOrder
from coterie.engines.base import Engine
from coterie.errors import DataError
from coterie.policy.model import Policy
from coterie.rewards.pool import Scorer
from coterie.runs.models import resolve
from coterie.train.evaluate import EVALUATING, Evaluation
from coterie.types import EvalResult, Prompt, Rollout


def model_of(target: str, runs: Path = Path("runs")) -> str:
    """The model folder behind a run (its newest verified checkpoint), a checkpoint folder, a model folder; an asset's
    name or a hub id as it is.
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
        step = step_of(self.config.model.name)
        self.engine.commit(step)  # a checkpoint's own draws: the run's own evaluation comes out again
        with closing(self.engine), printing_to(ToStderr()), Scorer(self.config.rewards) as scorer:
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
    """Refuse settings without held-out prompts."""
    if not config.data.heldout:
        raise DataError(
            "data.heldout is empty: add a [[data.heldout]] source (@ FILE.toml), or name a run that has one"
        )


def evaluate(target: str | None, config: RunConfig, callback: Callback | None = None) -> list[EvalResult]:
    """Held-out accuracy of a run, checkpoint or model on `data.heldout`."""
    callback = callback or Callback()
    config = with_model(config, target)
    require_heldout(config)
    results = list(sampler_for(config, callback, need_train=False).evaluate(callback).results)
    callback.on_evaluate(results)
    return results


def step_of(model: str) -> int:
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
    with closing(ready.engine), printing_to(ToStderr()), Scorer(config.rewards) as scorer:
        collector = collector_for(config, ready.engine, ready.inputs.chat, scorer, seed=config.seed)
        drawn = order.draw(0, count)
        sampling = replace(
            sampling_for(config, config.sampling.temperature),
            progress=lambda done, total: callback.on_progress("sampling", done, total, "completions"),
        )
        experience = collector.collect(drawn, samples=1, sampling=sampling)
    for rollout in experience.rollouts:
        yield experience.prompt_of(rollout), rollout
