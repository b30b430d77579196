"""Rejection sampling's rules: what is kept, why the rest is not, and what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from coterie.config.data import DataConfig
from coterie.config.imitation import RejectionConfig, SftConfig
from coterie.data.chat import Chat
from coterie.errors import ConfigError
from coterie.runs.rollouts import RolloutRecord
from coterie.stages.dataset import write_data, write_selection
from coterie.stages.selection import Candidate, select
from coterie.train.demonstrations import read_demonstrations
from coterie.types import Context, Message, Outcome, Prompt, Rollout, StepReward, StopReason, Turn
from tiny import tiny_tokenizer

CHAT = Chat(tiny_tokenizer())
SYSTEM = Message(role="system", content="the example")


def candidate(
    prompt: str, text: str, reward: float | None = 1.0, *, sample: int = 0, correct: bool | None = None, **facts: Any
) -> Candidate:
    """A rollout of one turn."""
    asked = Prompt(
        id=f"task/{prompt}", messages=(SYSTEM, Message(role="user", content=prompt)), answer="4", task="task"
    )
    tokens = (*CHAT.encode(text), 2)
    turn = Turn(
        prompt_tokens=tuple(CHAT.render(asked.messages)), tokens=tokens, sampler_logprobs=(0.0,) * len(tokens),
        temperature=1.0, stop_reason=StopReason.STOP, version=3,
    )  # fmt: skip
    outcome = facts.pop("outcome", Outcome.OK)
    steps = facts.pop("steps", ())
    rollout = Rollout(
        id=f"task/{prompt}#{sample}@3", sample=sample, turns=(turn,), completion=text, reward=reward,
        reward_parts={"exact": reward}, outcome=outcome, step_rewards=steps,
        context=Context(
            prompt_id=asked.id, task=facts.get("task", "task"), difficulty=facts.get("difficulty"), version=3,
            prompt_length=3, completion_length=len(tokens), stop_reason=StopReason.STOP,
        ),
    )  # fmt: skip
    if "task" in facts:
        asked = replace(asked, task=facts["task"])
    record = RolloutRecord(prompt=asked, rollout=rollout, credit=None, logprobs=None, seconds=0.0)
    right = reward == 1.0 if correct is None else correct
    return Candidate(record=record, run="zero", step=4, correct=right)


def texts(candidates: list[Candidate], **settings: Any) -> list[str]:
    return [kept.text for kept in select(candidates, RejectionConfig(**settings)).kept]


def test_the_first_rule_that_a_rollout_breaks_is_its_reason() -> None:
    low = (StepReward(end=0, value=0.0), StepReward(end=1, value=1.0))
    candidates = [
        candidate("a", "right"),
        candidate("a", "wrong", 0.0),
        candidate("b", "cut", outcome=Outcome.TRUNCATED),
        candidate("b", "broken", None, outcome=Outcome.REWARD_ERROR),
        candidate("c", "a wrong step", steps=low),
        candidate("c", "the the the the the the the the"),
        candidate("d", "x"),
    ]
    selected = select(candidates, RejectionConfig(min_step_reward=0.5, min_tokens=3, max_tokens=7))
    assert [kept.text for kept in selected.kept] == ["right"]
    assert selected.reasons == {
        "not correct": 1, "cut by a limit": 1, "ended in an error": 1, "a step's reward too small": 1, "too long": 1,
        "too short": 1,
    }  # fmt: skip
    assert (selected.candidates, selected.prompts, selected.solved) == (7, 4, 4)


def test_a_graded_reward_has_a_limit_of_its_own() -> None:
    candidates = [candidate("a", "good", 0.7), candidate("b", "bad", 0.69)]
    assert texts(candidates) == []
    assert texts(candidates, min_reward=0.7) == ["good"]


def test_the_best_and_different_ones_of_a_prompt() -> None:
    candidates = [
        candidate("a", "one two three four", 0.8),
        candidate("a", "one  two three four", 0.9),
        candidate("a", "one two three four five", 0.85),
        candidate("a", "six seven", 0.5),
        candidate("a", "eight", 0.5),
    ]
    assert texts(candidates, min_reward=0.0, per_prompt=9, max_similarity=0.7) == [
        "one  two three four", "eight", "six seven",
    ]  # fmt: skip
    assert texts(candidates, min_reward=0.0, prefer="short") == ["eight"]
    assert texts(candidates, min_reward=0.0, prefer="first") == ["one two three four"]
    reasons = select(candidates, RejectionConfig(min_reward=0.0, max_similarity=0.7)).reasons
    assert reasons == {
        "repeats a kept text": 1, "too similar to a kept text": 1, "beyond the number per prompt": 2,
    }  # fmt: skip


@pytest.mark.parametrize(("balance", "facts"), [("task", "task"), ("difficulty", "difficulty")])
def test_rare_groups_are_not_lost(balance: str, facts: str) -> None:
    values: dict[str, list[Any]] = {"task": ["easy", "hard"], "difficulty": [1.0, 2.0]}
    easy, hard = values[facts]
    candidates = [candidate(f"e{k}", f"easy {k}", **{facts: easy}) for k in range(8)]
    candidates += [candidate(f"h{k}", f"hard {k}", **{facts: hard}) for k in range(2)]
    assert texts(candidates, rows=5, balance=balance) == ["easy 0", "easy 1", "easy 2", "hard 0", "hard 1"]
    assert texts(candidates, rows=5) == [f"easy {k}" for k in range(5)]


def test_settings_that_keep_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="balance = 'task' chooses which rows to leave out: it needs rows"):
        RejectionConfig(balance="task")
    with pytest.raises(ValueError, match="max_tokens = 3 is below min_tokens = 4"):
        RejectionConfig(min_tokens=4, max_tokens=3)
    with pytest.raises(ValueError, match="min_rows = 4 is above rows = 3: never so many are kept"):
        RejectionConfig(min_rows=4, rows=3)
    with pytest.raises(ValueError, match="enough = 4 ends sampling, and rollouts are read"):
        RejectionConfig(enough=4, rollouts=["zero"])
    assert issubclass(ConfigError, Exception)


def episode() -> Candidate:
    """Two turns with a word of the environment between them, behind a worked example in the prompt."""
    example = [SYSTEM, Message(role="user", content="how"), Message(role="assistant", content="so")]
    asked = [*example, Message(role="user", content="how many")]
    replies = ["<search>legs", "<answer>4"]
    talk = [*asked, Message(role="assistant", content="legs"), Message(role="user", content="4 legs")]
    talk.append(Message(role="assistant", content="4"))
    single = candidate("how many", "x")
    prompt = replace(single.record.prompt, messages=tuple(asked))
    turns, tokens = [], CHAT.render(asked)
    for text, between in zip(replies, ([talk[-2]], []), strict=True):
        spoken = [*CHAT.encode(text), 2]
        turn = replace(single.record.rollout.turns[0], prompt_tokens=tuple(tokens), tokens=tuple(spoken))
        turns.append(replace(turn, sampler_logprobs=(0.0,) * len(spoken)))
        tokens = [*tokens, *spoken, *(CHAT.render_continuation(between, spoken) if between else [])]
    rollout = replace(single.record.rollout, turns=tuple(turns), messages=tuple(talk), completion="4")
    return replace(single, record=replace(single.record, prompt=prompt, rollout=rollout))


def test_conversations_are_written_whole_and_imitated_by_the_models_turns_alone(tmp_path: Path) -> None:
    settings = RejectionConfig(prompt="question", system="")
    kept = [candidate("how", "4 legs"), episode()]
    sha256 = write_data(tmp_path, kept, CHAT, settings, seed=7)
    rows = pq.read_table(tmp_path / "data.parquet").to_pylist()
    assert rows[1]["prompt"] == [{"role": "user", "content": "how many"}]
    assert [message["content"] for message in rows[1]["completion"]] == ["<search>legs", "4 legs", "<answer>4"]
    provenance = {name: rows[0][name] for name in ("run", "step", "policy", "seed", "sample", "reward", "reward_parts")}
    assert provenance == {
        "run": "zero", "step": 4, "policy": 3, "seed": 7, "sample": 0, "reward": 1.0, "reward_parts": '{"exact": 1.0}',
    }  # fmt: skip
    data = DataConfig.model_validate({"train": [{"type": "file", "path": str(tmp_path / "data.parquet")}]})
    read = read_demonstrations(data, SftConfig(heldout_share=0), CHAT, heldout=(), seed=0)
    turns = read.train[1].rollout.turns
    assert [CHAT.decode(turn.tokens) for turn in turns] == ["<search>legs", "<answer>4"]
    assert list(turns[0].prompt_tokens) == CHAT.render([Message(role="user", content="how many")])
    assert turns[1].tokens == kept[1].record.rollout.turns[1].tokens
    selected = select(kept, RejectionConfig())
    write_selection(tmp_path, selected, kept, sha256)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "kept 2 of 2 rollouts" in page
    assert "coterie sft" in page


def test_the_prompt_is_kept_whole_by_default(tmp_path: Path) -> None:
    write_data(tmp_path, [episode()], CHAT, RejectionConfig(), seed=0)
    (row,) = pq.read_table(tmp_path / "data.parquet").to_pylist()
    assert [message["content"] for message in row["prompt"]] == ["the example", "how", "so", "how many"]
    data = DataConfig.model_validate({"train": [{"type": "file", "path": str(tmp_path / "data.parquet")}]})
    read = read_demonstrations(data, SftConfig(heldout_share=0), CHAT, heldout=(), seed=0)
    assert len(read.train[0].rollout.turns) == 2  # the example's turn is of the prompt
