"""SIGKILL while episodes with tools are open: conversations of several turns, tools that take their time, drafts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from coterie.rollout.episode_workers import EpisodeWorkers
from coterie.tools.base import Call
from coterie.tools.toolbox import Toolbox
from faults.cases import Case, of_trial
from faults.harness import Harness
from faults.kills import at_random

DELAYS = (1, 2, 4)
"""Passes that a tool has for its answer; see `environment.delay`."""


def settings(delay: int) -> dict[str, Any]:
    """Sections of a run in which most turns call a tool."""
    params = {"tools": ["tiny_tools:Counter"], "format": "tags", "describe": False}
    return {
        "environment": {"name": "tools", "max_turns": 3, "max_tokens": 200, "delay": delay, "params": params},
        "rewards": {"functions": [{"name": "tiny_rewards:checksum"}, {"name": "call_valid", "weight": 0.1}]},
        "sampling": {"max_tokens": 6, "temperature": 0.3},
        "engine": {"max_num_seqs": 4, "draft": "history"},
    }


def kills(root: Path, count: int, seed: int) -> Iterator[Case]:
    """Trials with one to three kills in a row until `count` have happened, with each of the delays in turn."""
    inner, Toolbox.calls = Toolbox.calls, _every_turn
    delays = DELAYS[: max(1, min(len(DELAYS), count // 8))]
    try:
        for delay in delays:
            phases = {"waiting for tools": [(EpisodeWorkers, "wait")]}
            harness = Harness(root / f"delay-{delay}", settings(delay), phases)
            for trial in at_random(harness, -(-count // len(delays)), seed * 100 + delay):
                yield of_trial("tools", replace(trial, name=f"delay {delay}, {trial.name}"))
    finally:
        Toolbox.calls = inner


def _every_turn(self: Toolbox, text: str) -> list[Call]:
    """A tiny model writes no call by chance: here each of its turns is one, until it says `z`."""
    return [] if "z" in text else [Call(text=text, name="add", arguments={"text": text})]
