from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import make_prompt, make_record, make_rollout

from coterie.errors import RunError
from coterie.runs import rollouts as files
from coterie.runs.parquet import steps, truncate_after
from coterie.runs.query import RolloutStore
from coterie.runs.rollouts import RolloutRecord, read_step, write_step
from coterie.runs.rows import CONTEXT, COUNTED
from coterie.types import (
    Context,
    Credit,
    Message,
    Outcome,
    Prompt,
    Rollout,
    SamplingSnapshot,
    StepReward,
    StopReason,
    Turn,
)

TEXT = st.text(max_size=12)
"""Lone surrogates excluded: a completion with one is read back escaped."""
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(tuple)
LOGPROB = st.floats(-50, 0, width=32)
REAL = st.floats(-1e6, 1e6)
STEP = st.builds(StepReward, end=st.integers(0, 2**31 - 1), value=REAL, label=TEXT)
JSON = st.dictionaries(TEXT, st.none() | st.integers() | TEXT | REAL | st.lists(REAL, max_size=2), max_size=3)


SOME = st.none() | REAL
DISPATCH = st.builds(
    SamplingSnapshot,
    time=REAL,
    attempts=st.integers(0, 2**31 - 1),
    task_attempts=st.integers(0, 2**31 - 1),
    **dict.fromkeys(
        ("pass_rate", "reward", "length", "task_pass_rate", "task_reward", "expected", "expected_std"), SOME
    ),
    region=st.none() | TEXT,
)


@st.composite
def turns(draw, count):
    prefix, out, told = draw(TOKENS), [], draw(st.booleans())
    for _ in range(count):
        tokens = draw(TOKENS)
        logprobs = tuple(draw(LOGPROB) for _ in tokens)
        turn = Turn(
            prompt_tokens=prefix,
            tokens=tokens,
            sampler_logprobs=logprobs,
            temperature=draw(st.floats(0.1, 2)),
            stop_reason=draw(st.sampled_from(StopReason)),
            version=draw(st.integers(0, 99)),
            state=draw(st.none() | TEXT),
            reward=draw(REAL),
            sampler_entropies=tuple(draw(LOGPROB) for _ in tokens) if told else None,
        )
        out.append(turn)
        prefix = prefix + tokens + draw(TOKENS)
    return tuple(out)


@st.composite
def records(draw):
    prompt = Prompt(
        id=draw(TEXT),
        messages=tuple(draw(st.lists(st.builds(lambda r, c: Message(role=r, content=c), TEXT, TEXT), max_size=3))),
        answer=draw(st.none() | TEXT),
        task=draw(TEXT),
        attributes=draw(JSON),
        source=draw(TEXT),
    )
    drawn_turns = draw(turns(draw(st.integers(0, 3))))
    sampled = sum(len(turn.tokens) for turn in drawn_turns)
    context = Context(
        prompt_id=prompt.id,
        task=prompt.task,
        difficulty=draw(st.none() | REAL),
        embedding=draw(st.none() | TEXT),
        version=draw(st.integers(0, 2**40)),
        prompt_length=draw(st.integers(0, 9999)),
        completion_length=sampled,
        stop_reason=draw(st.sampled_from(StopReason)),
        attributes=draw(JSON),
        source=prompt.source,
        domain=draw(st.none() | TEXT),
        complexity=draw(st.just({}) | st.fixed_dictionaries({name: st.integers(0, 2**31 - 1) for name in COUNTED})),
        dispatch=draw(st.none() | DISPATCH),
    )
    rollout = Rollout(
        id=draw(TEXT),
        sample=draw(st.integers(0, 999)),
        turns=drawn_turns,
        completion=draw(TEXT),
        messages=tuple(draw(st.lists(st.builds(lambda r, c: Message(role=r, content=c), TEXT, TEXT), max_size=3))),
        reward=draw(st.none() | REAL),
        reward_parts=draw(st.dictionaries(TEXT, st.none() | REAL, max_size=3)),
        step_rewards=tuple(draw(st.lists(STEP, max_size=3))),
        outcome=draw(st.sampled_from(Outcome)),
        error=draw(st.none() | TEXT),
        context=context,
    )
    numbers = {name: draw(REAL) for name in ("clip_low", "clip_high")}
    reals = st.lists(REAL, max_size=3).map(tuple)
    numbers |= {"advantage": draw(REAL | reals), "returns": draw(st.none() | reals), "values": draw(st.none() | reals)}
    shares = draw(st.dictionaries(TEXT, REAL, max_size=2))
    credit = draw(st.none() | st.just(Credit(rollout_id=rollout.id, contributions=shares, **numbers)))
    logprobs = draw(st.none() | st.just(tuple(draw(LOGPROB) for _ in range(sampled))))
    return RolloutRecord(
        prompt=prompt, rollout=rollout, credit=credit, logprobs=logprobs, seconds=draw(st.none() | REAL)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(records(), max_size=4))
def test_exact_round_trip(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rollouts")
    write_step(folder, 12, rows)
    assert read_step(folder, 12) == rows


def test_columns_of_two_turns(tmp_path):
    """Between the turns the environment spoke: those tokens are masked and have no log-probs."""
    prompt = make_prompt()
    first = make_rollout(prompt).turns[0]
    second = replace(
        first,
        prompt_tokens=(5, 6, 7, 8, 9, 100, 101),
        tokens=(10,),
        sampler_logprobs=(-1.0,),
        sampler_entropies=(2.0,),
    )
    rollout = replace(make_rollout(prompt), turns=(first, second))
    record = replace(make_record(), rollout=rollout, logprobs=(-0.5, -0.125, -2.0))
    path = write_step(tmp_path, 3, [record])
    assert path.name == "step_000003.parquet"
    (row,) = pq.read_table(path).to_pylist()
    assert row["prompt_tokens"] == [5, 6, 7]
    assert row["tokens"] == [8, 9, 100, 101, 10]
    assert row["loss_mask"] == [True, True, False, False, True]
    assert row["sampler_logprobs"] == [-0.5, -0.25, None, None, -1.0]
    assert row["sampler_entropies"] == [0.75, 0.125, None, None, 2.0]
    assert row["logprobs"] == [-0.5, -0.125, None, None, -2.0]
    assert read_step(tmp_path, 3) == [record]


def test_float32_logprobs_come_back_exactly(tmp_path):
    values = tuple(float(np.float32(x)) for x in np.random.default_rng(0).normal(-2, 1, 2))
    record = replace(make_record(), logprobs=values)
    write_step(tmp_path, 1, [record])
    assert read_step(tmp_path, 1)[0].logprobs == values


def test_text_that_is_no_utf8(tmp_path):
    prompt = make_prompt(text="half \ud83d")
    record = replace(make_record(prompt=prompt), rollout=make_rollout(prompt, text="a\ud800\x00b"))
    write_step(tmp_path, 1, [record])
    (back,) = read_step(tmp_path, 1)
    assert back.rollout.completion == "a\\ud800\x00b"
    assert back.prompt.messages[0]["content"] == "half \ud83d"
    assert back.rollout.turns == record.rollout.turns


def test_steps_and_truncation(tmp_path):
    assert steps(tmp_path / "absent") == []
    for step in (0, 2, 10, 1_000_000):
        write_step(tmp_path, step, [make_record()])
    (tmp_path / "notes.parquet").write_text("")
    assert steps(tmp_path) == [0, 2, 10, 1_000_000]
    assert truncate_after(tmp_path, 2) == [10, 1_000_000]
    assert steps(tmp_path) == [0, 2]
    assert truncate_after(tmp_path, 2) == []


def test_a_file_of_format_1_is_read_without_its_context(tmp_path):
    record = make_record()
    snapshot = SamplingSnapshot(
        time=1.0,
        attempts=2,
        pass_rate=0.5,
        reward=0.5,
        length=9.0,
        task_attempts=2,
        task_pass_rate=0.5,
        task_reward=0.5,
    )
    context = replace(record.rollout.context, domain="animals", complexity=dict.fromkeys(COUNTED, 1), dispatch=snapshot)
    path = write_step(tmp_path, 4, [replace(record, rollout=replace(record.rollout, context=context))])
    table = pq.read_table(path).drop_columns([name for name, _ in CONTEXT])
    digest = files._digest(table.to_pylist())
    pq.write_table(table.replace_schema_metadata({"coterie": "1", "step": "4", "sha256": digest}), path)
    assert read_step(tmp_path, 4) == [record]


def test_a_file_of_format_2_is_read_without_its_episode(tmp_path):
    record = make_record()
    episode = (Message(role="user", content="1?"), Message(role="assistant", content="2"))
    path = write_step(tmp_path, 4, [replace(record, rollout=replace(record.rollout, messages=episode))])
    assert read_step(tmp_path, 4)[0].rollout.messages == episode
    table = pq.read_table(path).drop_columns(["messages"])
    digest = files._digest(table.to_pylist())
    pq.write_table(table.replace_schema_metadata({"coterie": "2", "step": "4", "sha256": digest}), path)
    assert read_step(tmp_path, 4) == [record]


def test_a_file_of_format_3_is_read_without_entropies(tmp_path):
    """Beside a newer one: a resumed run has both."""
    record = make_record()
    turn = replace(record.rollout.turns[0], sampler_entropies=None)
    old = replace(record, rollout=replace(record.rollout, turns=(turn,)))
    (tmp_path / "rollouts").mkdir()
    path = write_step(tmp_path / "rollouts", 4, [old])
    assert pq.read_table(path)["sampler_entropies"].to_pylist() == [None]
    table = pq.read_table(path).drop_columns(["sampler_entropies"])
    digest = files._digest(table.to_pylist())
    pq.write_table(table.replace_schema_metadata({"coterie": "3", "step": "4", "sha256": digest}), path)
    write_step(tmp_path / "rollouts", 5, [record])
    assert read_step(tmp_path / "rollouts", 4) == [old]
    assert read_step(tmp_path / "rollouts", 5) == [record]
    both = RolloutStore({"r": tmp_path}).rollouts().to_table(columns=["step", "sampler_entropies"])
    assert both["sampler_entropies"].to_pylist() == [None, [0.75, 0.125]]


def test_a_step_is_never_overwritten(tmp_path):
    write_step(tmp_path, 1, [make_record()])
    with pytest.raises(RunError, match=r"step_000001.parquet exists; .*truncate_after"):
        write_step(tmp_path, 1, [])
    assert len(read_step(tmp_path, 1)) == 1


def test_a_missing_step(tmp_path):
    with pytest.raises(RunError, match=r"no rollouts of step 4 in .*; it holds none"):
        read_step(tmp_path, 4)
    write_step(tmp_path, 1, [])
    with pytest.raises(RunError, match="it holds steps 1 to 1"):
        read_step(tmp_path, 4)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match="No space left"):
        write_step(tmp_path, 1, [make_record()])
    assert os.listdir(tmp_path) == []


def test_flipped_bits_never_change_a_rollout(tmp_path):
    """Wherever a bit flips, reading fails by name or gives exactly what was written (unused bytes of the footer)."""
    rows = [make_record(sample) for sample in range(3)]
    path = write_step(tmp_path, 5, rows)
    good, rng = path.read_bytes(), random.Random(0)
    noticed = 0
    for _ in range(300):
        position = rng.randrange(len(good))
        bad = bytearray(good)
        bad[position] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(bad))
        try:
            records = read_step(tmp_path, 5)
        except RunError:
            noticed += 1
        else:
            assert records == rows, f"byte {position}"
    assert noticed > 150


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"PAR1"])
def test_truncation_is_named(tmp_path, damage):
    path = write_step(tmp_path, 5, [make_record()])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"step_000005.parquet is damaged"):
        read_step(tmp_path, 5)


def test_a_renamed_file_is_noticed(tmp_path):
    os.rename(write_step(tmp_path, 5, [make_record()]), tmp_path / "step_000006.parquet")
    with pytest.raises(RunError, match="expected format 1 or 2 or 3 or 4 and step 6"):
        read_step(tmp_path, 6)


def broken(**changes):
    return replace(make_record(), **changes)


TURN = make_record().rollout.turns[0]


def with_turns(*turns):
    return broken(rollout=replace(make_record().rollout, turns=turns), logprobs=None)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (broken(logprobs=(-1.0,)), "has 2 sampled tokens, but 1 trainer log-probs"),
        (broken(prompt=make_prompt("other")), "answers legs/1, but is recorded with prompt other"),
        (
            broken(credit=Credit(rollout_id="z", advantage=1.0, clip_low=0.2, clip_high=0.2)),
            "recorded with the credit of z",
        ),
        (with_turns(replace(TURN, sampler_logprobs=())), "turn 0 .* has 2 tokens, but 0 sampler log-probs"),
        (with_turns(TURN, TURN), "turn 1 of rollout legs/1#0@3 does not continue the tokens of the turn before"),
        (with_turns(replace(TURN, tokens=(1, 2**40))), "step 1 do not fit their columns"),
        (broken(prompt=replace(make_prompt(), attributes={"x": {1}})), "prompt attributes of .* strict JSON"),
        (
            broken(rollout=replace(make_record().rollout, reward_parts={"x": float("nan")})),
            "reward_parts of rollout legs/1#0@3 is not strict JSON",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, record, message):
    with pytest.raises(RunError, match=message):
        write_step(tmp_path, 1, [record])
    assert os.listdir(tmp_path) == []
