"""Pages of stored rollouts: filters and paging over step files, groups, single rollouts with their tokens.

A run of a million rollouts has thousands of step files. A page reads the files it needs, the newest first, a few narrow
columns each, and stops when it is full or its time is over; the rest is asked for with the cursor that it returns.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from coterie.board.token_text import TokenTexts
from coterie.errors import RunError
from coterie.runs import parquet
from coterie.runs.durable import json_loads
from coterie.runs.query import Filters, readable
from coterie.runs.rows import PER_TOKEN, schema
from coterie.text import safe_text

NARROW = ["step", "rollout_id", "prompt_id", "sample", "task", "region", "reward", "advantage", "expected"]
NARROW += ["completion_length", "outcome", "stop_reason", "past_pass"]
_NARROW_SCHEMA = pa.schema([*map(schema().field, NARROW), pa.field("row", pa.int32())])
ORDERS = ("reward", "-reward", "advantage", "-advantage", "completion_length", "-completion_length")
PAGE = 50
"""Rows of a page."""
PATIENCE = 0.2
"""Seconds after which a page that is not full is returned as it is."""
KEPT_BYTES = 128 * 2**20
"""Narrow columns that are kept in memory."""
READERS = 2
"""Files that are read at a time."""
SNIPPET, TEXT = 240, 40_000
"""Characters of a completion in a list, and on its own page before the rest is asked for."""
TOKENS = 1500
"""Tokens of one answer."""
SIBLINGS = 64
"""Rollouts of a group side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a page of rollouts lets through; a field that is None or empty lets everything through."""

    task: str = ""
    region: str = ""
    """Text that the region's words contain."""
    prompt: str = ""
    stop: str = ""
    outcome: str = ""
    min_reward: float | None = None
    max_reward: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    first: int | None = None
    """Training step."""
    last: int | None = None
    order: str = ""
    """Of `ORDERS`: of the rows of one step."""
    oldest: bool = False
    """The first steps first."""

    @classmethod
    def of(cls, words: Mapping[str, str]) -> Query:
        """The query of an address.

        Raises:
            RunError: a number is none, or the order is unknown.
        """
        values: dict[str, Any] = {}
        for item in fields(cls):
            text = words.get(item.name, "").strip()
            if not text:
                continue
            kind = str(item.type)
            try:
                values[item.name] = int(text) if "int" in kind else float(text) if "float" in kind else text
            except ValueError:
                raise RunError(f"{item.name} = {text!r} is no number; give one, or leave it empty") from None
        values["oldest"] = values.get("oldest") == "1"
        if values.get("order", "") not in ("", *ORDERS):
            raise RunError(f"order = {values['order']!r} is unknown; there are {', '.join(ORDERS)}")
        return cls(**values)

    def where(self) -> pc.Expression:
        """The filter on rows."""
        filters = Filters(
            tasks=[self.task] if self.task else (),
            prompts=[self.prompt] if self.prompt else (),
            region=self.region or None,
            outcomes=[self.outcome] if self.outcome else (),
            min_reward=self.min_reward,
            max_reward=self.max_reward,
        )
        expression = filters.of_prompts() & filters.of_rollouts()
        if self.stop:
            expression &= ds.field("stop_reason") == self.stop
        if self.min_length is not None:
            expression &= ds.field("completion_length") >= self.min_length
        if self.max_length is not None:
            expression &= ds.field("completion_length") <= self.max_length
        return expression


@dataclass(slots=True)
class StepFiles:
    """Step files of runs, their narrow columns kept while there is room: a recorded step never changes, unless a resume
    makes it again, which its time and size tell."""

    _kept: OrderedDict[Path, tuple[tuple[int, int], pa.Table]] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _lock: Lock = field(default_factory=Lock)

    def narrow(self, folder: Path, step: int) -> pa.Table:
        """The columns `NARROW` of one step, and the row's place in the file."""
        path = parquet.path_of(folder, step)
        with readable():
            facts = path.stat()
        stamp = (facts.st_mtime_ns, facts.st_size)
        with self._lock:
            kept = self._kept.get(path)
            if kept is not None and kept[0] == stamp:
                self._kept.move_to_end(path)
                return kept[1]
        with readable():
            table = read(path, NARROW).cast(_NARROW_SCHEMA)  # of a foreign file: it must not spoil the others
        with self._lock:
            previous = self._kept.pop(path, None)
            self._kept[path] = (stamp, table)
            self._bytes += table.nbytes - (previous[1].nbytes if previous else 0)
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1][1].nbytes
        return table

    def together(self, folder: Path, steps: Sequence[int]) -> pa.Table:
        """The columns `NARROW` of some steps as one table, in their order; without those whose file is damaged, which
        the page of rollouts names."""
        empty = _NARROW_SCHEMA.empty_table()

        def columns(step: int) -> pa.Table:
            try:
                return self.narrow(folder, step)
            except RunError:
                return empty

        with ThreadPoolExecutor(READERS) as pool, readable():
            return pa.concat_tables([empty, *pool.map(columns, steps)])


def read(path: Path, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
    """Rows of a step file, with the columns of the present format whatever format the file has.

    Raises:
        RunError: the file is damaged, or no file of coterie's.
    """
    names = columns or schema().names
    with readable():
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            there = set(file.schema_arrow.names)
            if "rollout_id" not in there:
                raise RunError(f"{path} is no rollout file of coterie: it has no column rollout_id")
            table = file.read([name for name in names if name in there], use_threads=False)  # small: threads cost more
        for name in names:
            if name not in there:
                table = table.append_column(name, pa.nulls(len(table), schema().field(name).type))
        table = table.select(names).append_column("row", pa.array(np.arange(len(table), dtype=np.int32)))
        return table if where is None else table.filter(where)


def page(files: StepFiles, run: Path, query: Query, cursor: str = "") -> dict[str, Any]:
    """One page of rollouts that the query lets through.

    Args:
        cursor: `STEP:OFFSET` of an earlier page, empty for the first.

    Returns:
        rows, the cursor of the next page (None at the end), the steps that were read, and how many of them matched.
    """
    folder, where = run / "rollouts", query.where()
    steps = [n for n in parquet.steps(folder) if (query.first or 0) <= n <= (query.last or n)]
    steps = steps if query.oldest else steps[::-1]
    at, offset = _place(cursor)
    remaining = steps if at is None else steps[steps.index(at) :] if at in steps else []
    deadline, rows, problems = time.monotonic() + PATIENCE, [], []
    following, looked = None, 0
    for step in remaining:
        if looked and time.monotonic() > deadline:
            following = f"{step}:0"
            break
        looked += 1
        try:
            chosen = _chosen(files.narrow(folder, step), where, query.order)
        except RunError as error:
            problems.append(str(error))
            continue
        taken = chosen.slice(offset, PAGE - len(rows))
        rows += _with_snippets(folder, step, taken)
        if offset + len(taken) < len(chosen):
            following = f"{step}:{offset + len(taken)}"
            break
        offset = 0
    return {
        "rows": rows,
        "next": following,
        "read": remaining[:looked][:1] + remaining[:looked][-1:],
        "steps": [min(steps), max(steps)] if steps else [],
        "problems": problems[:5],
    }


def _place(cursor: str) -> tuple[int | None, int]:
    step, colon, offset = cursor.partition(":")
    if not cursor:
        return None, 0
    if not (colon and step.isdecimal() and offset.isdecimal() and len(cursor) < 40):
        raise RunError(f"the cursor {cursor[:40]!r} is none; it is STEP:OFFSET, as a page gives it")
    return int(step), int(offset)


def _chosen(table: pa.Table, where: pc.Expression, order: str) -> pa.Table:
    with readable():
        table = table.filter(where)
        if order:
            table = table.sort_by([(order.lstrip("-"), "descending" if order.startswith("-") else "ascending")])
    return table


def _with_snippets(folder: Path, step: int, rows: pa.Table) -> list[dict[str, Any]]:
    """The rows with the beginning of their completions, for which one more column is read."""
    if not len(rows):
        return []
    texts = read(parquet.path_of(folder, step), ["rollout_id", "completion"])["completion"]
    with readable():
        starts = pc.call_function(
            "utf8_slice_codeunits", [texts.take(rows["row"])], pc.SliceOptions(0, SNIPPET)
        ).to_pylist()
    return [row | {"text": safe_text(text or "")} for row, text in zip(rows.to_pylist(), starts, strict=True)]


def group(run: Path, step: int, prompt: str) -> dict[str, Any]:
    """A prompt's rollouts of one step side by side.

    Raises:
        RunError: the step has no such prompt, or is not recorded.
    """
    columns = [*NARROW, "prompt", "completion", "answer", "reward_parts", "contributions", "error", "clip_low"]
    columns += ["clip_high", "messages", "past_tries", "past_reward"]
    table = _recorded(run, step, columns, ds.field("prompt_id") == prompt)
    if not len(table):
        raise RunError(f"step {step} has no rollouts of the prompt {prompt!r}")
    rows = [_member(row) for row in table.slice(0, SIBLINGS).to_pylist()]
    return {
        "step": step,
        "prompt_id": prompt,
        "count": len(table),
        "messages": _messages(table["prompt"][0].as_py()),
        "answer": safe_text(table["answer"][0].as_py() or ""),
        "members": rows,
    }


def _member(row: dict[str, Any]) -> dict[str, Any]:
    """A sibling: its columns, with JSON read and the text cut."""
    completion = row.pop("completion") or ""
    row.pop("prompt"), row.pop("answer")
    turns = row.pop("messages")
    return row | {
        "text": safe_text(completion[:TEXT]),
        "characters": len(completion),
        "turns": 0 if turns is None else sum(m.get("role") == "assistant" for m in _messages(turns)),
        "reward_parts": _json(row["reward_parts"], {}),
        "contributions": _json(row["contributions"], {}),
        "error": None if row["error"] is None else safe_text(row["error"][:2000]),
    }


def rollout(run: Path, step: int, rollout_id: str, texts: TokenTexts, first: int = 0, whole: bool = False) -> dict:
    """One rollout with its conversation and a stretch of its tokens.

    Args:
        first: token from which on the tokens are given, `TOKENS` of them.
        whole: give texts of any length, which are else cut after `TEXT` characters.

    Raises:
        RunError: the step has no such rollout, or is not recorded.
    """
    table = _recorded(run, step, None, ds.field("rollout_id") == rollout_id)
    if not len(table):
        raise RunError(f"step {step} has no rollout {rollout_id!r}")
    row = table.slice(0, 1).to_pylist()[0]
    most = None if whole else TEXT
    messages = _messages(row["messages"], most) or [
        *_messages(row["prompt"], most),
        {"role": "assistant", **_cut(row["completion"] or "", most)},
    ]
    kept = ("attributes", "prompt_attributes", "complexity", "seconds", "version", "difficulty", "source", "domain")
    kept += ("prompt_length", "clip_low", "clip_high", "past_tries", "past_reward", "expected_std")
    return {
        **{name: row[name] for name in (*NARROW, *kept)},
        "answer": safe_text(row["answer"] or ""),
        "error": None if row["error"] is None else safe_text(row["error"][:TEXT]),
        "reward_parts": _json(row["reward_parts"], {}),
        "contributions": _json(row["contributions"], {}),
        "attributes": _json(row["attributes"], {}),
        "prompt_attributes": _json(row["prompt_attributes"], {}),
        "turns": _json(row["turns"], []),
        "step_rewards": row["step_rewards"] or [],
        "messages": messages,
        "tokens": _tokens(row, texts, first),
    }


def _tokens(row: Mapping[str, Any], texts: TokenTexts, first: int) -> dict[str, Any]:
    """A stretch of the tokens as columns: text, id, sampled or not, log-probs of both sides, advantage."""
    count = len(row["tokens"] or ())
    first = min(max(first, 0), count)
    end = min(first + TOKENS, count)
    mask = list(row["loss_mask"] or [True] * count)
    stretch: dict[str, Any] = {"first": first, "count": count, "ids": (row["tokens"] or [])[first:end]}
    stretch["texts"] = texts.pieces(row["tokens"] or [], first, end)
    stretch["mask"] = mask[first:end]
    for name in PER_TOKEN:
        stretch[name] = None if row[name] is None else list(row[name])[first:end]
    for name in ("token_advantages", "returns", "values"):  # of the sampled tokens alone
        stretch[name] = None if row[name] is None else _spread(mask, row[name])[first:end]
    if stretch["token_advantages"] is None and row["advantage"] is not None:
        stretch["token_advantages"] = [row["advantage"] if sampled else None for sampled in mask[first:end]]
    return stretch


def _spread(mask: Sequence[bool], values: Sequence[float]) -> list[float | None]:
    """Values of the sampled tokens at the places of all tokens."""
    remaining: Iterator[float] = iter(values)
    return [next(remaining, None) if sampled else None for sampled in mask]


def _recorded(run: Path, step: int, columns: Sequence[str] | None, where: pc.Expression) -> pa.Table:
    path = parquet.path_of(run / "rollouts", step)
    if not path.is_file():
        raise RunError(f"no rollouts of step {step} are recorded in {run.name}")
    return read(path, columns, where)


def _messages(text: str | None, most: int | None = TEXT) -> list[dict[str, Any]]:
    """Messages of a JSON column, made safe to show; none where it is absent or damaged."""
    messages = _json(text, [])
    if not isinstance(messages, list):
        return []
    return [_message(message, most) for message in messages if isinstance(message, Mapping)]


def _message(message: Mapping[str, Any], most: int | None) -> dict[str, Any]:
    """A message with its calls of tools, and of a result the tool and its failure."""
    shown = {"role": safe_text(str(message.get("role", "")))[:40], **_cut(str(message.get("content") or ""), most)}
    for name in ("name", "error"):
        if message.get(name):
            shown[name] = safe_text(str(message[name]))[:200]
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
    shown["calls"] = [
        {"name": safe_text(str(call.get("name")))[:200], "arguments": safe_text(_arguments(call))[:most]}
        for call in functions
        if isinstance(call, Mapping)
    ]
    return shown


def _arguments(call: Mapping[str, Any]) -> str:
    arguments = call.get("arguments", "")
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _cut(text: str, most: int | None) -> dict[str, Any]:
    return {"content": safe_text(text if most is None else text[:most]), "characters": len(text)}


def _json(text: str | None, otherwise: Any) -> Any:
    try:
        return otherwise if text is None else json_loads(text)
    except ValueError:
        return otherwise
