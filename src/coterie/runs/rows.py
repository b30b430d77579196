"""The row format of the rollout files: a rollout as columns, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import pyarrow as pa

from coterie.errors import RunError
from coterie.runs.durable import json_dumps, json_loads, utf8
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord:
    """One rollout with its prompt, its credit and the trainer's log-probs."""

    prompt: Prompt
    rollout: Rollout
    credit: Credit | None
    """None where the rollout was in no group, or its group had zero variance."""
    logprobs: tuple[float, ...] | None
    """[C, all turns] the trainer's log-prob of each sampled token at the update; None where not computed."""
    seconds: float | None
    """Wall-clock time of the call that collected it, sampling and scoring; None where not measured."""


PER_TOKEN = ("sampler_logprobs", "sampler_entropies", "logprobs")
"""Columns with a number at each token that the model sampled, and null at the others."""

COUNTED = ("length", "digits", "operators", "numbers", "steps", "tools")
COMPLEXITY = pa.struct([(name, pa.int32()) for name in COUNTED])

_SNAPSHOT = {
    "policy_time": ("time", pa.float64()),
    "past_tries": ("attempts", pa.int32()),
    "past_pass": ("pass_rate", pa.float64()),
    "past_reward": ("reward", pa.float64()),
    "past_length": ("length", pa.float64()),
    "task_tries": ("task_attempts", pa.int32()),
    "task_pass": ("task_pass_rate", pa.float64()),
    "task_reward": ("task_reward", pa.float64()),
    "expected": ("expected", pa.float64()),
    "expected_std": ("expected_std", pa.float64()),
    "region": ("region", pa.string()),
}
"""Column → (field of `SamplingSnapshot`, type)."""

CONTEXT: list[tuple[str, pa.DataType]] = [
    ("source", pa.string()),
    ("domain", pa.string()),
    ("complexity", COMPLEXITY),
    *((name, kind) for name, (_, kind) in _SNAPSHOT.items()),
]

REPEATED_FACTS = ["source", "domain", "region"]

REPEATED = [
    "prompt_id",
    "task",
    "prompt",
    "answer",
    "prompt_attributes",
    "attributes",
    "outcome",
    "stop_reason",
    *REPEATED_FACTS,
]


@cache
def schema(*, exact: bool = False) -> pa.Schema:
    """Columns of a rollout file.

    Args:
        exact: log-probs are float64 instead of float32.
    """
    text, real = pa.string(), pa.float64()
    reals = pa.list_(real if exact else pa.float32())
    return pa.schema(
        [
            ("step", pa.int64()),
            ("prompt_id", text),
            ("task", text),
            ("rollout_id", text),
            ("sample", pa.int32()),
            ("prompt", text),  # JSON list of messages
            ("completion", text),
            ("answer", text),
            ("prompt_attributes", text),  # JSON
            ("prompt_tokens", pa.list_(pa.int32())),  # of the first turn
            (
                "tokens",
                pa.list_(pa.int32()),
            ),  # all after it: the model's, and between turns the environment's
            ("loss_mask", pa.list_(pa.bool_())),  # true at tokens of the model
            ("sampler_logprobs", reals),  # null at the others
            ("sampler_entropies", reals),  # likewise; null where the engine does not tell
            ("logprobs", reals),
            ("turns", text),  # JSON, one object per turn: start, end, temperature, stop_reason, version, state, reward
            ("reward", real),
            ("reward_parts", text),  # JSON
            ("step_rewards", pa.list_(pa.struct([("end", pa.int32()), ("value", real), ("label", text)]))),
            ("advantage", real),  # the mean where tokens have their own
            ("token_advantages", pa.list_(real)),  # of the tokens under the loss mask; null where all have the same
            ("returns", pa.list_(real)),  # of the same tokens; null without a critic
            ("values", pa.list_(real)),
            ("clip_low", real),
            ("clip_high", real),
            ("contributions", text),  # JSON
            ("outcome", text),
            ("error", text),
            ("stop_reason", text),
            ("version", pa.int64()),
            ("prompt_length", pa.int32()),
            ("completion_length", pa.int32()),
            ("difficulty", real),
            ("embedding", text),
            ("attributes", text),  # JSON, of the context
            ("seconds", real),
            *CONTEXT,
            ("messages", text),  # JSON, the whole episode; null where the model answered its prompt once
        ]
    )


def to_row(step: int, record: RolloutRecord) -> dict[str, Any]:
    """The record as one row of `schema`."""
    prompt, rollout, credit, context = record.prompt, record.rollout, record.credit, record.rollout.context
    if context.prompt_id != prompt.id:
        raise RunError(f"rollout {rollout.id} answers {context.prompt_id}, but is recorded with prompt {prompt.id}")
    if credit is not None and credit.rollout_id != rollout.id:
        raise RunError(f"rollout {rollout.id} is recorded with the credit of {credit.rollout_id}")

    def as_json(name: str, value: Any) -> str:
        try:
            return json_dumps(value)
        except ValueError as error:
            raise RunError(f"{name} of rollout {rollout.id} is not strict JSON: {error}") from error

    return {
        "step": step,
        "prompt_id": utf8(prompt.id),
        "task": utf8(prompt.task),
        "rollout_id": utf8(rollout.id),
        "sample": rollout.sample,
        "prompt": as_json("messages", list(prompt.messages)),
        "completion": utf8(rollout.completion),
        "answer": utf8(prompt.answer),
        "prompt_attributes": as_json("prompt attributes", dict(prompt.attributes)),
        **_tokens(record),
        "reward": rollout.reward,
        "reward_parts": as_json("reward_parts", dict(rollout.reward_parts)),
        "step_rewards": [
            {"end": step.end, "value": step.value, "label": utf8(step.label)} for step in rollout.step_rewards
        ],
        **_credit_columns(credit),
        "contributions": as_json("contributions", dict(credit.contributions)) if credit else None,
        "outcome": str(rollout.outcome),
        "error": utf8(rollout.error),
        "stop_reason": str(context.stop_reason),
        "version": context.version,
        "prompt_length": context.prompt_length,
        "completion_length": context.completion_length,
        "difficulty": context.difficulty,
        "embedding": utf8(context.embedding),
        "attributes": as_json("context attributes", dict(context.attributes)),
        "seconds": record.seconds,
        **to_columns(context),
        "messages": as_json("messages of the episode", list(rollout.messages)) if rollout.messages else None,
    }


def _credit_columns(credit: Credit | None) -> dict[str, Any]:
    if credit is None:
        return dict.fromkeys(("advantage", "token_advantages", "returns", "values", "clip_low", "clip_high"))
    per_token = credit.advantage if isinstance(credit.advantage, tuple) else None
    return {
        "advantage": credit.advantage if per_token is None else sum(per_token) / max(len(per_token), 1),
        "token_advantages": per_token,
        "returns": credit.returns,
        "values": credit.values,
        "clip_low": credit.clip_low,
        "clip_high": credit.clip_high,
    }


def _tokens(record: RolloutRecord) -> dict[str, Any]:
    """Columns of the turns laid end to end."""
    rollout, logprobs = record.rollout, record.logprobs
    sampled = sum(len(turn.tokens) for turn in rollout.turns)
    if logprobs is not None and len(logprobs) != sampled:
        raise RunError(f"rollout {rollout.id} has {sampled} sampled tokens, but {len(logprobs)} trainer log-probs")
    first = rollout.turns[0].prompt_tokens if rollout.turns else ()
    out: dict[str, Any] = {name: [] for name in ("tokens", "loss_mask", *PER_TOKEN)}
    turns, done = [], 0
    for index, (between, turn) in enumerate(_continuations(rollout)):
        if len(turn.sampler_logprobs) != len(turn.tokens):
            raise RunError(
                f"turn {index} of rollout {rollout.id} has {len(turn.tokens)} tokens, "
                f"but {len(turn.sampler_logprobs)} sampler log-probs"
            )
        count, masked = len(turn.tokens), [None] * len(between)
        entropies = [None] * count if turn.sampler_entropies is None else list(turn.sampler_entropies)
        out["tokens"] += between + turn.tokens
        out["loss_mask"] += [False] * len(between) + [True] * count
        out["sampler_logprobs"] += masked + list(turn.sampler_logprobs)
        out["sampler_entropies"] += masked + entropies
        if logprobs is not None:
            out["logprobs"] += masked + list(logprobs[done : done + count])
        done += count
        turns.append(_turn_fields(turn, end=len(out["tokens"])))
    if logprobs is None:
        out["logprobs"] = None
    if any(turn.sampler_entropies is None for turn in rollout.turns):
        out["sampler_entropies"] = None
    return {**out, "prompt_tokens": first, "turns": json_dumps(turns)}


def _continuations(rollout: Rollout) -> Iterator[tuple[tuple[int, ...], Turn]]:
    try:
        yield from rollout.continuations()
    except ValueError as error:
        raise RunError(str(error)) from error


def _turn_fields(turn: Turn, end: int) -> dict[str, Any]:
    fields = {
        "start": end - len(turn.tokens),
        "end": end,
        "temperature": turn.temperature,
        "stop_reason": str(turn.stop_reason),
        "version": turn.version,
    }
    if turn.state is None and not turn.reward:  # as in every episode of one question and one answer
        return fields
    return {**fields, "state": turn.state, "reward": turn.reward}


def from_row(row: dict[str, Any]) -> RolloutRecord:
    """Inverse of `to_row`. Raises ValueError, KeyError or TypeError where a damaged row makes no sense."""
    prompt = Prompt(
        id=row["prompt_id"],
        messages=_messages(row["prompt"]),
        answer=row["answer"],
        task=row["task"],
        attributes=json_loads(row["prompt_attributes"]),
        source=row.get("source") or "",
    )
    context = Context(
        prompt_id=row["prompt_id"],
        task=row["task"],
        difficulty=row["difficulty"],
        embedding=row["embedding"],
        version=row["version"],
        prompt_length=row["prompt_length"],
        completion_length=row["completion_length"],
        stop_reason=StopReason(row["stop_reason"]),
        attributes=json_loads(row["attributes"]),
        **from_columns(row),
    )
    rollout = Rollout(
        id=row["rollout_id"],
        sample=row["sample"],
        turns=tuple(_turn(row, turn) for turn in json_loads(row["turns"])),
        completion=row["completion"],
        messages=_messages(row.get("messages")),
        reward=row["reward"],
        reward_parts=json_loads(row["reward_parts"]),
        step_rewards=tuple(StepReward(**step) for step in row["step_rewards"]),
        outcome=Outcome(row["outcome"]),
        error=row["error"],
        context=context,
    )
    return RolloutRecord(
        prompt=prompt,
        rollout=rollout,
        credit=_credit(row),
        logprobs=_sampled(row, "logprobs"),
        seconds=row["seconds"],
    )


def _messages(text: str | None) -> tuple[Message, ...]:
    messages = [] if text is None else json_loads(text)
    return tuple(cast("Message", {key: m[key] for key in Message.__annotations__ if key in m}) for m in messages)


def _turn(row: dict[str, Any], fields: dict[str, Any]) -> Turn:
    start, end = fields["start"], fields["end"]
    entropies = row.get("sampler_entropies")
    return Turn(
        prompt_tokens=(*row["prompt_tokens"], *row["tokens"][:start]),
        tokens=tuple(row["tokens"][start:end]),
        sampler_logprobs=tuple(row["sampler_logprobs"][start:end]),
        temperature=fields["temperature"],
        stop_reason=StopReason(fields["stop_reason"]),
        version=fields["version"],
        sampler_entropies=None if entropies is None else tuple(entropies[start:end]),
        state=fields.get("state"),
        reward=fields.get("reward", 0.0),
    )


def _credit(row: dict[str, Any]) -> Credit | None:
    if row["advantage"] is None:
        return None
    return Credit(
        rollout_id=row["rollout_id"],
        advantage=row["advantage"] if row["token_advantages"] is None else tuple(row["token_advantages"]),
        clip_low=row["clip_low"],
        clip_high=row["clip_high"],
        contributions=json_loads(row["contributions"]),
        returns=None if row["returns"] is None else tuple(row["returns"]),
        values=None if row["values"] is None else tuple(row["values"]),
    )


def _sampled(row: dict[str, Any], column: str) -> tuple[float, ...] | None:
    if row[column] is None:
        return None
    return tuple(value for value, sampled in zip(row[column], row["loss_mask"], strict=True) if sampled)


def to_columns(context: Context) -> dict[str, Any]:
    """Values of the columns of `CONTEXT`."""
    snapshot = context.dispatch
    columns: dict[str, Any] = {
        "source": utf8(context.source),
        "domain": utf8(context.domain),
        "complexity": dict(context.complexity) or None,
    }
    for name, (field, _) in _SNAPSHOT.items():
        columns[name] = None if snapshot is None else getattr(snapshot, field)
    return columns | {"region": utf8(columns["region"])}


def from_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Context`; a file of format 1 lacks the columns."""
    snapshot = None
    if row.get("policy_time") is not None:
        snapshot = SamplingSnapshot(**{field: row[name] for name, (field, _) in _SNAPSHOT.items()})
    return {
        "source": row.get("source") or "",
        "domain": row.get("domain"),
        "complexity": row.get("complexity") or {},
        "dispatch": snapshot,
    }
