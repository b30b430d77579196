"""Prompts of a run, each stored once with its embedding: a Parquet file for each step with new ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coterie.data.complexity import facts_of
from coterie.runs import parquet
from coterie.runs.durable import json_dumps, utf8
from coterie.runs.rows import COMPLEXITY
from coterie.types import Prompt

FORMAT = "prompts 1"
NOUN = "prompt"
READERS = 2
"""Files that `read_columns` reads at a time."""
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
"""`step` is the first with the prompt; `embedding_kind` is policy (its hidden states) or text (hashed words)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredPrompt:
    """A prompt that a step stores, with its embedding."""

    prompt: Prompt
    kind: str
    """policy or text"""
    embedding: np.ndarray
    """[E]"""


def write_step(folder: Path, step: int, prompts: Sequence[StoredPrompt]) -> Path | None:
    """Write the new prompts of one step, all or nothing; no file when there are none."""
    if not prompts:
        return None
    return parquet.write(
        folder,
        step,
        lambda: pa.Table.from_pylist([_row(step, prompt) for prompt in prompts], schema=SCHEMA),
        noun=NOUN,
        form=FORMAT,
        digest=_digest,
        repeated=("task", "source", "domain", "embedding_kind"),
    )


def read(folder: Path) -> pa.Table:
    """Every stored prompt in the order of steps; no rows where nothing was stored."""
    parts = [read_step(folder, step) for step in parquet.steps(folder)]
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()


def read_step(folder: Path, step: int) -> pa.Table:
    """The prompts that one step stored."""
    path, loss = parquet.path_of(folder, step), "Nothing depends on it but similarity"
    with parquet.reading(path, step, noun=NOUN, forms=(FORMAT,), loss=loss) as file:
        file.require(_digest(file.table))
        return file.table.cast(SCHEMA)


def read_columns(folder: Path, steps: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Some columns of the prompts that some steps stored, their pages verified but not the hash of all columns: to look
    at many quickly. A damaged or foreign file is left out."""
    schema = pa.schema([SCHEMA.field(name) for name in columns])

    def part(step: int) -> pa.Table:
        try:
            with pq.ParquetFile(parquet.path_of(folder, step), page_checksum_verification=True) as file:
                return file.read(list(columns), use_threads=False).select(schema.names).cast(schema)
        except (pa.ArrowException, OSError, UnicodeError, KeyError):
            return schema.empty_table()

    with ThreadPoolExecutor(READERS) as pool:
        return pa.concat_tables([schema.empty_table(), *pool.map(part, steps)])


def _row(step: int, stored: StoredPrompt) -> dict[str, object]:
    prompt, features = stored.prompt, facts_of(stored.prompt)
    return {
        "step": step,
        "prompt_id": utf8(prompt.id),
        "task": utf8(prompt.task),
        "source": utf8(prompt.source),
        "domain": utf8(features["domain"]),
        "prompt": json_dumps(list(prompt.messages)),
        "answer": utf8(prompt.answer),
        "attributes": json_dumps(dict(prompt.attributes)),
        "complexity": features["complexity"],
        "embedding_kind": stored.kind,
        "embedding": stored.embedding.astype(np.float32),
    }


def _digest(table: pa.Table) -> str:
    """Hash of the rows as they are read back; the embeddings by their bytes, which JSON would take minutes for."""
    digest = hashlib.sha256(json.dumps(table.drop_columns("embedding").to_pylist()).encode())
    for chunk in table["embedding"].chunks:
        digest.update(np.diff(chunk.offsets.to_numpy()).tobytes() + chunk.flatten().to_numpy().tobytes())
    return digest.hexdigest()
