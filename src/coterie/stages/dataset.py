"""Data set of kept rollouts: conversations with where each came from, and a report of what was kept and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from coterie.config.imitation import RejectionConfig
from coterie.runs.durable import json_dumps, replacing, write_file
from coterie.runs.inspect import DATA
from coterie.stages.selection import GROUPS, Candidate, Selected
from coterie.text import counted, safe_text
from coterie.types import Message

REPORT = "report.json"
"""What was kept and why, as numbers, beside `DATA`."""
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # of the rollout, with its run
        ("prompt", _MESSAGES),
        ("completion", _MESSAGES),  # the model's turns, and what the environment said between them
        ("answer", pa.string()),
        ("task", pa.string()),
        ("prompt_id", pa.string()),
        ("run", pa.string()),
        ("step", pa.int64()),
        ("policy", pa.int64()),  # version that sampled it
        ("seed", pa.int64()),
        ("sample", pa.int32()),
        ("reward", pa.float64()),
        ("reward_parts", pa.string()),  # JSON
        ("tokens", pa.int32()),
        ("difficulty", pa.float64()),
        ("region", pa.string()),
    ]
)
"""Columns: what `sft` reads, and where each row came from."""


class Decoder(Protocol):
    """The part of a chat that writing conversations needs."""

    @property
    def opening(self) -> str: ...
    def decode(self, ids: Sequence[int]) -> str: ...


def spoken(candidate: Candidate, chat: Decoder, settings: RejectionConfig) -> tuple[list[Message], list[Message]]:
    """Prompt and completion of a rollout: whole, with each turn's text as it was sampled, stop strings included."""
    rollout, prompt = candidate.record.rollout, candidate.record.prompt
    texts = [chat.opening + chat.decode(turn.tokens) for turn in rollout.turns]
    messages = list(rollout.messages) or [*prompt.messages, Message(role="assistant", content=texts[-1])]
    places = [index for index, message in enumerate(messages) if message["role"] == "assistant"][-len(texts) :]
    for index, text in zip(places, texts, strict=True):
        messages[index] = Message(role="assistant", content=text)
    asked = messages[: places[0]]
    first = [message for message in asked[:1] if message["role"] == "system"]
    asked = asked[-1:] if settings.prompt == "question" else asked[len(first) :]
    if settings.system is not None:
        first = [Message(role="system", content=settings.system)] if settings.system else []
    asked = [*first, *asked]
    return asked, messages[places[0] : places[-1] + 1]


def write_data(folder: Path, kept: Sequence[Candidate], chat: Decoder, settings: RejectionConfig, seed: int) -> str:
    """Write `data.parquet`, all or nothing; returns the sha256 of the file."""
    rows = []
    for candidate in kept:
        rollout, context = candidate.record.rollout, candidate.record.rollout.context
        asked, replies = spoken(candidate, chat, settings)
        rows.append(
            {
                "id": f"{candidate.run}/{rollout.id}",
                "prompt": asked,
                "completion": replies,
                "answer": candidate.record.prompt.answer,
                "task": candidate.record.prompt.task,
                "prompt_id": context.prompt_id,
                "run": candidate.run,
                "step": candidate.step,
                "policy": context.version,
                "seed": seed,
                "sample": rollout.sample,
                "reward": rollout.reward,
                "reward_parts": json_dumps(dict(rollout.reward_parts)),
                "tokens": candidate.tokens,
                "difficulty": context.difficulty,
                "region": getattr(context.dispatch, "region", None),
            }
        )
    path = folder / DATA
    with replacing(path) as tmp:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp, compression="zstd")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_selection(folder: Path, selected: Selected, candidates: Sequence[Candidate], sha256: str) -> None:
    """Write `report.json` and `README.md`."""
    groups = {name: _by_group(candidates, selected.kept, name) for name in ("task", "difficulty", "region")}
    facts: dict[str, Any] = {
        "candidates": selected.candidates,
        "kept": len(selected.kept),
        "prompts": selected.prompts,
        "prompts_solved": selected.solved,
        "prompts_kept": len({candidate.prompt for candidate in selected.kept}),
        "left_out": dict(selected.reasons),
        "groups": groups,
        "tokens": sum(candidate.tokens for candidate in selected.kept),
        "data_sha256": sha256,
    }
    write_file(folder / REPORT, (json_dumps(facts, indent=1) + "\n").encode())
    text = "\n".join(_page(folder.resolve().name, facts))
    write_file(folder / "README.md", (text + "\n").encode("utf-8", "backslashreplace"))


def _by_group(candidates: Sequence[Candidate], kept: Sequence[Candidate], name: str) -> dict[str, list[int]]:
    """Group → [candidates, correct, kept]; empty where all are of one group."""
    counts: dict[str, list[int]] = {}
    for members, place in ((candidates, 0), ([c for c in candidates if c.correct], 1), (kept, 2)):
        for candidate in members:
            counts.setdefault(GROUPS[name](candidate), [0, 0, 0])[place] += 1
    return dict(sorted(counts.items())) if len(counts) > 1 or name == "task" else {}


def _page(name: str, facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {name}"
    yield ""
    yield (
        f"Rejection sampling kept {facts['kept']} of {counted(facts['candidates'], 'rollout')} "
        f"({facts['tokens']:,} tokens), for {facts['prompts_kept']} of {counted(facts['prompts'], 'prompt')}; "
        f"{facts['prompts_solved']} prompts had a correct rollout. The rows are in `{DATA}`."
    )
    yield ""
    yield "| left out because | rollouts |\n| --- | --- |"
    for reason, count in sorted(facts["left_out"].items(), key=lambda item: -item[1]):
        yield f"| {reason} | {count} |"
    for group, rows in facts["groups"].items():
        if rows:
            yield f"\n| {group} | rollouts | correct | kept |\n| --- | --- | --- | --- |"
            for label, (total, correct, kept) in rows.items():
                cell = " ".join(safe_text(label).split()).replace("|", "\\|")
                yield f"| {cell} | {total} | {correct} | {kept} |"
    yield f"\nFine-tune on them: `coterie sft --data.train.0.type file --data.train.0.path {name}/{DATA}`."
