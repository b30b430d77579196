"""The only place that turns settings into objects: one visible dict per seam, and the verbs built from the parts."""

from __future__ import annotations

import hashlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from coterie import machine
from coterie.chatting import ChatSession
from coterie.collect import Collector
from coterie.config.load import load_file
from coterie.config.schema import RunConfig, Source
from coterie.data import assets, prompts
from coterie.data.chat import Chat, load_chat
from coterie.data.order import PromptOrder
from coterie.data.prompts import PromptSet
from coterie.engines.base import Engine, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.envs.single_turn import SingleTurn
from coterie.errors import CheckpointError, ConfigError, DataError, RunError
from coterie.observer import EvalResult, Observer, RunInfo, Silent
from coterie.policy.learner import Learner
from coterie.policy.model import Policy, load
from coterie.rewards.pool import Scorer
from coterie.runs import checkpoint
from coterie.runs.directory import RunDirectory
from coterie.runs.durable import json_dumps
from coterie.train.evaluation import Evaluator
from coterie.train.grpo import Trainer
from coterie.train.recorder import Recorder
from coterie.train.report import report_run
from coterie.train.stopping import StopSignal
from coterie.types import Prompt, Rollout

ENGINES: dict[str, Callable[[Policy, Chat, RunConfig, int], Engine]] = {
    "embedded": lambda policy, chat, config, capacity: EmbeddedEngine(
        policy, chat, slots=config.collect.slots, capacity=capacity
    ),
}
"""What `collect.engine` may name."""

STOP_TOKENS = 24
"""The engine looks for stop strings in the last 32 tokens."""

EVAL_STREAM = 1 << 40
"""Added to the seed of held-out samples: a training and a held-out prompt may share an id, never a random stream."""


def use_threads(config: RunConfig) -> int:
    """Set the number of threads of the maths; returns it."""
    count = config.threads or machine.cores()
    torch.set_num_threads(count)
    return count


def device_of(config: RunConfig) -> torch.device:
    """`auto` is the first accelerator, else the CPU."""
    name = config.model.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"model.device = {name!r}, but torch sees no CUDA device here; use auto or cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device = {name!r}; expected auto, cpu, cuda or cuda:N") from error


def dtype_of(config: RunConfig, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32."""
    name = config.model.dtype
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = machine.facts().native_bf16
        return torch.bfloat16 if native else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}[name]


def locate_model(config: RunConfig, observer: Observer) -> str:
    """Folder of an asset (fetched if need be), or the local folder or transformers id as it is.

    Raises:
        AssetError: the asset cannot be had.
    """
    name = config.model.name
    if name in assets.ASSETS and not Path(name).is_dir():
        return str(assets.ensure(name, progress=lambda message: observer.noted("progress", message)))
    return name


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is read before anything is written: bad input leaves nothing behind."""

    source: str
    chat: Chat
    train: PromptSet
    heldout: PromptSet

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All of them, training prompts first."""
        return (*self.train.prompts, *self.heldout.prompts)

    def longest(self) -> int:
        """Tokens of the longest prompt."""
        sets = (self.train.token_ids, self.heldout.token_ids)
        return max((len(ids) for found in sets for ids in found.values()), default=0)

    def digest(self) -> str:
        """Names what the prompts say, as the model sees it, and what counts as right."""
        held = hashlib.sha256(self.chat.template_hash.encode())
        for found in (self.train, self.heldout):
            for prompt in found.prompts:
                held.update(json_dumps([prompt.id, list(found.token_ids[prompt.id]), prompt.answer]).encode())
        return held.hexdigest()[:16]


def read_inputs(config: RunConfig, observer: Observer, *, need_train: bool = True) -> Inputs:
    """Load the tokenizer and every prompt, rendered and checked.

    Raises:
        DataError: no training prompts, or too many bad rows.
    """
    source = locate_model(config, observer)
    chat = load_chat(source, config.model.revision)
    train = _load(config.data.train, config, chat)
    if need_train and len(train.prompts) < config.collect.prompts:
        raise DataError(
            f"data.train has {len(train.prompts)} usable prompts, fewer than the {config.collect.prompts} that one "
            'step draws (collect.prompts); add a [[data.train]] source, e.g. type = "reasoning_gym", or draw fewer'
        )
    heldout = _load(config.data.heldout, config, chat, exclude=train.prompts, limit=config.eval.limit)
    return Inputs(source=source, chat=chat, train=train, heldout=heldout)


def _load(
    sources: Sequence[Source],
    config: RunConfig,
    chat: Chat,
    *,
    exclude: Sequence[Prompt] = (),
    limit: int | None = None,
) -> PromptSet:
    if not sources:
        return PromptSet.empty()
    return prompts.load(sources, config.data, chat, exclude, limit=limit)


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
    policy = load_policy(config, inputs.source)
    inputs.chat.check_vocabulary(policy.head.weight.shape[0])
    for name, ids in (*inputs.train.token_ids.items(), *inputs.heldout.token_ids.items()):
        if len(ids) + config.sampling.max_tokens > policy.context:
            raise DataError(
                f"prompt {name!r} has {len(ids)} tokens, which with sampling.max_tokens = {config.sampling.max_tokens} "
                f"is more than the model's context of {policy.context}; lower data.max_prompt_tokens (longer rows are "
                "then left out) or sampling.max_tokens"
            )
    return policy


def _check_stops(config: RunConfig, chat: Chat) -> None:
    for stop in config.sampling.stop:
        ids = chat.tokenizer(stop, add_special_tokens=False)["input_ids"]
        if len(ids) > STOP_TOKENS or stop not in chat.decode(ids):
            raise ConfigError(
                f"sampling.stop holds {stop!r}, which can never match: a stop string is plain text of at most "
                f"{STOP_TOKENS} tokens; the model's own end tokens always stop"
            )


def check_trainable(config: RunConfig) -> None:
    """Settings that sampling alone may have, but training may not.

    Raises:
        ConfigError: the sampler would not be the policy.
    """
    if config.sampling.top_p < 1 or config.sampling.top_k > 0:
        raise ConfigError(
            f"sampling.top_p = {config.sampling.top_p} and sampling.top_k = {config.sampling.top_k} cut the "
            "distribution, so the ratio would compare two different policies; train with top_p = 1 and top_k = 0"
        )


def _engine(config: RunConfig, inputs: Inputs, policy: Policy) -> Engine:
    capacity = inputs.longest() + config.sampling.max_tokens
    return ENGINES[config.collect.engine](policy, inputs.chat, config, capacity)


def _reference(config: RunConfig, source: str) -> Policy | None:
    """A frozen copy where the KL needs one that adapters cannot give."""
    if config.objective.kl_beta == 0 or config.model.lora is not None:
        return None
    reference = load_policy(config, source)
    reference.model.requires_grad_(False)
    return reference


def _sampling(config: RunConfig, temperature: float) -> Sampling:
    settings = config.sampling
    return Sampling(
        temperature=temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_tokens,
        stop=tuple(settings.stop),
        deadline_s=settings.deadline_s,
    )


def _collector(config: RunConfig, engine: Engine, chat: Chat, scorer: Scorer, *, seed: int) -> Collector:
    return Collector(
        engine=engine,
        environment=SingleTurn(),
        chat=chat,
        scorer=scorer,
        seed=seed,
        max_error_share=config.collect.max_error_share,
    )


def _evaluator(config: RunConfig, engine: Engine, chat: Chat, scorer: Scorer, heldout: PromptSet) -> Evaluator:
    sampling = _sampling(config, config.eval.temperature)
    # The deadline is for a training step's worth of rollouts; an evaluation may be many times as large.
    steps = len(heldout.prompts) * config.eval.samples / (config.collect.prompts * config.collect.group_size)
    return Evaluator(
        _collector(config, engine, chat, scorer, seed=config.seed + EVAL_STREAM),
        heldout.prompts,
        config=config.eval,
        sampling=replace(sampling, deadline_s=sampling.deadline_s * max(1.0, steps)),
        part=config.eval.part or config.rewards.labels()[0],
        seed=config.seed,
    )


def _save_model(policy: Policy, chat: Chat) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        policy.save(folder)
        chat.tokenizer.save_pretrained(folder)

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


def _build(config: RunConfig, inputs: Inputs, scorer: Scorer, recorder: Recorder, policy: Policy) -> Trainer:
    engine = _engine(config, inputs, policy)
    learner = Learner(
        policy,
        optim=config.optim,
        objective=config.objective,
        temperature=config.sampling.temperature,
        total_steps=config.steps * config.optim.minibatches * config.optim.epochs,
        reference=_reference(config, inputs.source),
    )
    return Trainer(
        config=config,
        order=PromptOrder(inputs.train.prompts, seed=config.seed),
        collector=_collector(config, engine, inputs.chat, scorer, seed=config.seed),
        engine=engine,
        learner=learner,
        evaluator=_evaluator(config, engine, inputs.chat, scorer, inputs.heldout),
        recorder=recorder,
        sampling=_sampling(config, config.sampling.temperature),
    )


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
        trainer = _build(config, inputs, scorer, recorder, policy)
        if not fresh:
            _restore(trainer, recorder, run)
        observer.started(_info(config, run, inputs, policy, trainer.step + 1))
        _note_circumstances(recorder, trainer.step, inputs, policy)
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
    return Sampler(config=config, inputs=inputs, engine=_engine(config, inputs, policy))


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
        evaluator = _evaluator(config, ready.engine, ready.inputs.chat, scorer, ready.inputs.heldout)
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
        collector = _collector(config, ready.engine, ready.inputs.chat, scorer, seed=config.seed)
        drawn = order.draw(0, count)
        found = collector.collect(drawn, samples=1, sampling=_sampling(config, config.sampling.temperature))
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
