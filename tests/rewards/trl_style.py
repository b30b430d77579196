"""Reward functions as they are written for TRL."""

import numpy as np


def conversational(completions, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return np.array([float("42" in content) for content in contents], dtype=np.float32)


def annotated(completions: list[list[dict[str, str]]], solution: list[str], **kwargs) -> list[float | None]:
    return [float(completion[0]["content"] == gold) for completion, gold in zip(completions, solution, strict=True)]


def careful(completions, **kwargs):
    """Takes both forms."""
    return [
        float(len(completion if isinstance(completion, str) else completion[0]["content"]))
        for completion in completions
    ]


def short_ids(completion_ids, **kwargs):
    return [1.0 if len(ids) < 3 else 0.0 for ids in completion_ids]


def everything(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **kwargs):
    assert prompts[0][-1]["content"] == "2+2?"
    log_extra("length", np.array([len(completion[0]["content"]) for completion in completions]))
    log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    return [np.float64(trainer_state.global_step)] * len(completions)


def through_kwargs(completions, **kwargs):
    return [kwargs["trainer_state"].global_step] * len(completions)


def unknown_state(completions, trainer_state):
    return [trainer_state.epoch] * len(completions)


def wrong_log(completions, log_extra):
    log_extra("length", [1.0])
    return [0.0] * len(completions)


async def asynchronous(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]


def prints(completions, **kwargs):
    print("seen:", len(completions))
    return [1.0] * len(completions)
