"""Every prompt that a run met, once, with its embedding: a Parquet file for each step that met new ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coterie.algo.grouping.facts import facts_of
from coterie.errors import RunError
from coterie.runs import rollouts
from coterie.runs.contexts import COMPLEXITY
from coterie.runs.durable import json_dumps, replacing, utf8
from coterie.types import Prompt

FORMAT = "prompts 1"
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("prompt_id", pa.string()),
        ("task", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("prompt", pa.string()),  # JSON list of messages
        ("answer", pa.string()),
        ("attributes", pa.string()),  # JSON
        ("complexity", COMPLEXITY),
        ("embedding_kind", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
)
"""`step` is the first that met the prompt; `embedding_kind` is policy (its hidden states) or text (hashed words)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MetPrompt:
    """A prompt that was met for the first time."""

    prompt: Prompt
    kind: str
    """policy or text"""
    embedding: np.ndarray
    """[E]"""


def write_step(folder: Path, step: int, found: Sequence[MetPrompt]) -> Path | None:
    """Write what one step met, all or nothing; no file when that is nothing.

    Raises:
        RunError: the step is recorded already, a prompt does not fit its columns, or the disk refused.
    """
    if not found:
        return None
    path = folder / f"step_{step:06d}.parquet"
    if path.exists():
        raise RunError(f"{path} exists; a recorded step is never overwritten. A resume first calls truncate_after")
    try:
        table = pa.Table.from_pylist([_row(step, one) for one in found], schema=SCHEMA)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise RunError(f"the prompts of step {step} do not fit their columns: {error}") from error
    facts = {"coterie": FORMAT, "step": str(step), "sha256": _digest(table)}
    with replacing(path) as tmp:
        pq.write_table(
            table.replace_schema_metadata(facts),
            tmp,
            compression="zstd",
            write_page_checksum=True,
            write_statistics=False,
            use_dictionary=["task", "source", "domain", "embedding_kind"],
        )
    return path


def read(folder: Path) -> pa.Table:
    """Every prompt in the order met; no rows where nothing was stored.

    Raises:
        RunError: a file is damaged.
    """
    parts = [read_step(folder, step) for step in rollouts.steps(folder)]
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()


def read_step(folder: Path, step: int) -> pa.Table:
    """Those that one step met.

    Raises:
        RunError: there is no such file, or it is damaged.
    """
    path = folder / f"step_{step:06d}.parquet"
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            facts = file.schema_arrow.metadata or {}
            if facts.get(b"coterie") != FORMAT.encode() or facts.get(b"step") != str(step).encode():
                raise ValueError(f"its header says {facts!r}, expected {FORMAT} and step {step}")
            table = file.read().replace_schema_metadata(None)
        if facts.get(b"sha256") != _digest(table).encode():
            raise ValueError("its rows do not match the hash it carries")
        return table.cast(SCHEMA)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise RunError(
            f"{path} is damaged or is no prompt file of coterie: {error}. Nothing depends on it but similarity; "
            "restore it from a copy, or delete it"
        ) from error


def _row(step: int, one: MetPrompt) -> dict[str, object]:
    prompt, facts = one.prompt, facts_of(one.prompt)
    return {
        "step": step,
        "prompt_id": utf8(prompt.id),
        "task": utf8(prompt.task),
        "source": utf8(prompt.source),
        "domain": utf8(facts["domain"]),
        "prompt": json_dumps(list(prompt.messages)),
        "answer": utf8(prompt.answer),
        "attributes": json_dumps(dict(prompt.attributes)),
        "complexity": facts["complexity"],
        "embedding_kind": one.kind,
        "embedding": one.embedding.astype(np.float32),
    }


def _digest(table: pa.Table) -> str:
    """Of the rows as they are read back; the embeddings by their bytes, which JSON would take minutes for."""
    held = hashlib.sha256(json.dumps(table.drop_columns("embedding").to_pylist()).encode())
    for chunk in table["embedding"].chunks:
        held.update(np.diff(chunk.offsets.to_numpy()).tobytes() + chunk.flatten().to_numpy().tobytes())
    return held.hexdigest()
