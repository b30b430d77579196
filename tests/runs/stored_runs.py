"""Runs whose rollouts are written by hand, with numbers that can be added up in one's head."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coterie.runs import rollouts
from coterie.runs.prompts import StoredPrompt, write_step
from coterie.runs.rollouts import RolloutRecord
from coterie.types import Context, Credit, Message, Outcome, Prompt, Rollout, SamplingSnapshot, StopReason, Turn

REGIONS = {"sums": "log digits > 2.5 and task is sums", "words": "all prompts"}
DIRECTIONS = {"sums/1": (1.0, 0.0), "sums/2": (0.9, 0.1), "words/1": (-1.0, 0.2)}


def prompt(name: str, text: str = "?") -> Prompt:
    return Prompt(
        id=name,
        messages=(Message(role="user", content=text),),
        answer="8",
        task=name.split("/")[0],
        source="file:questions.jsonl",
    )


def record(
    name: str, sample: int, step: int, reward: float | None, *, text: str = "8", length: int = 2, advantage: float = 0.5
) -> RolloutRecord:
    asked = prompt(name)
    turn = Turn(
        prompt_tokens=(5, 6),
        tokens=(7,) * length,
        sampler_logprobs=(-0.5,) * length,
        temperature=1.0,
        stop_reason=StopReason.STOP,
        version=step - 1,
    )
    snapshot = SamplingSnapshot(
        time=float(step - 1),
        attempts=step - 1,
        pass_rate=None if step == 1 else 0.25,
        reward=0.5,
        length=2.0,
        task_attempts=4,
        task_pass_rate=0.5,
        task_reward=0.5,
        expected=0.25 * step,
        expected_std=0.1,
        region=REGIONS[asked.task],
    )
    context = Context(
        prompt_id=name,
        task=asked.task,
        difficulty=None,
        embedding=f"step_000001#{name}",
        source=asked.source,
        domain="numbers" if asked.task == "sums" else None,
        complexity={"length": 1, "digits": 0, "operators": 0, "numbers": 0, "steps": 1, "tools": 0},
        dispatch=snapshot,
        version=step - 1,
        prompt_length=2,
        completion_length=length,
        stop_reason=StopReason.STOP,
    )
    rollout = Rollout(
        id=f"{name}#{sample}@{step - 1}",
        sample=sample,
        turns=(turn,),
        completion=text,
        reward=reward,
        reward_parts={"number": reward},
        outcome=Outcome.REWARD_ERROR if reward is None else Outcome.OK,
        context=context,
    )
    credit = Credit(rollout_id=rollout.id, advantage=advantage, clip_low=0.2, clip_high=0.2)
    return RolloutRecord(
        prompt=asked, rollout=rollout, credit=None if reward is None else credit, logprobs=None, seconds=1
    )


def make_run(root: Path, name: str = "one", *, text: str = "8") -> Path:
    """Three steps of two prompts, two rollouts each: sums/1 (1, 0), then (1, 1); words/1 fails once; sums/2 is last."""
    folder = root / "runs" / name
    for child in ("rollouts", "prompts"):
        (folder / child).mkdir(parents=True)
    (folder / "config.toml").write_text("steps = 3\n", encoding="utf-8")
    steps = {
        1: [("sums/1", 1.0, 0.5), ("sums/1", 0.0, -0.5), ("words/1", 0.5, 0.0), ("words/1", 0.5, 0.0)],
        2: [("sums/1", 1.0, 0.25), ("sums/1", 1.0, 0.25), ("words/1", 0.25, 1.0), ("words/1", None, 0.0)],
        3: [("sums/2", 0.0, -1.0), ("sums/2", 0.5, 1.0), ("words/1", 0.75, 0.0), ("words/1", 0.75, 0.0)],
    }
    for step, records in steps.items():
        rows = [
            record(asked, k % 2, step, reward, text=text, length=step + k, advantage=advantage)
            for k, (asked, reward, advantage) in enumerate(records)
        ]
        rollouts.write_step(folder / "rollouts", step, rows)
    for step, names in ((1, ("sums/1", "words/1")), (3, ("sums/2",))):
        met = [StoredPrompt(prompt=prompt(name), kind="text", embedding=np.array(DIRECTIONS[name])) for name in names]
        write_step(folder / "prompts", step, met)
    return folder
