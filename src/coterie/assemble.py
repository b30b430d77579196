"""The verbs: train, resume, evaluate, sample, chat. Each reads its inputs, has its parts made, and runs them."""

from __future__ import annotations

import hashlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coterie import machine
from coterie.chatting import ChatSession
from coterie.checks import preflight
from coterie.config.load import load_file
from coterie.config.schema import RunConfig
from coterie.data.chat import Chat, load_chat
from coterie.data.order import PromptOrder
from coterie.engines.base import Engine, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.errors import CheckpointError, DataError, RunError
from coterie.observer import EvalResult, Observer, RunInfo, Silent
from coterie.parts import (
    Inputs,
    check_trainable,
    collector_for,
    engine_for,
    evaluator_for,
    load_policy,
    locate_model,
    policy_for,
    read_inputs,
    sampling_for,
    trainer_for,
    use_threads,
)
from coterie.policy.model import Policy
from coterie.rewards.pool import Scorer
from coterie.runs import checkpoint
from coterie.runs.directory import RunDirectory
from coterie.runs.durable import json_dumps
from coterie.train.grpo import Trainer
from coterie.train.recorder import Recorder
from coterie.train.report import report_run
from coterie.train.stopping import StopSignal
from coterie.types import Prompt, Rollout


def _save_model(policy: Policy, chat: Chat) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        policy.save(folder)
        chat.save(folder)

    return save


def _config_hash(config: RunConfig) -> str:
    """Names the settings a checkpoint belongs to: not where the run lies, nor how long it goes on, so that a finished
    run can be taken further (with a linear schedule, the rate then follows the new length)."""
    held = _without_nulls(config.model_dump(mode="json", exclude={"name", "runs", "steps"}))
    return hashlib.sha256(json_dumps(held).encode()).hexdigest()[:16]


def _without_nulls(value: Any) -> Any:
    """TOML has no null: a stored run's settings come back without the keys that were None."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def train(config: RunConfig, observer: Observer | None = None, *, provenance: Mapping[str, str] | None = None) -> Path:
    """Train from the start in a new run folder; returns the folder.

    Raises:
        CoterieError: see its subclasses; what was recorded until then stays and can be resumed.
    """
    observer = observer or Silent()
    check_trainable(config)
    use_threads(config)
    inputs = read_inputs(config, observer)
    stem = f"{Path(config.model.name).name}-{inputs.train.prompts[0].task}"
    with Scorer(config.rewards) as scorer:
        scorer.start(inputs.prompts)
        policy = policy_for(config, inputs)
        with RunDirectory.create(Path(config.runs), config.name, _safe_name(stem)) as run:
            # The name is left out: `train @ runs/x/config.toml` repeats the run under a name of its own.
            run.write_config(config.model_copy(update={"name": ""}).model_dump(mode="json"))
            run.write_quarantine([row.as_dict() for row in (*inputs.train.quarantined, *inputs.heldout.quarantined)])
            return _go(config, observer, run, inputs, policy, scorer, fresh=True)


def resume(run: str | Path, observer: Observer | None = None, *, runs: Path = Path("runs")) -> Path:
    """Continue a run from its newest verified checkpoint to its target step, bit for bit as if never interrupted.

    Raises:
        RunError: no such run, or another process uses it.
        CheckpointError: there are checkpoints, but none verifies.
    """
    observer = observer or Silent()
    with RunDirectory.open(run, runs) as directory:
        config = load_file(directory.config).config
        use_threads(config)
        inputs = read_inputs(config, observer)
        with Scorer(config.rewards) as scorer:
            scorer.start(inputs.prompts)
            return _go(config, observer, directory, inputs, policy_for(config, inputs), scorer, fresh=False)


def _go(
    config: RunConfig,
    observer: Observer,
    run: RunDirectory,
    inputs: Inputs,
    policy: Policy,
    scorer: Scorer,
    *,
    fresh: bool,
) -> Path:
    recorder = Recorder(
        run,
        observer=observer,
        save_model=_save_model(policy, inputs.chat),
        keep=config.checkpoint.keep,
        config_hash=_config_hash(config),
        data_hash=inputs.digest(),
    )
    try:
        trainer = trainer_for(config, inputs, scorer, recorder, policy)
        if not fresh:
            _restore(trainer, recorder, run)
        observer.started(_info(config, run, inputs, policy, trainer.step + 1))
        _note_circumstances(recorder, trainer.step, inputs, policy)
        if trainer.step < config.steps:
            recorder.note(trainer.step, "memory", preflight(config, inputs, trainer.learner).line())
        with StopSignal(lambda message: observer.noted("stop", message)) as stop:
            finished = trainer.run(stop)
        if not finished:
            recorder.record_event(trainer.step, "stop", f"asked to stop; stopped after step {trainer.step}")
        report_run(run)
    except BaseException as error:
        recorder.log.line("error", traceback.format_exc())
        recorder.record_event(None, "error", f"{type(error).__name__}: {error}")
        raise
    finally:
        recorder.close()
    observer.finished(run.path, _last_words(run, trainer.step, config.steps, finished))
    return run.path


def _note_circumstances(recorder: Recorder, step: int, inputs: Inputs, policy: Policy) -> None:
    """Record what the numbers depend on beside the settings, and warn where it changed since the run was started."""
    now = machine.versions() | {
        "chat template": inputs.chat.template_hash,
        "device": policy.device.type,
        "dtype": str(policy.dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
    }
    for name, before in recorder.last_facts("versions").items():
        if now.get(name) != before:
            recorder.note(
                step,
                "warning",
                f"{name} was {before} when this run was last worked on and is {now.get(name)} now: from here on the "
                "numbers are no longer those of an uninterrupted run",
            )
    recorder.facts("versions", step, now)
    for note in (*inputs.chat.notes, *inputs.train.warnings, *inputs.heldout.warnings):
        recorder.note(step, "data", note)


def _restore(trainer: Trainer, recorder: Recorder, run: RunDirectory) -> None:
    found = checkpoint.newest(run.checkpoints)
    if found is None:
        recorder.forget_after(-1)
        recorder.note(None, "resume", "no checkpoint yet: starting over from step 0, with the same random draws")
        return
    for what, saved, now in (
        ("settings", found.config_hash, recorder.config_hash),
        ("prompts, answers or chat template", found.state["data_hash"], recorder.data_hash),
    ):
        if saved != now:
            raise CheckpointError(
                f"{found.path} was made with other {what} than {run.config} gives now; put them back, or start a new "
                "run with `coterie train @ ...`"
            )
    for path, reason in found.skipped:
        recorder.note(found.step, "warning", f"skipped {path.name}: {reason}")
    trainer.learner.load(found.path, found.state["learner"])
    recorder.forget_after(found.step)
    trainer.restore(found.state)
    recorder.note(found.step, "resume", f"continuing from {found.path.name}")


def _info(config: RunConfig, run: RunDirectory, inputs: Inputs, policy: Policy, first_step: int) -> RunInfo:
    return RunInfo(
        run=run.path,
        steps=config.steps,
        first_step=first_step,
        model=config.model.name,
        parameters=policy.size(),
        trained_parameters=sum(parameter.numel() for parameter in policy.parameters().values()),
        train_prompts=len(inputs.train.prompts),
        heldout_prompts=len(inputs.heldout.prompts),
        prompts_per_step=config.collect.prompts,
        group_size=config.collect.group_size,
    )


def _last_words(run: RunDirectory, step: int, steps: int, finished: bool) -> str:
    if finished or step >= steps:
        return f"{step} steps done; everything is in {run.path}"
    return f"stopped after step {step} of {steps}; continue with: coterie resume {run.path}"


def _safe_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in text).strip("-.") or "run"


def model_of(target: str, runs: Path = Path("runs")) -> str:
    """The model folder behind a run (its newest verified checkpoint), a checkpoint folder, a model folder, an asset
    name or a transformers id.

    Raises:
        RunError: the run has no checkpoint yet.
    """
    folder = Path(target)
    if (folder / "model" / "config.json").is_file() or (folder / "model" / "adapter_config.json").is_file():
        return str(folder / "model")
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return target
    for path in (folder, runs / target):
        if (path / "config.toml").is_file():
            found = checkpoint.newest(path / "checkpoints")
            if found is None:
                raise RunError(f"{path} has no checkpoint yet; resume it until it has, or name its model instead")
            return str(found.path / "model")
    return target


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A model that can be sampled and scored, without a run."""

    config: RunConfig
    inputs: Inputs
    engine: Engine


def _sampler(config: RunConfig, observer: Observer, *, need_train: bool) -> Sampler:
    use_threads(config)
    inputs = read_inputs(config, observer, need_train=need_train)
    policy = policy_for(config, inputs)
    return Sampler(config=config, inputs=inputs, engine=engine_for(config, inputs, policy))


def with_model(config: RunConfig, target: str | None) -> RunConfig:
    """The same settings for another model; None keeps the configured one."""
    if target is None:
        return config
    name = model_of(target, Path(config.runs))
    # A finished adapter is read as it is; a new one on top would be another model.
    model = config.model.model_copy(update={"name": name, "lora": None})
    return config.model_copy(update={"model": model})


def evaluate(target: str | None, config: RunConfig, observer: Observer | None = None) -> list[EvalResult]:
    """Held-out accuracy of a run, checkpoint or model on `data.heldout`.

    Raises:
        DataError: no held-out prompts are configured.
    """
    observer = observer or Silent()
    config = with_model(config, target)
    if not config.data.heldout:
        raise DataError("data.heldout is empty: add a [[data.heldout]] source, or evaluate a run that has one")
    ready = _sampler(config, observer, need_train=False)
    step = _step_of(config.model.name)
    ready.engine.commit(step)  # a checkpoint's own draws: the run's own evaluation comes out again
    with Scorer(config.rewards) as scorer:
        scorer.start(ready.inputs.prompts)
        evaluator = evaluator_for(config, ready.engine, ready.inputs.chat, scorer, ready.inputs.heldout)
        results = list(evaluator.evaluate(step).results)
    observer.evaluated(results)
    return results


def _step_of(model: str) -> int:
    """Training step of a checkpoint's model folder; 0 for any other model."""
    folder = Path(model).parent
    number = folder.name.removeprefix("step_")
    return int(number) if folder.parent.name == "checkpoints" and number.isdecimal() else 0


def sample(config: RunConfig, count: int, target: str | None = None) -> Iterator[tuple[Prompt, Rollout]]:
    """Sample and score one rollout of each of `count` training prompts, without training."""
    config = with_model(config, target)
    ready = _sampler(config, Silent(), need_train=False)
    order = PromptOrder(ready.inputs.train.prompts or ready.inputs.heldout.prompts, seed=config.seed)
    if not order.prompts:
        raise DataError("data.train is empty: add a [[data.train]] source to sample from")
    with Scorer(config.rewards) as scorer:
        collector = collector_for(config, ready.engine, ready.inputs.chat, scorer, seed=config.seed)
        drawn = order.draw(0, count)
        found = collector.collect(drawn, samples=1, sampling=sampling_for(config, config.sampling.temperature))
    for rollout in found.rollouts:
        yield found.prompt_of(rollout), rollout


def chat(
    target: str, *, system: str | None = None, temperature: float = 0.7, max_tokens: int = 512, seed: int | None = None
) -> ChatSession:
    """A conversation with a run's or a model's policy: `.reply(text)`.

    Args:
        system: system message; None takes the one the run was trained with, if any.
        seed: None takes a fresh one.
    """
    config = with_model(RunConfig(), target)
    use_threads(config)
    source = locate_model(config, Silent())
    talk = load_chat(source, config.model.revision)
    policy = load_policy(config, source)
    engine = EmbeddedEngine(policy, talk, slots=1)
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
    for path in (Path(target), Path("runs") / target):
        if (path / "config.toml").is_file():
            return load_file(path / "config.toml").config.data.system
    return None


def validate(config: RunConfig) -> Any:
    """Check data and rewards through the real path, without a model's weights."""
    from coterie.checks import validate as check

    return check(config)


def dry_run(config: RunConfig) -> Any:
    """Check everything that `train` needs, measure a little, and train nothing."""
    from coterie.checks import dry_run as check

    return check(config)


def demo(observer: Observer, *, seed: int = 0, overrides: tuple[str, ...] | list[str] = ()) -> Path:
    """Train the shipped demo recipe."""
    from coterie.demo import run_demo

    return run_demo(observer, seed=seed, overrides=list(overrides))
