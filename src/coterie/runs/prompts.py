"""Every prompt that a run met, once, with its embedding: a Parquet file for each step that met new ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from coterie.data.complexity import facts_of
from coterie.runs import parquet
from coterie.runs.durable import json_dumps, utf8
from coterie.runs.rows import COMPLEXITY
from coterie.types import Prompt

FORMAT = "prompts 1"
NOUN = "prompt"
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
class StoredPrompt:
    """A prompt that was met for the first time."""

    prompt: Prompt
    kind: str
    """policy or text"""
    embedding: np.ndarray
    """[E]"""


def write_step(folder: Path, step: int, found: Sequence[StoredPrompt]) -> Path | None:
    """Write what one step met, all or nothing; no file when that is nothing.

    Raises:
        RunError: the step is recorded already, a prompt does not fit its columns, or the disk refused.
    """
    if not found:
        return None
    return parquet.write(
        folder,
        step,
        lambda: pa.Table.from_pylist([_row(step, one) for one in found], schema=SCHEMA),
        noun=NOUN,
        form=FORMAT,
        digest=_digest,
        repeated=("task", "source", "domain", "embedding_kind"),
    )


def read(folder: Path) -> pa.Table:
    """Every prompt in the order met; no rows where nothing was stored.

    Raises:
        RunError: a file is damaged.
    """
    parts = [read_step(folder, step) for step in parquet.steps(folder)]
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()


def read_step(folder: Path, step: int) -> pa.Table:
    """Those that one step met.

    Raises:
        RunError: there is no such file, or it is damaged.
    """
    path, loss = parquet.path_of(folder, step), "Nothing depends on it but similarity"
    with parquet.reading(path, step, noun=NOUN, forms=(FORMAT,), loss=loss) as file:
        file.require(_digest(file.table))
        return file.table.cast(SCHEMA)


def _row(step: int, one: StoredPrompt) -> dict[str, object]:
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
