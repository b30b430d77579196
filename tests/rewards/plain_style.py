"""Reward functions of TRL for prompts that are text, and of coterie; nothing here names what a message holds."""

from __future__ import annotations

import sys


def text_prompts(prompts, completions, **kwargs):
    return [float(len(prompt + completion)) for prompt, completion in zip(prompts, completions, strict=True)]


def annotated(prompts: list[str], completions: list[str], **kwargs):
    return [float(prompt.endswith("?")) for prompt in prompts]


def columns(completions, **columns):
    """Every column is a list of one item a row."""
    assert all(isinstance(values, list) and len(values) == len(completions) for values in columns.values()), columns
    return [1.0] * len(completions)


def task(completions, task, answer):
    return [float((name, gold) == ("math", "the row's own")) for name, gold in zip(task, answer, strict=True)]


def missing(prompts, completions, ground_truth, **kwargs):
    return [0.0] * len(completions)


def first_letter(completions):
    """Text, and an error of its own for an empty completion: no sign that messages are wanted."""
    return [float(text[0] == "4") for text in completions]


class Array:
    """An array, tensor or series; numpy's are in `trl_style`, and torch is slow to import here."""

    def __init__(self, values):
        self.values, self.shape = values, (len(values),)

    def tolist(self):
        return list(self.values)

    def item(self):
        return self.values[0]


def array(completions, kind="whole"):
    n = len(completions)
    return {"whole": Array([0.5] * n), "items": [Array([0.5]) for _ in range(n)], "short": Array([0.5] * (n - 1))}[kind]


def prints(completions):
    print(f"{len(completions)} of them")
    print("and here", file=sys.stderr)
    return [1.0] * len(completions)


def prints_much(completions):
    print("x" * 200_000 + "the end")
    return [1.0] * len(completions)


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """As it is written for verl: one completion a call."""
    return float(solution_str == ground_truth)
