"""Checks of `coterie validate` and `coterie train --dry-run`, one line a fact."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from coterie.batches.batch import Batch
from coterie.batches.pack import largest, plan
from coterie.build import reading, run
from coterie.build.learner import learner_for, sft_learner, warnings_of
from coterie.build.reading import Inputs
from coterie.build.services import placement_words, service_threads
from coterie.build.sft import complete, demonstrations_of, scorable
from coterie.callbacks import Callback, ToStderr, printing_to
from coterie.config.objective import ReferenceConfig
from coterie.config.schema import RunConfig
from coterie.data.answers import THOUGHTS
from coterie.engines.base import Request, Sampling
from coterie.engines.scripted import ScriptedEngine
from coterie.envs.registry import environment_for, limits_of
from coterie.errors import CoterieError, RewardError
from coterie.machine import GIB
from coterie.policy import memory
from coterie.policy.device import free_bytes
from coterie.policy.kv import reserved
from coterie.policy.learner import Learner
from coterie.policy.memory import MemoryReport
from coterie.policy.model import Policy
from coterie.rewards.check import self_test
from coterie.rewards.missing import hidden_columns, unscorable_prompts
from coterie.rewards.pool import Scorer
from coterie.rollout.episodes import Episodes
from coterie.text import counted
from coterie.train.sft import imitation
from coterie.types import Context, Credit, Outcome, Prompt, Rollout, SampleKey, Turn

Level = Literal["ok", "warn", "fail"]
T = TypeVar("T")


@dataclass(slots=True)
class Report:
    """Facts, each with its level."""

    lines: list[tuple[Level, str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(level != "fail" for level, _, _ in self.lines)

    def add(self, level: Level, subject: str, text: str) -> None:
        self.lines.append((level, subject, text))

    def attempt(self, subject: str, work: Callable[[], T]) -> T | None:
        """Run one check; an error of ours becomes a failed line, and later checks still run."""
        try:
            return work()
        except CoterieError as error:
            self.add("fail", subject, str(error))
            return None


def validate(config: RunConfig) -> Report:
    """Settings, data and rewards: every prompt rendered, gold answers scored, garbage scored. Loads no weights.

    It fails where training could not begin.
    """
    report = Report()
    report.attempt("settings", lambda: run.check_trainable(config))
    inputs = report.attempt("data", lambda: reading.read_inputs(config, Callback()))
    if inputs is not None and config.sft is not None:
        inputs, note = scorable(config, inputs)
        if note:
            report.add("warn", "data, held out", note)
    if inputs is not None:
        _data_lines(report, config, inputs)
    if inputs is not None and inputs.prompts:
        report.attempt("environment", lambda: _environment_line(report, config, inputs))
        _scorable_lines(report, config, inputs)
        report.attempt("rewards", lambda: _reward_lines(report, config, inputs))
    return report


def dry_run(config: RunConfig) -> Report:
    """All of `validate`, then the model: batch arithmetic, memory, and time measured on a small sample."""
    report = Report()
    report.attempt("settings", lambda: run.check_trainable(config))
    for warning in warnings_of(config):
        report.add("warn", "settings", warning)
    if report.attempt("device", lambda: reading.device_of(config)) is None:
        return report
    run.use_threads(config)
    inputs = report.attempt("data", lambda: reading.read_inputs(config, Callback()))
    if inputs is None:
        return report
    if config.sft is not None:
        loaded, rows = config, inputs
        config = report.attempt("data", lambda: complete(loaded, rows)) or config
        inputs, note = scorable(config, inputs)
        if note:
            report.add("warn", "data, held out", note)
    _data_lines(report, config, inputs)
    if inputs.prompts:
        report.attempt("environment", lambda: _environment_line(report, config, inputs))
        _scorable_lines(report, config, inputs)
        report.attempt("rewards", lambda: _reward_lines(report, config, inputs))
    policy = report.attempt("model", lambda: run.policy_for(config, inputs))
    if policy is None:
        return report
    for note in policy.notes:
        report.add("warn" if policy.path.kind == "plain" else "ok", "model", note)
    _batch_line(report, config)
    learner = report.attempt("settings", lambda: _learner(config, inputs, policy))
    if learner is not None:
        report.attempt("memory", lambda: _memory_line(report, config, inputs, learner))
        report.attempt("time", lambda: _time_line(report, config, inputs, learner))
    return report


def _learner(config: RunConfig, inputs: Inputs, policy: Policy) -> Learner:
    """A learner without a reference, for the memory probe: the reference's memory is added as a number."""
    if config.sft is not None:
        return sft_learner(config, policy)
    without = {
        "objective": config.objective.model_copy(update={"kl_beta": 0.0}),
        "reference": ReferenceConfig(),
    }
    plain = config.model_copy(update=without)
    return learner_for(plain, policy, lambda: run.load_policy(config, inputs.source))


def _data_lines(report: Report, config: RunConfig, inputs: Inputs) -> None:
    rows = inputs.demonstrations
    for note in () if rows is None else rows.notes:
        report.add("warn" if rows and rows.quarantined else "ok", "data, train", note)
    sets = {"train": inputs.train, "held out": inputs.heldout}
    for name, prompt_set in sets.items() if rows is None else [("held out", inputs.heldout)]:
        tasks = sorted({prompt.task for prompt in prompt_set.prompts})
        text = counted(len(prompt_set.prompts), "prompt") + (f" of {', '.join(tasks)}" if tasks else "")
        report.add("warn" if prompt_set.quarantined else "ok", f"data, {name}", text)
        for note in prompt_set.warnings:
            report.add("ok", f"data, {name}", note)
    if not inputs.heldout.prompts:
        report.add(
            "warn",
            "data, held out",
            "no held-out prompts: held-out accuracy will not be reported; add [[data.heldout]]",
        )


def _environment_line(report: Report, config: RunConfig, inputs: Inputs) -> None:
    """A few episodes in which every turn says the gold answer: whether the environment runs, and its rewards."""
    limits = limits_of(config.environment)
    if limits is None or not inputs.prompts:
        return
    prompts = {prompt.id: prompt for prompt in _spread(inputs.prompts, 32)}

    def script(request: Request) -> list[int]:
        closing = THOUGHTS.get(inputs.chat.opening.strip(), "")
        words = closing + (prompts[request.key.prompt].answer or "?")
        return list(inputs.chat.tokenizer(words, add_special_tokens=False)["input_ids"])

    engine, environment = ScriptedEngine(script), environment_for(config.environment)
    episodes = Episodes(engine, environment, inputs.chat, seed=config.seed, limits=limits)
    sampling = Sampling(temperature=1.0, max_tokens=config.sampling.max_tokens)
    attempts = episodes.run([(prompt, 0) for prompt in prompts.values()], sampling)
    broken = [attempt for attempt in attempts if attempt.error is not None]
    if broken:
        level = "warn" if len(broken) <= config.collect.max_error_share * len(attempts) else "fail"
        text = f"{len(broken)} of {len(attempts)} episodes failed; the first, of prompt {broken[0].prompt.id}: "
        report.add(level, "environment", text + str(broken[0].error))
        return
    turns = sum(len(attempt.turns) for attempt in attempts) / len(attempts)
    earned = sum(turn.reward for attempt in attempts for turn in attempt.turns) / len(attempts)
    report.add(
        "ok",
        "environment",
        f"{config.environment.name}: {len(attempts)} episodes in which every turn says the gold answer have "
        f"{turns:.1f} turns and earn {earned:.2f} on average",
    )


def _scorable_lines(report: Report, config: RunConfig, inputs: Inputs) -> None:
    for prompts in (inputs.train, inputs.heldout):
        for gap in unscorable_prompts(config.rewards, prompts, config.collect.max_error_share):
            report.add("fail" if gap.fatal else "warn", "rewards", gap.text)
        for line in hidden_columns(prompts):
            report.add("warn", "rewards", line)


def require_scorable(config: RunConfig, inputs: Inputs) -> None:
    """Refuse prompts that no reward can score: the run would end after its first step was sampled.

    Raises:
        RewardError: names the source, its columns and the setting.
    """
    for prompts in (inputs.train, inputs.heldout):
        for gap in unscorable_prompts(config.rewards, prompts, config.collect.max_error_share):
            if gap.fatal:
                raise RewardError(gap.text, function=config.rewards.functions[0].name)


def _reward_lines(report: Report, config: RunConfig, inputs: Inputs) -> None:
    with printing_to(ToStderr()), Scorer(config.rewards, max_steps=config.steps) as scorer:
        scorer.start(inputs.prompts)
        check = self_test(
            scorer,
            _spread(inputs.prompts, 32),
            encode=lambda text: inputs.chat.tokenizer(text, add_special_tokens=False)["input_ids"],
        )
    for level, subject, text in (*check.lines(), *(("ok", "rewards", note) for note in scorer.notes)):
        report.add(level, subject, text)


def _spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Some prompts of every task, held-out ones included."""
    by_task: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_task.setdefault(prompt.task, []).append(prompt)
    each = max(1, count // max(1, len(by_task)))
    return [
        prompt
        for task_prompts in by_task.values()
        for prompt in task_prompts[:: max(1, len(task_prompts) // each)][:each]
    ]


def _batch_line(report: Report, config: RunConfig) -> None:
    collect, optim = config.collect, config.optim
    if config.sft is not None:
        drawn = counted(config.sft.batch_size, "conversation")
        report.add("ok", "batch", f"{drawn} a step, {counted(config.steps, 'step')}, optim.lr = {optim.lr:g}")
        return
    rollouts = collect.prompts_per_step * collect.group_size
    updates = counted(optim.minibatches * optim.epochs, "optimizer step")
    prompts, size = counted(collect.prompts_per_step, "prompt"), counted(collect.group_size, "rollout")
    batch = f"{prompts} × {size} = {rollouts} rollouts"
    report.add(
        "ok",
        "batch",
        f"{batch} a step, {updates} each; {counted(config.steps, 'step')} = {config.steps * rollouts} rollouts"
        + (f"; up to {config.replay.groups} past groups join each update" if config.replay.groups else ""),
    )


def preflight(config: RunConfig, inputs: Inputs, learner: Learner) -> MemoryReport:
    """Run the largest packed row that the settings allow once, without a step; see `coterie.policy.memory`.

    Raises:
        DoesNotFitError: not even one rollout fits.
    """
    longest = run.longest_episode(config, inputs)
    sampling = config.engine.max_num_seqs * reserved(longest) * learner.policy.cache_bytes()
    if config.sft is not None:
        row = _largest_demonstrations(config.sft.batch_size, config, inputs)
        return memory.preflight(learner, row, sampling=sampling if inputs.heldout.prompts else 0)
    row = largest(
        prompt=inputs.longest(),
        completion=longest - inputs.longest(),
        prompts=config.collect.prompts_per_step + config.replay.groups,
        group_size=config.collect.group_size,
        max_tokens_per_microbatch=config.optim.max_tokens_per_microbatch,
    )
    return memory.preflight(learner, row, sampling=sampling)


def _largest_demonstrations(count: int, config: RunConfig, inputs: Inputs) -> Batch:
    """The largest packed row of a step that draws the longest conversations."""
    rows = sorted(demonstrations_of(inputs).train, key=lambda row: row.tokens, reverse=True)[:count]
    rollouts = [row.rollout for row in rows]
    batches = plan(
        rollouts,
        imitation(rollouts),
        loss_agg_mode="token-mean",
        max_tokens_per_microbatch=config.optim.max_tokens_per_microbatch,
        skip_zero=False,
    )
    return max(batches, key=lambda batch: len(batch.tokens))


def _memory_line(report: Report, config: RunConfig, inputs: Inputs, learner: Learner) -> None:
    usage = preflight(config, inputs, learner)
    device = learner.policy.device
    extra, text = 0, usage.line()
    reference = config.objective.kl_beta > 0 and (config.model.lora is None or config.reference.model is not None)
    if reference:
        extra = usage.weights
        text += f"; the reference for objective.kl_beta adds {extra / GIB:.2f}"
    if config.distill is not None:
        teacher = run.teacher_for(config, inputs).bytes
        extra += teacher
        text += f"; the teacher adds {teacher / GIB:.2f}" if teacher else "; the teacher is at its server"
    if config.cluster.host != "local":
        services, words = _services_memory(config, usage, learner.policy, reference=reference)
        extra += services
        text += words
    if config.cluster.host == "ray":
        report.add("ok", "placement", placement_words(config))
    free = free_bytes(device)
    text += f"; {free / GIB:.1f} GiB available"
    if usage.total + extra < free and usage.limit is None:
        report.add("ok", "memory", text)
    elif config.cluster.learners > 1 and config.cluster.host == "processes" and usage.total + extra >= free:
        report.add("fail", "memory", f"{text}; {_remedy(config)}")
    else:
        report.add("warn", "memory", text)


def _remedy(config: RunConfig) -> str:
    """What helps where the learner ranks of this machine do not fit, as a phrase."""
    rows = "lower cluster.learners or optim.max_tokens_per_microbatch, or set optim.gradient_checkpointing = true"
    if config.cluster.strategy == "fsdp":
        return f"the ranks do not fit on this machine: {rows}"
    return f'the ranks do not fit on this machine: set cluster.strategy = "fsdp", which shares the weights out, {rows}'


def _services_memory(config: RunConfig, usage: MemoryReport, policy: Policy, *, reference: bool) -> tuple[int, str]:
    """Bytes that the services of a run take beside this process with whole weights, and a phrase for each kind."""
    replicas, ranks = config.engine.replicas, config.cluster.learners - 1
    engines = replicas * usage.weights + (replicas - 1) * usage.sampling + usage.weights  # and those on their way
    text = f"; {counted(replicas, 'engine service')} of {counted(service_threads(config), 'thread')} "
    text += f"each add{'s' if replicas == 1 else ''} {engines / GIB:.2f}"
    if config.cluster.strategy == "fsdp":
        each = memory.rank_memory(usage, policy, ranks + 1, reference=reference)
        alone = usage.total - usage.sampling + (usage.weights if reference else 0)  # what this process would need
        text += f'; with cluster.strategy = "fsdp" each of {counted(ranks + 1, "learner rank")} has about {each.line()}'
        return engines + (ranks + 1) * each.total - alone, text
    learners = ranks * (usage.total - usage.sampling + (usage.weights if reference else 0))
    if ranks:
        text += f"; {counted(ranks, 'more learner rank')} add{'s' if ranks == 1 else ''} {learners / GIB:.2f}"
    return engines + learners, text


def _time_line(report: Report, config: RunConfig, inputs: Inputs, learner: Learner) -> None:
    """Sample one group for a few tokens and take one gradient of it; nothing is stepped."""
    if config.sft is not None:
        _imitation_time_line(report, config, inputs, learner)
        return
    turns, generate = _sample_a_little(config, inputs, learner.policy)
    (batch, *_) = _batches(turns, config)
    started = time.perf_counter()
    learner.gradient([batch])
    sampled = sum(len(turn.tokens) for turn in turns) / generate
    trained = len(batch.targets) / (time.perf_counter() - started)
    turns_each = config.environment.max_turns if config.environment.talks else 1
    longest = config.sampling.max_tokens * turns_each
    tokens = config.collect.prompts_per_step * config.collect.group_size * longest
    replayed = config.replay.groups * config.collect.group_size * longest
    # A pass without gradient, of every candidate, is a third of one with.
    step = tokens * (1 / sampled + 1 / trained) + replayed * (1 + config.replay.candidates / 3) / trained
    evals = 2 + (config.steps // config.eval.every if config.eval.every else 0)
    evaluation = len(inputs.heldout.prompts) * config.eval.samples * longest / sampled
    report.add(
        "ok",
        "time",
        f"upper bound: {step:.0f} s a step, {evaluation:.0f} s an evaluation, "
        f"{(step * config.steps + evals * evaluation) / 60:.0f} min in all, for completions of "
        f"{_longest_words(config)} and no group skipped (measured: {sampled:.0f} tok/s sampled, "
        f"{trained:.0f} tok/s trained)",
    )


def _imitation_time_line(report: Report, config: RunConfig, inputs: Inputs, learner: Learner) -> None:
    """Take one gradient of some conversations; nothing is stepped."""
    rows, size = demonstrations_of(inputs), config.sft.batch_size if config.sft else 1
    batch = _largest_demonstrations(size, config, inputs)
    started = time.perf_counter()
    learner.gradient([batch])
    speed = len(batch.tokens) / (time.perf_counter() - started)
    mean = sum(row.tokens for row in rows.train) / len(rows.train)
    step = size * mean / speed
    report.add(
        "ok",
        "time",
        f"{step:.0f} s a step, {step * config.steps / 60:.1f} min in all without evaluations, for conversations of "
        f"{mean:.0f} tokens on average (measured: {speed:.0f} tok/s with their prompts)",
    )


def _longest_words(config: RunConfig) -> str:
    words = f"sampling.max_tokens = {config.sampling.max_tokens} tokens"
    return words + (f" in each of {config.environment.max_turns} turns" if config.environment.talks else "")


def _sample_a_little(config: RunConfig, inputs: Inputs, policy: Policy) -> tuple[list[Turn], float]:
    engine = run.engine_for(config, inputs, policy, 0 if config.cluster.host == "local" else None)
    ids = next(iter(inputs.train.token_ids.values()))
    count = min(config.engine.max_num_seqs, config.collect.prompts_per_step * config.collect.group_size)
    requests = [
        Request(key=SampleKey(seed=0, version=0, prompt="dry-run", sample=k), prompt_tokens=tuple(ids))
        for k in range(count)
    ]
    sampling = Sampling(temperature=config.sampling.temperature, max_tokens=min(16, config.sampling.max_tokens))
    with closing(engine):
        if config.cluster.host != "local":
            engine.generate(requests, replace(sampling, max_tokens=1))  # services start, once a run
        started = time.perf_counter()
        turns = engine.generate(requests, sampling)
        return turns, time.perf_counter() - started


def _batches(turns: list[Turn], config: RunConfig) -> list[Batch]:
    """Packed rows of sampled turns, with made-up advantages."""
    rollouts = [
        Rollout(
            id=str(k),
            sample=k,
            turns=(turn,),
            completion="",
            reward=0.0,
            reward_parts={},
            outcome=Outcome.OK,
            context=Context(
                prompt_id="dry-run",
                task="dry-run",
                difficulty=None,
                version=0,
                prompt_length=len(turn.prompt_tokens),
                completion_length=len(turn.tokens),
                stop_reason=turn.stop_reason,
            ),
        )
        for k, turn in enumerate(turns)
    ]
    credits = [
        Credit(rollout_id=r.id, advantage=1.0 - 2 * (r.sample % 2), clip_low=0.2, clip_high=0.2) for r in rollouts
    ]
    return plan(
        rollouts,
        credits,
        loss_agg_mode="token-mean",
        max_tokens_per_microbatch=config.optim.max_tokens_per_microbatch,
        skip_zero=False,
    )
