"""Whole runs with tools: the record, the rewards of calls, and the same bits after a resume."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from coterie import launch
from coterie.config.schema import RunConfig
from coterie.runs import rollouts
from coterie.tools.base import Call
from coterie.tools.toolbox import Toolbox
from coterie.types import Prompt
from runs_for_tests import fingerprint, importable, killed, make_config, stop_at

TOOLS = '''
class Counter:
    """Counts letters over an episode."""

    def __init__(self):
        self.count = 0

    def add(self, text: str) -> str:
        """Add the letters of a text.

        Args:
            text: the text
        """
        self.count += len(text)
        if text.count("e") > 3:
            raise ValueError("too many")
        return f"{self.count} letters"
'''


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model writes no call by chance: here each of its turns is one, until it says `z`."""
    (tmp_path / "counting.py").write_text(TOOLS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))

    def calls(self: Toolbox, text: str) -> list[Call]:
        return [] if "z" in text else [Call(text=text, name="add", arguments={"text": text})]

    monkeypatch.setattr(Toolbox, "calls", calls)
    return tmp_path


def config_for(root: Path, **changed: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "environment": {
            "name": "tools",
            "max_turns": 3,
            "max_tokens": 200,
            "params": {"tools": ["counting:Counter"], "format": "tags", "describe": False},
        },
        "rewards": {"functions": [{"name": "tiny_rewards:likes_a"}, {"name": "call_valid"}, {"name": "call_cost"}]},
    }
    return make_config(root, **settings, **changed)


@pytest.mark.slow
def test_a_run_with_tools_resumes_to_the_same_bits(root: Path) -> None:
    whole = launch.train(config_for(root))
    half = launch.train(config_for(root, name="two"), stop_at(3, signal.SIGTERM))
    assert launch.resume(half) == half
    assert fingerprint(half) == fingerprint(whole)
    records = rollouts.read_step(whole / "rollouts", 6)
    called = [record.rollout for record in records if len(record.rollout.turns) > 1]
    assert called
    for rollout in called:
        results = [message for message in rollout.messages if message["role"] == "tool"]
        asked = [call for message in rollout.messages for call in message.get("tool_calls", ())]
        assert [call["id"] for call in asked][: len(results)] == [message.get("tool_call_id") for message in results]
        assert all(message["content"].endswith("letters") or "error" in message for message in results)
        assert rollout.reward_parts["call_valid"] == 1.0
        assert isinstance(rollout.context.prompt_id, str)
    counts = [int(m["content"].split()[0]) for r in called for m in r.messages if m["content"].endswith(" letters")]
    assert max(counts) > 0
    assert all(isinstance(record.prompt, Prompt) for record in records if record.prompt is not None)


SLOW = (
    TOOLS.replace("        self.count += len(text)\n", "        pause(len(text))\n        self.count += len(text)\n")
    + '''

import os, time
from coterie.envs.tool_use import ToolUse
from coterie.tools.base import Call

def pause(length):
    """A slow tool, in whose nth call, which a file counts, the trainer is killed."""
    time.sleep(0.01)
    if os.path.exists("left"):
        left = int(open("left").read()) - 1
        open("left", "w").write(str(left))
        if left == 0:
            open("worker", "w").write(str(os.getpid()))
            os.remove("left")
            os.kill(os.getppid(), 9)
            time.sleep(0.2)

class Chatty(ToolUse):
    """Takes each turn for a call, until it says `z`."""

    def __post_init__(self):
        super().__post_init__()
        self.toolbox.calls = lambda text: (
            [] if "z" in text else [Call(text=text, name="add", arguments={"text": text})]
        )
'''
)


def test_a_run_killed_in_the_middle_of_a_call_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counting.py").write_text(SLOW, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    changed: dict[str, Any] = {
        "environment": {
            "name": "counting:Chatty",
            "max_turns": 3,
            "max_tokens": 200,
            "params": {"tools": ["counting:Counter"], "format": "tags", "describe": False, "workers": 1},
        },
        "rewards": {"functions": [{"name": "tiny_rewards:likes_a"}, {"name": "call_valid"}]},
        "steps": 4,
        "eval": {"every": 0},
    }
    whole = launch.train(make_config(tmp_path, name="whole", **changed))
    calls = sum(
        len(message.get("tool_calls", ()))
        for step in range(1, 5)
        for record in rollouts.read_step(whole / "rollouts", step)
        for message in record.rollout.messages
    )
    assert calls > 40
    (tmp_path / "left").write_text(str(3 * calls // 4))
    assert killed(tmp_path, "decode", 10**9, changed=json.dumps(changed)) == -9
    worker = int((tmp_path / "worker").read_text())
    half = tmp_path / "runs" / "one"
    assert not (half / "done.json").exists()
    launch.resume(half)
    assert fingerprint(half) == fingerprint(whole)
    limit = time.monotonic() + 20
    while os.path.exists(f"/proc/{worker}"):
        assert time.monotonic() < limit, "the worker outlived its run"
        time.sleep(0.05)
