"""Runs for the board's tests, written by hand, and the board that shows them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from coterie.board.server import Board
from coterie.config.schema import RunConfig
from coterie.runs import prompts, rollouts
from coterie.runs.directory import RunDirectory
from coterie.runs.metrics import EvalItem, MetricsDB
from coterie.runs.prompts import StoredPrompt
from coterie.runs.rollouts import RolloutRecord
from coterie.types import (
    Context,
    Credit,
    EvalResult,
    Interval,
    Message,
    Outcome,
    Prompt,
    Rollout,
    SamplingSnapshot,
    StopReason,
    Turn,
)

HOSTILE = (
    '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script></script>\u202e\x1b[31m&amp;\'"`${hacked}'
)
"""A completion that would act if it became markup, a script or a terminal's command."""
ECHO = """
import json, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    if "cancel" in asked:
        print(json.dumps({"kind": "cancelled"}), flush=True)
        continue
    text = asked["messages"]["model"][-1]["content"]
    print(json.dumps({"kind": "progress", "text": "loading"}), flush=True)
    start = {"kind": "sampled", "side": "model", "sample": 0, "turn": 0, "text": text[:2], "tokens": 1}
    print(json.dumps(start), flush=True)
    if text == "hang":
        continue
    if text == "die":
        sys.exit("out of memory")
    answer = {"sample": 0, "text": text, "reward": float("nan"), "parts": {}, "tokens": 2, "stop": "stop"}
    print(json.dumps({"kind": "answers", "side": "model", "answers": [answer]}), flush=True)
    print(json.dumps({"kind": "done"}), flush=True)
"""
"""In place of the process with the models: it says what it is told."""
PROMPTS = ("sums/1", "sums/2", "words/1")


def record(
    name: str, sample: int, step: int, *, text: str, reward: float = 1.0, tokens: int = 4, turns: int = 1
) -> RolloutRecord:
    """A rollout of a prompt with an advantage, its baseline by scale, and log-probs of both sides."""
    task = name.split("/")[0]
    prompt = Prompt(
        id=name, messages=(Message(role="user", content=f"What of {name}?"),), answer="8", task=task, source="file:q"
    )
    played, before = [], (5, 6)
    for turn in range(turns):
        played.append(
            Turn(
                prompt_tokens=before,
                tokens=tuple(range(10, 10 + tokens)),
                sampler_logprobs=(-0.5,) * tokens,
                temperature=1.0,
                stop_reason=StopReason.STOP,
                version=step - 1,
                sampler_entropies=(0.75,) * tokens,
            )
        )
        before = (*before, *played[-1].tokens, 90 + turn)
    snapshot = SamplingSnapshot(
        time=float(step),
        attempts=step,
        pass_rate=0.5,
        reward=0.5,
        length=4.0,
        task_attempts=9,
        task_pass_rate=0.5,
        task_reward=0.5,
        expected=0.25,
        expected_std=0.1,
        region=f"task is {task}",
    )
    context = Context(
        prompt_id=name,
        task=task,
        difficulty=None,
        version=step - 1,
        prompt_length=2,
        completion_length=tokens * turns,
        stop_reason=StopReason.STOP if sample else StopReason.LENGTH,
        dispatch=snapshot,
    )
    later = [Message(role="user", content="And then?"), Message(role="assistant", content=text)] * (turns - 1)
    rollout = Rollout(
        id=f"{name}#{sample}@{step - 1}",
        sample=sample,
        turns=tuple(played),
        completion=text,
        messages=(*prompt.messages, Message(role="assistant", content=text), *later) if turns > 1 else (),
        reward=reward,
        reward_parts={"number": reward, "length": 0.5},
        outcome=Outcome.OK,
        context=context,
    )
    credit = Credit(
        rollout_id=rollout.id,
        advantage=reward - 0.5,
        clip_low=0.2,
        clip_high=0.2,
        contributions={"siblings": 0.3, "tree": 0.2},
    )
    count = tokens * turns
    return RolloutRecord(prompt=prompt, rollout=rollout, credit=credit, logprobs=(-0.25,) * count, seconds=0.1)


def make_run(
    root: Path, name: str = "shown", *, steps: int = 4, text: str = "8", lr: float = 1e-6, **each: Any
) -> Path:
    """A finished run: metrics, an evaluation at either end, and of each step two groups of two."""
    config = RunConfig.model_validate({"name": name, "steps": steps, "optim": {"lr": lr}})
    with RunDirectory.create(root, name, "x") as run:
        run.write_config(config.model_dump(mode="json"))
        with MetricsDB(run.metrics) as database:
            for step in (0, steps):
                values = [float(k % 3 <= step) for k in range(9)]
                mean = sum(values) / 9
                interval = Interval(value=mean, low=mean - 0.1, high=mean + 0.1)
                result = EvalResult(
                    step=step, task="sums", prompts=9, samples=1, k=1, pass_at_1=interval, pass_at_k=interval,
                    mean_length=4.0, truncated=0.0,
                )  # fmt: skip
                items = [
                    EvalItem(task="sums", prompt_id=f"s/{k}", correct=int(value), samples=1)
                    for k, value in enumerate(values)
                ]
                database.record_evals([result], items)
            for step in range(1, steps + 1):
                metrics = {"reward/mean": step / steps, "truncated": 0.5, "entropy": 1.0 / step, "grad_norm": 1.0}
                spent = {"time/step": 2.0, "time/collect": 1.2, "time/generate": 1.0, "time/update": 0.8}
                database.record(step, {**metrics, **spent, "rollouts": 4.0})
            database.event("checkpoint", "saved step_000004", step=steps)
            database.event("versions", "", step=0, data={"python": "3.11", "device": "cpu"})
        for step in range(1, steps + 1):
            add_step(run.path, step, text=text, **each)
    return run.path


def add_step(run: Path, step: int, *, text: str = "8", **each: Any) -> None:
    """The rollouts of one more step: the first prompt, and one of the others in turn."""
    names = (PROMPTS[0], PROMPTS[1 + step % 2])
    rows = [
        record(name, sample, step, text=text, reward=float(sample), **each) for name in names for sample in range(2)
    ]
    rollouts.write_step(run / "rollouts", step, rows)
    fresh = [PROMPTS[0], PROMPTS[2]] if step == 1 else [PROMPTS[1]] if step == 2 else []
    asked = {row.prompt.id: row.prompt for row in rows}
    vectors = np.eye(4)
    stored = [
        StoredPrompt(prompt=asked[name], kind="policy", embedding=vectors[PROMPTS.index(name)])
        for name in fresh
        if name in asked
    ]
    (run / "prompts").mkdir(exist_ok=True)
    prompts.write_step(run / "prompts", step, stored)


def ask(board: Board, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> tuple[int, Any, str]:
    """Status, headers and text of an answer; the token goes along unless other headers are given."""
    assert board.port is not None
    connection = http.client.HTTPConnection("127.0.0.1", board.port, timeout=30)
    try:
        sent = {"authorization": f"Bearer {board.token}"} if headers is None else dict(headers)
        connection.putrequest(method, path, skip_host="host" in sent, skip_accept_encoding=True)
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


def answer(board: Board, question: str, **words: Any) -> Any:
    """The records that answer a question, or `{"error": …}`."""
    status, _, text = ask(board, f"/api/{question}?{urlencode(words, quote_via=quote)}")
    value = json.loads(text)
    assert (status == 200) == (set(value) != {"error"}), text
    return value
