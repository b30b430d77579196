"""Events of a step: conditions on its result, each with the line that a reader is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from coterie.algo.estimators import BIASED_BASELINE, GROUPS_CHANGED
from coterie.policy.waiting import BUSY
from coterie.rollout.collector import Experience
from coterie.rollout.replay import REPLAYED
from coterie.text import counted
from coterie.train.step import StepResult

METRIC, ERROR = "mismatch/kl", "mismatch/kl_error"
FULL, HALF = 1e-6, 1e-2
"""Nats a token that rounding does not reach: in float32 it makes 1e-13 on a CPU and 1e-8 between kernels, in bfloat16
2e-3 in the mean of many steps of SmolLM2-135M. One matrix times 1.01 makes 1e-5 to 5e-4, and so shows in float32
alone."""
SURE = 2.0
"""Standard errors by which half precision's limit has to be exceeded. A single token that is rounded apart where the
policy is sure adds up to 8 nats, and decides the mean of a step with few tokens; other weights move all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """One line about a step."""

    kind: str
    message: str
    quiet: bool = False
    """Recorded alone, neither logged nor told."""
    lasting: bool = False
    """Told in the first of consecutive steps alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A step as the conditions read it."""

    result: StepResult
    metrics: Mapping[str, float]
    dtype: torch.dtype
    eval_part: str


def _too_few_groups(step: _Step) -> Iterator[str]:
    """Dynamic sampling ended with fewer groups than a step is to have."""
    metrics, groups = step.result.batch.metrics, len(step.result.batch.groups)
    missing = int(metrics.get("dynamic_sampling/missing", 0))
    if missing:
        trains = f"this step trains on {groups}" if groups else "this step trains on nothing"
        rounds, dropped = int(metrics["dynamic_sampling/rounds"]), int(metrics["dynamic_sampling/dropped"])
        yield (
            f"collect.dynamic_sampling found {groups} of {groups + missing} groups with variance after "
            f"{counted(rounds, 'round')} and dropped {dropped}, in each of which all attempts have the same "
            f"{step.eval_part!r} (eval.reward); {trains}"
        )


def _timed_out(step: _Step) -> Iterator[str]:
    if step.result.batch.experience.timed_out:
        yield timeout_message(step.result.batch.experience)


def _mismatch(step: _Step) -> Iterator[str]:
    message = disagreement(step.metrics, step.dtype)
    if message is not None:
        yield message


def _split_rows(step: _Step) -> Iterator[str]:
    splits = step.result.update.splits
    if splits:
        rows = "1 packed row was" if splits == 1 else f"{splits} packed rows were"
        yield f"{rows} cut in two: their memory was refused"


def _skipped_updates(step: _Step) -> Iterator[str]:
    skipped = step.result.update.skipped
    if skipped:
        yield f"{counted(skipped, 'optimizer step')} skipped: the gradient is not finite"


def _busy_machine(step: _Step) -> Iterator[str]:
    """Other programs had the processors for a good part of the step."""
    seconds = step.result.seconds
    waited = seconds.get("processor_wait", 0.0)
    if waited > BUSY * seconds["step"]:
        slept = "; idle compute threads sleep instead of spinning meanwhile" if step.result.threads_slept else ""
        yield (
            f"other programs keep the processors busy: in this step of {seconds['step']:.1f} s the threads of this "
            f"process waited {waited:.1f} s for one{slept}. The results do not change"
        )


@dataclass(frozen=True, slots=True)
class _Condition:
    kind: str
    lines: Callable[[_Step], Iterable[str]]
    quiet: bool = False
    lasting: bool = False


CONDITIONS = (
    _Condition("warning", _too_few_groups),
    _Condition(BIASED_BASELINE, lambda step: step.result.advantages.warnings),
    _Condition(GROUPS_CHANGED, lambda step: step.result.advantages.events, quiet=True),
    _Condition(REPLAYED, lambda step: filter(None, [step.result.replayed.event]), quiet=True),
    _Condition("warning", _timed_out),
    _Condition("warning", _mismatch, lasting=True),
    _Condition("memory", _split_rows),
    _Condition("machine", _busy_machine, lasting=True),
    _Condition("skipped_update", _skipped_updates),
)
"""In the order in which they are told."""


def step_events(
    result: StepResult, metrics: Mapping[str, float], *, dtype: torch.dtype, eval_part: str
) -> list[StepEvent]:
    """The events of a step.

    Args:
        metrics: of the step.
        dtype: of the policy's weights.
        eval_part: label of the evaluated reward part.
    """
    step = _Step(result=result, metrics=metrics, dtype=dtype, eval_part=eval_part)
    return [
        StepEvent(kind=condition.kind, message=line, quiet=condition.quiet, lasting=condition.lasting)
        for condition in CONDITIONS
        for line in condition.lines(step)
    ]


def timeout_message(experience: Experience) -> str:
    """The warning about completions that the deadline cut."""
    return (
        f"{counted(experience.timed_out, 'completion')} truncated by sampling.timeout_s, which depends on this "
        "machine's speed and will not repeat; raise it"
    )


def disagreement(metrics: Mapping[str, float], dtype: torch.dtype) -> str | None:
    """The warning that sampler and learner do not read the same weights; None where rounding explains the mismatch of
    one step, or nothing was trained. The rules of `coterie doctor` look at whole series.

    Args:
        dtype: of the policy's weights.
    """
    mismatch = metrics.get(METRIC)
    if mismatch is None or metrics.get("staleness/max", 0.0) > 0:
        return None
    full = dtype in (torch.float32, torch.float64)
    limit = FULL if full else HALF
    lower_bound = mismatch if full else mismatch - SURE * metrics.get(ERROR, math.inf)
    if lower_bound <= limit:
        return None
    return (
        f"the learner scores the sampled tokens otherwise than the sampler did: {METRIC} = {mismatch:.2g} nats a "
        f"token, while rounding in {str(dtype).removeprefix('torch.')} makes less than {limit:g}. The engine's weights "
        "are not those of this step, or its kernels are wrong"
    )
