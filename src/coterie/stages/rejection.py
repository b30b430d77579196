"""Rejection sampling: rollouts of a model, or those that runs have stored, and the best of them as a data set."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from coterie import launch
from coterie.build.reading import locate_model
from coterie.build.run import collector_for, criterion_for, sampling_for
from coterie.callbacks import Callback, RunInfo, printing_to
from coterie.config.algorithms import stored
from coterie.config.imitation import RejectionConfig
from coterie.config.load import load_file
from coterie.config.schema import RunConfig
from coterie.data.chat import Chat, load_chat
from coterie.errors import CheckpointError, DataError, RunError
from coterie.inference.heldout import Sampler, sampler_for
from coterie.preflight import require_scorable
from coterie.rewards.pool import Scorer
from coterie.rollout.collector import Experience
from coterie.runs import parquet, rollouts
from coterie.runs.directory import RunDirectory, check_name, find
from coterie.runs.inspect import DATA
from coterie.runs.models import resolve
from coterie.runs.rollouts import RolloutRecord
from coterie.stages.dataset import write_data, write_selection
from coterie.stages.selection import Candidate, select
from coterie.text import counted
from coterie.train.recorder import Prints, Recorder
from coterie.train.stop_rules import StopSignal

FACTS = "prompts"
"""Kind of the event that names the prompts of a stage."""


def rejection(config: RunConfig, callback: Callback | None = None) -> Path:
    """Sample, or read, and select, in a new run folder; returns it. `data.parquet` in it is what `sft` reads.

    Raises:
        CoterieError: see its subclasses; what was sampled until then stays and can be resumed.
    """
    callback = callback or Callback()
    runs = Path(config.runs)
    check_name(runs, config.name)
    source = resolve(config.model.name, runs)
    settings = config.rejection or RejectionConfig()
    _check_runs(settings, runs)
    names = [str(RunDirectory.at(run, runs).path.absolute()) for run in settings.rollouts]
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"name": source.name}),
            "rejection": settings.model_copy(update={"rollouts": names}),
        }
    )
    sampler = None if names else _sampler(config, callback)
    with RunDirectory.create(runs, config.name, f"{source.label}-rejection") as run:
        run.write_config(stored(config.model_copy(update={"name": ""})))
        return _work(config, callback, run, sampler)


def resume(
    run: str | Path,
    callback: Callback | None = None,
    *,
    runs: Path = Path("runs"),
    fresh: bool = False,
    steps: int | None = None,
    accept_reward_change: bool = False,
) -> Path:
    """Go on with a run of any kind; see `launch.resume`. Rejection sampling goes on after the last step that was
    sampled, to the same rows as if never interrupted.

    Raises:
        RunError: no such run, another process uses it, or rejection sampling was asked for another number of steps.
        CheckpointError: the prompts are others than those it began with, and what `launch.resume` raises.
    """
    callback = callback or Callback()
    path = find(run, runs)
    config = load_file(path / "config.toml").config
    if config.rejection is None:
        options = {"fresh": fresh, "steps": steps, "accept_reward_change": accept_reward_change}
        return launch.resume(run, callback, runs=runs, **options)
    if fresh or steps is not None or accept_reward_change:
        raise RunError(f"{path} is rejection sampling, which takes no option to resume; start a new stage")
    with RunDirectory.open(run, runs) as directory:
        sampler = None if config.rejection.rollouts else _sampler(config, callback)
        return _work(config, callback, directory, sampler)


def _check_runs(settings: RejectionConfig, runs: Path) -> None:
    """Refuse runs without rollouts before anything is written."""
    for name in settings.rollouts:
        run = RunDirectory.at(name, runs)
        if not any(step >= settings.since for step in parquet.steps(run.rollouts)):
            raise RunError(
                f"{run.path} has no stored rollouts from step {settings.since} on; name a run of GRPO, or leave out "
                "rejection.rollouts to sample"
            )


def _sampler(config: RunConfig, callback: Callback) -> Sampler:
    sampler = sampler_for(config, callback, need_train=False)
    if not sampler.inputs.train.prompts:
        raise DataError(
            "there are no prompts to sample; add a [[data.train]] table, or name runs in rejection.rollouts"
        )
    require_scorable(config, sampler.inputs)
    return sampler


def _work(config: RunConfig, callback: Callback, run: RunDirectory, sampler: Sampler | None) -> Path:
    """Sample what is left, then select and write."""
    settings = config.rejection or RejectionConfig()
    if sampler is not None and not _sample(config, callback, run, sampler):
        callback.on_end(run.path, f"stopped; continue with: coterie resume {run.path}")
        return run.path
    callback.on_progress("selecting")
    if sampler is not None:
        chat = sampler.inputs.chat
        candidates = list(_candidates(run, config, since=1))
    else:
        chat = _chat_of(config, settings, callback)
        candidates = []
        for name in settings.rollouts:
            sampled = RunDirectory.at(name)
            candidates += _candidates(sampled, load_file(sampled.config).config, since=settings.since)
    selected = select(candidates, settings)
    if len(selected.kept) < settings.min_rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in selected.reasons.items())
        few = f"{len(selected.kept)} of" if selected.kept else "none of"
        least = f", fewer than rejection.min_rows = {settings.min_rows}" if selected.kept else ""
        raise DataError(
            f"{few} {counted(len(candidates), 'rollout')} {'are' if least else 'is'} kept{least} ({reasons}); lower "
            "rejection.min_reward, sample more of each prompt (collect.group_size) or more prompts, or take a better "
            "model"
        )
    sha256 = write_data(run.path, selected.kept, chat, settings, config.seed)
    write_selection(run.path, selected, candidates, sha256)
    kept = f"{len(selected.kept)} of {counted(len(candidates), 'rollout')} kept"
    callback.on_end(run.path, f"{kept}; rows are in {run.path / DATA}, what was kept and why in {run.readme}")
    return run.path


def _chat_of(config: RunConfig, settings: RejectionConfig, callback: Callback) -> Chat:
    """The tokenizer with which the stored rollouts were sampled."""
    first = load_file(RunDirectory.at(settings.rollouts[0]).config).config
    for name in settings.rollouts[1:]:
        other = load_file(RunDirectory.at(name).config).config
        if other.model.name != first.model.name:
            raise RunError(
                f"rejection.rollouts names runs of {first.model.name} and of {other.model.name}; take runs of one model"
            )
    source = locate_model(first.model.name, callback, Path(config.runs), first.model.revision)
    return load_chat(source, first.model.revision)


def _candidates(run: RunDirectory, config: RunConfig, *, since: int) -> Iterator[Candidate]:
    """All stored rollouts of a run, judged as its evaluation judges."""
    criterion = criterion_for(config)
    for step in parquet.steps(run.rollouts):
        if step >= since:
            for record in rollouts.read_step(run.rollouts, step):
                correct = criterion.is_correct(record.rollout)
                yield Candidate(record=record, run=run.path.resolve().name, step=step, correct=correct)


def _sample(config: RunConfig, callback: Callback, run: RunDirectory, sampler: Sampler) -> bool:
    """Sample the steps that are left, each of `collect.prompts_per_step` prompts; False when asked to stop before."""
    inputs, size = sampler.inputs, config.collect.prompts_per_step
    settings = config.rejection or RejectionConfig()
    steps = -(-len(inputs.train.prompts) // size)
    recorder = _recorder(config, callback, run, inputs.digest())
    try:
        done = _recorded(recorder, run)
        callback.on_start(_info(config, run, sampler, steps, done + 1))
        with (
            Scorer(config.rewards, max_steps=steps) as scorer,
            StopSignal(lambda message: callback.on_event("stop", message), lambda: "finishing this step") as stop,
            printing_to(Prints(recorder.log, callback)),
        ):
            scorer.start(inputs.prompts)
            collector = collector_for(config, sampler.engine, inputs.chat, scorer, seed=config.seed)
            sampling = sampling_for(config, config.sampling.temperature)
            enough = settings.enough or math.inf
            sampled = list(_candidates(run, config, since=1)) if settings.enough else []
            for step in range(done + 1, steps + 1):
                if len(select(sampled, settings).kept) >= enough:
                    callback.on_event("rejection", f"{enough} rollouts are kept after {step - 1} of {steps} steps")
                    break
                if stop.requested:
                    return False
                started = time.perf_counter()
                prompts = inputs.train.prompts[(step - 1) * size : step * size]
                experience = collector.collect(prompts, samples=config.collect.group_size, sampling=sampling)
                _record(recorder, step, experience, time.perf_counter() - started)
                sampled += _candidates(run, config, since=step) if settings.enough else ()
        return True
    finally:
        recorder.close()


def _recorder(config: RunConfig, callback: Callback, run: RunDirectory, digest: str) -> Recorder:
    """The recorder of a stage, which saves no model, with the prompts that it began with."""
    recorder = Recorder(
        run,
        callback=callback,
        save_model=lambda folder: None,
        keep=1,
        size=0,
        config_hash="",
        data_hash=digest,
        criterion=criterion_for(config),
    )
    before = recorder.last_facts(FACTS).get("sha256")
    if before not in (None, digest):
        recorder.close()
        raise CheckpointError(f"{run.path} began with other prompts, answers or chat template; start a new stage")
    if before is None:
        recorder.facts(FACTS, 0, {"sha256": digest})
    return recorder


def _recorded(recorder: Recorder, run: RunDirectory) -> int:
    """Steps that are whole, without a gap: with rollouts and metrics. Later ones are forgotten, and sampled again."""
    whole = set(recorder.db.steps()) & set(parquet.steps(run.rollouts))
    done = next(step for step in range(len(whole) + 1) if step + 1 not in whole)
    recorder.forget_after(done)
    return done


def _record(recorder: Recorder, step: int, experience: Experience, seconds: float) -> None:
    prompts = {prompt.id: prompt for prompt in experience.prompts}
    records = [
        RolloutRecord(
            prompt=prompts[rollout.context.prompt_id], rollout=rollout, credit=None, logprobs=None, seconds=seconds
        )
        for rollout in experience.rollouts
    ]
    rollouts.write_step(recorder.run.rollouts, step, records)
    usable = [rollout for rollout in experience.rollouts if rollout.outcome.usable]
    rewards = [rollout.reward for rollout in usable if rollout.reward is not None]
    metrics = {
        "length/mean": float(np.mean([rollout.context.completion_length for rollout in experience.rollouts])),
        "truncated": float(np.mean([rollout.stop_reason.truncated for rollout in experience.rollouts])),
        "rollouts": float(len(records)),
        "errors": float(len(experience.errors)),
        "tokens/generated": float(experience.tokens),
        "time/step": seconds,
        "speed/generate": experience.tokens / max(experience.generate_seconds, 1e-9),
    }
    if rewards:
        metrics |= {"reward/mean": float(np.mean(rewards)), "reward/std": float(np.std(rewards))}
    sample = (prompts[usable[0].context.prompt_id], usable[0]) if usable else None
    recorder.measured(step, metrics, sample)


def _info(config: RunConfig, run: RunDirectory, sampler: Sampler, steps: int, first: int) -> RunInfo:
    return RunInfo(
        run=run.path,
        steps=steps,
        first_step=first,
        model=config.model.name,
        parameters=sampler.policy.size(),
        trained_parameters=0,
        train_prompts=len(sampler.inputs.train.prompts),
        heldout_prompts=len(sampler.inputs.heldout.prompts),
        prompts_per_step=config.collect.prompts_per_step,
        group_size=config.collect.group_size,
    )
