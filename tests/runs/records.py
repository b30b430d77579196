"""Small runs and records for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

from coterie.config.schema import RunConfig
from coterie.runs.directory import RunDirectory
from coterie.runs.metrics import EvalItem, MetricsDB
from coterie.runs.rollouts import RolloutRecord
from coterie.stats import bootstrap_interval
from coterie.types import Context, Credit, EvalResult, Interval, Message, Outcome, Prompt, Rollout, StopReason, Turn


def make_prompt(name: str = "legs/1", text: str = "How many legs have 2 cats?") -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=text),), answer="8", task="legs", attributes={"n": 2})


def make_rollout(prompt: Prompt, sample: int = 0, *, text: str = "8", reward: float | None = 1.0) -> Rollout:
    turn = Turn(
        prompt_tokens=(5, 6, 7),
        tokens=(8, 9),
        sampler_logprobs=(-0.5, -0.25),
        temperature=1.0,
        stop_reason=StopReason.STOP,
        version=3,
        sampler_entropies=(0.75, 0.125),
    )
    context = Context(
        prompt_id=prompt.id,
        task=prompt.task,
        difficulty=None,
        version=3,
        prompt_length=3,
        completion_length=2,
        stop_reason=StopReason.STOP,
    )
    return Rollout(
        id=f"{prompt.id}#{sample}@3",
        sample=sample,
        turns=(turn,),
        completion=text,
        reward=reward,
        reward_parts={"number": reward, "style": None},
        outcome=Outcome.REWARD_ERROR if reward is None else Outcome.OK,
        error="ValueError in row 3" if reward is None else None,
        context=context,
    )


def make_record(sample: int = 0, prompt: Prompt | None = None) -> RolloutRecord:
    prompt = prompt or make_prompt()
    rollout = make_rollout(prompt, sample)
    credit = Credit(rollout_id=rollout.id, advantage=0.7, clip_low=0.2, clip_high=0.2, contributions={"prompt": 1.0})
    return RolloutRecord(prompt=prompt, rollout=rollout, credit=credit, logprobs=(-0.5, -0.125), seconds=0.1)


def make_eval(step: int, task: str, correct: list[int], samples: int = 4) -> tuple[EvalResult, list[EvalItem]]:
    value, low, high = bootstrap_interval([c / samples for c in correct], seed=0, draws=200)
    interval = Interval(value=value, low=low, high=high)
    result = EvalResult(
        step=step,
        task=task,
        prompts=len(correct),
        samples=samples,
        k=samples,
        pass_at_1=interval,
        pass_at_k=interval,
        mean_length=20.0,
        truncated=0.0,
    )
    items = [EvalItem(task=task, prompt_id=f"{task}/{i}", correct=c, samples=samples) for i, c in enumerate(correct)]
    return result, items


def make_run(root: Path, name: str = "demo", *, steps: int = 3, lr: float = 1e-6) -> RunDirectory:
    """A finished run with metrics and an evaluation at either end, its lock given back."""
    source = {"type": "reasoning_gym", "name": "leg_counting", "seed": 7, "params": {"max_animals": 3}}
    config = RunConfig.model_validate({"name": name, "steps": steps, "data": {"train": [source]}, "optim": {"lr": lr}})
    with RunDirectory.create(root, name, "x") as run:
        run.write_config(config.model_dump(mode="json"))
        with MetricsDB(run.metrics) as database:
            for step, correct in ((0, [0, 1, 0, 2, 1, 0]), (steps, [4, 3, 4, 4, 2, 4])):
                result, items = make_eval(step, "legs", correct)
                database.record_evals([result], items)
            for step in range(1, steps + 1):
                database.record(step, {"reward/mean": step / steps, "reward/std": 0.3, "speed/generate": 900.0})
            database.event("checkpoint", "saved", step=steps)
    return run
