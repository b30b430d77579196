"""A worker that measures nothing: answers the benchmark's questions with fixed numbers."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # the program is started by its path, without PYTHONPATH

from benchmarks.peers.wire import STOP, Wire

NAME = sys.argv[1]
SPEED = {"coterie": 4.0, "trl": 1.0, "vllm": 2.0}[NAME]


def answer(case: dict[str, Any], question: dict[str, Any]) -> dict[str, Any]:
    if question["do"] == "crash":
        os._exit(3)
    if question["do"] == "sleep":
        time.sleep(60)
    if question["do"] == "fail":
        raise ValueError("no such\nthing")
    rollouts = [[7] * (1 + index % 4) for index in range(case["prompts"] * case["group_size"])]
    values = [value for row in question.get("rewards", []) for value in row]
    size = case["group_size"]
    timings: dict[str, Any] = {"peak": int(8e9 / SPEED), "generate_s": 8 / SPEED, "rollouts": rollouts}
    if question["do"] in ("step", "update"):
        timings |= {"update_s": 12 / SPEED, "step_s": 20 / SPEED, "trained_tokens": 5}
        timings["advantages"] = [_advantage(values, index, size) for index in range(len(values))]
    return timings


def _advantage(values: list[float], index: int, size: int) -> float:
    group = values[index // size * size :][:size]
    mean = sum(group) / size
    spread = (sum((value - mean) ** 2 for value in group) / (size - 1)) ** 0.5
    return (values[index] - mean) / (spread + 1e-4)


def main() -> None:
    wire = Wire()
    print("what a library prints must not reach the wire")
    setup = wire.read()
    wire.answer({"versions": {"python": "3"}, "stop_ids": [2], "settings": {}})
    while (question := wire.read())["do"] != STOP:
        if len(sys.argv) > 2:
            with open(sys.argv[2], "a") as diary:
                diary.write(json.dumps([NAME, question["do"], question.get("rollouts")]) + "\n")
        try:
            wire.answer(answer(setup["case"], question))
        except ValueError as error:
            wire.fail(error)


if __name__ == "__main__":
    main()
