"""Step functions that misbehave, by the completion's first word."""

from __future__ import annotations

import os
import time


def act(completions, mode="", **columns):
    out = []
    for text in completions:
        word = text.partition(" ")[0]
        if word == "raise":
            raise ValueError("no idea")
        if word == "hang":
            time.sleep(60)
        if word == "exit":
            os._exit(3)
        returned = {
            "none": None,
            "bare": 3,
            "pair": [3],
            "beyond": [(len(text) + 1, 1.0)],
            "zero": [(0, 1.0)],
            "twice": [(2, 1.0), (2, 0.0)],
            "fraction": [(1.5, 1.0)],
            "nan": [(1, float("nan"))],
            "nothing": [(1, None)],
            "true": [(2, True), [len(text), -0.5]],
        }
        out.append(returned.get(word, [(len(text), 1.0)]))
    return out


def lengths(completions, completion_length, **columns):
    return [[(1, float(length))] if length is not None else None for length in completion_length]


def one_for_all(completions, **columns):
    return [1.0]
