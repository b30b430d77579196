"""Verbs of a run: train and resume. The other verbs are here too, for the program and for scripts."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from coterie import machine
from coterie.board.report import report_run
from coterie.build.learner import warnings_of
from coterie.build.reading import Inputs, device_of, read_inputs
from coterie.build.run import check_trainable, criterion_for, engine_notes, policy_for, trainer_for, use_threads
from coterie.build.services import service_threads
from coterie.build.sft import complete, scorable, sft_trainer_for
from coterie.callbacks import Callback, RunInfo, printing_to
from coterie.config.algorithms import stored
from coterie.config.layers import flatten
from coterie.config.load import load_file
from coterie.config.paths import hashed
from coterie.config.schema import RunConfig
from coterie.data.chat import Chat
from coterie.doctor.health import untrained
from coterie.errors import CheckpointError, CollapseError, CoterieError, RunError
from coterie.inference.conversation import chat
from coterie.inference.drift import drift
from coterie.inference.heldout import evaluate, model_of, sample
from coterie.policy.model import Policy
from coterie.preflight import dry_run, preflight, require_scorable, validate
from coterie.rewards.check import require_sound, sources
from coterie.rewards.missing import hidden_columns
from coterie.rewards.pool import Scorer
from coterie.runs import checkpoint
from coterie.runs.directory import RunDirectory, check_name
from coterie.runs.durable import json_dumps
from coterie.runs.inspect import last_step
from coterie.runs.missing import gaps
from coterie.runs.models import resolve
from coterie.text import counted
from coterie.trackers import Trackers
from coterie.trackers import require as require_trackers
from coterie.train.loop import Loop
from coterie.train.recorder import Prints, Recorder
from coterie.train.stop_rules import StopSignal, check_resumable, stop_rules, why_it_ended

NEEDED: dict[str, type] = {"step": int, "cursor": int, "pending": list, "version": int, "scale": dict}
NEEDED |= {"schedules": dict, "learner": dict, "data_hash": str}
"""Keys of a checkpoint's state with the types of their values; one that lacks any is of another version."""
__all__ = ["chat", "drift", "dry_run", "evaluate", "model_of", "resume", "sample", "train", "validate"]


def _save_model(policy: Policy, chat: Chat) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        policy.save(folder)
        chat.save(folder)

    return save


def _config_hash(config: RunConfig, run: RunDirectory, *, verbatim: bool = False, ordered: bool = False) -> str:
    """Hash of the settings a checkpoint belongs to: not where the run or anything else lies, so that a project can be
    moved; nor how long the run goes on, so that a finished one can be taken further (with a linear schedule, the rate
    then follows the new length); nor when a stop rule would end it, so that one can be relaxed; nor who is told of it;
    nor where its engine is, or how many there are.

    Args:
        verbatim: with paths as they are written, which is what older versions named.
        ordered: with keys in the order given, as older versions hashed them. A file does not keep that order: TOML has
            a table's plain values before the tables in it.
    """
    left_out = dict.fromkeys(("name", "runs", "module_path", "steps", "stop", "trackers", "cluster"), True)
    place = {"base_url", "model", "api_key_var", "weights_folder", "timeout_s", "retry_s", "replicas", "python"}
    dump = config.model_dump(mode="json", exclude={**left_out, "engine": place})
    settings = hashed(dump, run.read_config(), verbatim=verbatim)
    text = json_dumps(settings) if ordered else json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def train(config: RunConfig, callback: Callback | None = None) -> Path:
    """Train from the start in a new run folder; returns the folder.

    Raises:
        CoterieError: see its subclasses; what was recorded until then stays and can be resumed.
    """
    callback = callback or Callback()
    require_trackers(config.trackers)
    check_name(Path(config.runs), config.name)
    check_trainable(config)
    device_of(config)
    use_threads(config)
    source = resolve(config.model.name, Path(config.runs))
    # The run's own settings name the folder itself: neither another folder nor a newer checkpoint changes its start.
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": source.name})})
    config = _pinned(config)
    config, inputs = _completed(config, read_inputs(config, callback), callback)
    require_scorable(config, inputs)
    stem = f"{source.label}-{'sft-' if config.sft else ''}{inputs.task}"
    with Scorer(config.rewards, max_steps=config.steps) as scorer:
        scorer.start(inputs.prompts)
        callback.on_progress("checking the rewards")
        require_sound(scorer, inputs.prompts)
        callback.on_progress("loading the model")
        policy = policy_for(config, inputs)
        policy.require_trainable()
        with RunDirectory.create(Path(config.runs), config.name, _safe_name(stem)) as run:
            # The name is left out: `train @ runs/x/config.toml` repeats the run under a name of its own.
            run.write_config(stored(config.model_copy(update={"name": ""})))
            run.write_quarantine([row.as_dict() for row in inputs.quarantined])
            return _run(config, callback, run, inputs, policy, scorer, lambda trainer, recorder: None)


def _pinned(config: RunConfig) -> RunConfig:
    """The settings with the folders themselves of the teacher and the reference that they name."""
    update: dict[str, Any] = {}
    for section, key in (("distill", "teacher"), ("reference", "model")):
        table = getattr(config, section)
        name = None if table is None else getattr(table, key)
        if name is not None and "://" not in name:  # a server is what its address says
            update[section] = table.model_copy(update={key: resolve(name, Path(config.runs)).name})
    return config.model_copy(update=update)


def _completed(config: RunConfig, inputs: Inputs, callback: Callback) -> tuple[RunConfig, Inputs]:
    """Settings and inputs as a run takes them: those of a fine-tuning depend on its conversations."""
    if config.sft is None:
        return config, inputs
    inputs, note = scorable(config, inputs)
    if note:
        callback.on_event("warning", note)
    return complete(config, inputs), inputs


def resume(
    run: str | Path,
    callback: Callback | None = None,
    *,
    runs: Path = Path("runs"),
    fresh: bool = False,
    steps: int | None = None,
    accept_reward_change: bool = False,
) -> Path:
    """Continue a run from its newest verified checkpoint to its target step, bit for bit as if never interrupted.

    Args:
        fresh: set the checkpoints aside, whatever their state, and start over from step 0 with the same settings.
        steps: the run's new target, which its stored settings get; None keeps theirs. With `optim.schedule =
            "constant"` a longer run continues to the bit as one that was to have so many steps from the start; the
            linear schedule's rate follows the new length from the next step on.
        accept_reward_change: go on although the source of a reward function has changed since the checkpoint.

    Raises:
        RunError: no such run, another process uses it, it has more steps than `steps` already, or a stop rule ended
            it and would do so again.
        CheckpointError: there are checkpoints, or were, but none verifies; or the settings, the prompts or the source
            of a reward function are others than those of the checkpoint.
    """
    callback = callback or Callback()
    with RunDirectory.open(run, runs) as directory:
        directory.check_version()
        config = load_file(directory.config).config
        if steps is not None:
            config = _lengthened(directory, config, steps, callback)
        require_trackers(config.trackers)
        check_resumable(directory, stop_rules(config.stop, imitates=config.sft is not None))
        device_of(config)
        use_threads(config)
        config, inputs = _completed(config, read_inputs(config, callback), callback)
        with Scorer(config.rewards, max_steps=config.steps) as scorer:
            scorer.start(inputs.prompts)
            callback.on_progress("loading the model")
            policy = policy_for(config, inputs)
            begin = _start_over if fresh else partial(_restore, config, accept_reward_change=accept_reward_change)
            return _run(config, callback, directory, inputs, policy, scorer, begin)


def _lengthened(run: RunDirectory, config: RunConfig, steps: int, callback: Callback) -> RunConfig:
    """The settings with another number of steps, stored as the run's own."""
    finished = last_step(run)
    if steps < max(finished, 1):
        raise RunError(f"--steps {steps}: {run.path} has {counted(finished, 'step')} already; ask for more than that")
    if steps == config.steps:
        return config
    run.write_steps(steps)
    shortened = ": the run is shortened and ends there" if steps < config.steps else ""
    callback.on_event("resume", f"{run.config}: steps = {steps} (was {config.steps}){shortened}")
    if config.optim.schedule != "constant" and finished:
        callback.on_event(
            "warning",
            f"optim.schedule = {config.optim.schedule!r}: from step {finished + 1} on the learning rate is that of "
            f"a run of {steps} steps, while steps 1 to {finished} had that of one of {config.steps}",
        )
    return config.model_copy(update={"steps": steps})


def _run(
    config: RunConfig,
    callback: Callback,
    run: RunDirectory,
    inputs: Inputs,
    policy: Policy,
    scorer: Scorer,
    begin: Callable[[Loop, Recorder], None],
) -> Path:
    """Train from the state that `begin` sets up to the end, and record how the run ended; returns its folder."""
    settings = {".".join(key): value for key, value in flatten(run.read_config())}
    tracked = Trackers(callback, config.trackers, settings)
    recorder = _recorder_for(config, tracked, run, inputs, policy)
    trainer: Loop | None = None
    try:
        build = trainer_for if config.sft is None else sft_trainer_for
        trainer = build(config, inputs, scorer, recorder, policy)
        begin(trainer, recorder)
        first = trainer.progress.step
        _announce(config, trainer, inputs, policy, scorer)
        with (
            StopSignal(lambda message: callback.on_event("stop", message), trainer.plan) as stop,
            printing_to(Prints(recorder.log, callback)),
        ):
            finished = trainer.run(stop)
        step = trainer.progress.step
        if not finished:
            recorder.record_event(step, "stop", f"asked to stop; stopped after step {step}")
            callback.on_event("stopped", stop.name)
        if step > first and (reason := untrained(recorder.db)):
            recorder.note(step, "warning", reason)
        report_run(run)
    except CollapseError:
        report_run(run)
        raise
    except KeyboardInterrupt:
        message = "nothing was trained" if trainer is None else trainer.losses(run.path)
        with suppress(CoterieError):
            recorder.record_event(None if trainer is None else trainer.progress.step, "stop", f"interrupted; {message}")
        raise KeyboardInterrupt(message) from None
    except BaseException as error:
        recorder.log.line("error", traceback.format_exc())
        with suppress(CoterieError):  # the disk may be what failed; the first error is the one to tell
            recorder.record_event(None, "error", f"{type(error).__name__}: {error}")
        raise
    finally:
        if trainer is not None:
            trainer.close()
        recorder.close()
        tracked.close()
    callback.on_end(run.path, _closing_line(run, step, config.steps, finished))
    return run.path


def _recorder_for(config: RunConfig, callback: Callback, run: RunDirectory, inputs: Inputs, policy: Policy) -> Recorder:
    return Recorder(
        run,
        callback=callback,
        save_model=_save_model(policy, inputs.chat),
        keep=config.checkpoint.keep,
        size=_checkpoint_size(config, policy),
        config_hash=_config_hash(config, run),
        data_hash=inputs.digest(),
        stops=stop_rules(config.stop, imitates=config.sft is not None),
        criterion=criterion_for(config),
        reward_sources=sources(config.rewards, config.environment),
    )


def _announce(config: RunConfig, trainer: Loop, inputs: Inputs, policy: Policy, scorer: Scorer) -> None:
    """Events before the first step: the circumstances, notes and warnings, and the memory of the longest batch."""
    recorder, step = trainer.recorder, trainer.progress.step
    unfinished = step < config.steps
    if unfinished:
        recorder.require_room()
    recorder.callback.on_start(_info(config, recorder.run, inputs, policy, step + 1))
    _note_circumstances(recorder, step, inputs, policy, config)
    hidden = (*hidden_columns(inputs.train), *hidden_columns(inputs.heldout))
    for note in dict.fromkeys((*scorer.notes, *hidden)):
        recorder.note(step, "rewards", note)
    for warning in (*warnings_of(config), *engine_notes(config, trainer.engine)):
        recorder.note(step, "warning", warning)
    if unfinished:
        recorder.callback.on_progress("measuring the memory of the longest batch")
        recorder.note(step, "memory", preflight(config, inputs, trainer.learner).line())


def _note_circumstances(recorder: Recorder, step: int, inputs: Inputs, policy: Policy, config: RunConfig) -> None:
    """Record what the numbers depend on beside the settings, and warn where it changed since the last attempt."""
    learners = str(config.cluster.learners)
    now = machine.versions() | {
        "chat template": inputs.chat.template_hash,
        "device": policy.device.type,
        "dtype": str(policy.dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "engines": f"{config.engine.replicas} of {counted(service_threads(config), 'thread')}",
        "learners": learners if learners == "1" else f"{learners}, {config.cluster.strategy}",
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
    for note in policy.notes:
        recorder.note(step, "model", note)
    demonstrations = () if inputs.demonstrations is None else inputs.demonstrations.notes
    for note in (*inputs.chat.notes, *inputs.train.warnings, *demonstrations, *inputs.heldout.warnings):
        recorder.note(step, "data", note)


def _restore(config: RunConfig, trainer: Loop, recorder: Recorder, *, accept_reward_change: bool = False) -> None:
    """Continue from the newest checkpoint that verifies, or from step 0 where none was ever saved."""
    run = recorder.run
    latest = checkpoint.newest(run.checkpoints, NEEDED)
    ended = why_it_ended(recorder.db)
    if latest is None:
        before = recorder.saved_before()
        if before is not None:
            raise CheckpointError(
                f"{run.checkpoints} holds no checkpoint, though one of step {before} was recorded: it was moved or "
                "deleted. Put it back, or start over from step 0 with `coterie resume RUN --fresh`"
            )
        recorder.forget_after(-1)
        text = "no checkpoint yet: starting over from step 0, with the same random draws"
        recorder.note(None, "resume", f"{ended}{text}")
        return
    older = (_config_hash(config, run, verbatim=verbatim, ordered=True) for verbatim in (False, True))
    hashes = (recorder.config_hash, *older)
    for what, saved, now in (
        ("settings", latest.config_hash, hashes),
        ("prompts, answers or chat template", latest.state["data_hash"], (recorder.data_hash,)),
    ):
        if saved not in now:
            raise CheckpointError(
                f"{latest.path} was made with other {what} than {run.config} gives now; put them back, or start a new "
                f"run from this checkpoint: coterie train @ {run.config} --model.name {latest.path}"
            )
    changed = recorder.changed_rewards(latest.step, latest.state.get("reward_sources"))
    if changed and not accept_reward_change:
        raise CheckpointError(
            f"the source of {', '.join(changed)} has changed since {latest.path} was saved: restore it, or start a new "
            f"run from this checkpoint: coterie train @ {run.config} --model.name {latest.path}, or go on with the new "
            f"reward: coterie resume {run.path} --accept-reward-change, which compares no evaluation before step "
            f"{latest.step} with one after"
        )
    for what in recorder.db.damage()[:8]:
        recorder.note(latest.step, "warning", f"{run.metrics} is damaged: the {what} does not match its hash")
    for text in gaps(run, recorder.db, latest.step, sampled=config.sft is None):
        recorder.note(latest.step, "warning", text)
    for path, reason in latest.skipped:
        recorder.note(latest.step, "warning", f"skipped {path.name}: {reason}")
    try:
        trainer.learner.load(latest.path, latest.state["learner"])
        recorder.prompt_stats.load(latest.path)
        forgotten = trainer.load(latest.path)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the state of {latest.path} lacks counters of the learner: {error!r}") from error
    recorder.forget_after(latest.step)
    spare = recorder.stops.good_checkpoint(latest.step), trainer.best()
    checkpoint.prune(run.checkpoints, latest.step, recorder.keep, spare)
    trainer.restore(latest.state)
    if changed:
        recorder.reward_changed(latest.step, changed)
    recorder.note(latest.step, "resume", f"{ended}continuing from {latest.path.name}")
    if forgotten:
        recorder.note(latest.step, "warning", forgotten)


def _start_over(trainer: Loop, recorder: Recorder) -> None:
    aside = recorder.run.set_checkpoints_aside()
    recorder.forget_after(-1)
    where = f"; the old checkpoints are in {aside}" if aside is not None else ""
    recorder.note(None, "resume", f"starting over from step 0, as asked{where}")


def _checkpoint_size(config: RunConfig, policy: Policy) -> int:
    """Bytes of a checkpoint's tensors: masters, two moments, and the model (or adapter) beside them."""
    trained = list(policy.parameters().values())
    masters = sum(p.numel() * max(p.element_size(), torch.float32.itemsize) for p in trained)
    moments = 2 * (sum(p.numel() for p in trained) if config.optim.moments == "8bit" else masters)
    model_weights = trained if config.model.lora is not None else list(policy.model.parameters())
    return masters + moments + sum(p.numel() * p.element_size() for p in model_weights)


def _info(config: RunConfig, run: RunDirectory, inputs: Inputs, policy: Policy, first_step: int) -> RunInfo:
    rows = inputs.demonstrations
    return RunInfo(
        run=run.path,
        steps=config.steps,
        first_step=first_step,
        model=config.model.name,
        parameters=policy.size(),
        trained_parameters=sum(parameter.numel() for parameter in policy.parameters().values()),
        train_prompts=len(inputs.train.prompts if rows is None else rows.train),
        heldout_prompts=len(inputs.heldout.prompts),
        prompts_per_step=config.collect.prompts_per_step if config.sft is None else config.sft.batch_size,
        group_size=config.collect.group_size if config.sft is None else 0,
    )


def _closing_line(run: RunDirectory, step: int, steps: int, finished: bool) -> str:
    if finished:
        return f"training finished, {counted(step, 'step')}; results and checkpoint are in {run.path}"
    if step == 0:
        return "stopped before the first step was finished; start again with the same command"
    what = f"stopped after step {step} of {steps}" if step < steps else "stopped before the last evaluation"
    return f"{what}; continue with: coterie resume {run.path}"


def _safe_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in text).strip("-.") or "run"
