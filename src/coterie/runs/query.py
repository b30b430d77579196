"""Queries over stored rollouts: filters, nearest prompts, summaries, and SQL.

The rollouts of some runs are one table that is read only as far as a query needs it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import fs

from coterie.errors import RunError, install_command
from coterie.runs import parquet, prompts, rows
from coterie.runs.directory import RunDirectory
from coterie.types import Outcome

RUN = pa.field("run", pa.string())


@dataclass(frozen=True, eq=False)
class RolloutStore:
    """The stored rollouts and prompts of some runs."""

    folders: dict[str, Path]
    """Name → folder."""

    @property
    def schema(self) -> pa.Schema:
        """`run`, then the columns of the rollout files, whatever format the files have."""
        return pa.schema([RUN, *rows.schema()])

    def rollouts(self, first: int | None = None, last: int | None = None, recent: int | None = None) -> ds.Dataset:
        """Rollouts of the training steps from `first` to `last`, or of each run's last `recent` steps of those."""
        fragments = []
        form = ds.ParquetFileFormat(default_fragment_scan_options=_checked())
        for name, folder in self.folders.items():
            steps = [step for step in parquet.steps(folder / "rollouts") if _inside(step, first, last)]
            for step in steps if recent is None else steps[len(steps) - min(recent, len(steps)) :]:
                file = str(parquet.path_of(folder / "rollouts", step))
                partition = ds.field("run") == name
                fragments.append(
                    form.make_fragment(file, filesystem=fs.LocalFileSystem(), partition_expression=partition)
                )
        if not fragments:
            return ds.dataset(self.schema.empty_table())
        return ds.FileSystemDataset(fragments, self.schema, form, fs.LocalFileSystem())

    @cached_property
    def prompts(self) -> pa.Table:
        """`run`, then the columns of the prompt files; no rows from runs of an older coterie."""
        parts = []
        for name, folder in self.folders.items():
            table = prompts.read(folder / "prompts")
            parts.append(table.add_column(0, RUN, pa.array([name] * len(table), pa.string())))
        return pa.concat_tables(parts)


def open_runs(runs: Sequence[str | Path], root: Path = Path("runs")) -> RolloutStore:
    """The runs of these names or paths; also while they train."""
    paths = [RunDirectory.at(run, root).path for run in runs]
    names = [path.resolve().name for path in paths]
    alike = len(set(names)) < len(names)
    return RolloutStore({str(path) if alike else name: path for name, path in zip(names, paths, strict=True)})


@contextmanager
def readable() -> Generator[None]:
    """Context that turns pyarrow's errors on a bad file, or on columns that cannot be compared, into a RunError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise RunError(
            f"the stored rollouts cannot be read: {error}. A damaged file can be restored from a copy or deleted; the "
            "other steps do not depend on it"
        ) from error


def _checked() -> ds.ParquetFragmentScanOptions:
    return ds.ParquetFragmentScanOptions(page_checksum_verification=True)


def _inside(step: int, first: int | None, last: int | None) -> bool:
    return (first is None or step >= first) and (last is None or step <= last)


LOCKDOWN = (
    "SET enable_external_access = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET python_enable_replacements = false",
    "SET lock_configuration = true",
)
"""Executed once the views exist: after it no statement can open a file, a socket or an extension, or undo this."""


def query(store: RolloutStore, sql: str) -> pa.Table:
    """The result of one SELECT over the views `rollouts` and `prompts`, which DuckDB reads through pyarrow."""
    try:
        import duckdb
    except ImportError as error:
        raise RunError(
            f"--sql needs DuckDB, which is not installed ({error}): {install_command('experience')}; the filters, --by "
            "and --export work without it"
        ) from error
    with duckdb.connect(":memory:") as connection:
        connection.register("rollouts", store.rollouts())
        connection.register("prompts", store.prompts)
        try:
            for statement in LOCKDOWN:
                connection.execute(statement)
            statements = connection.extract_statements(sql)
            kinds = [statement.type for statement in statements]
            if kinds != [duckdb.StatementType.SELECT]:
                kind_names = ", ".join(kind.name for kind in kinds) or "nothing"
                raise RunError(f"--sql takes one SELECT over `rollouts` and `prompts`; this is {kind_names}")
            return connection.sql(sql).to_arrow_table()
        except (duckdb.Error, pa.ArrowException, OSError, UnicodeError) as error:
            raise RunError(f"DuckDB refuses the query: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Similar:
    """The nearest prompts of a prompt, by the stored embeddings."""

    cosines: Mapping[tuple[str, str], float]
    """(run, prompt id) → cosine, 1 for the prompt itself."""

    def where(self) -> pc.Expression:
        """Filter for their rollouts, and perhaps others of the same ids in another run, which `mark` drops."""
        return ds.field("prompt_id").isin(sorted({name for _, name in self.cosines}))

    def mark(self, table: pa.Table, column: str) -> pa.Table:
        """The rows of these prompts, with their similarity in a new column."""
        keys = zip(table["run"].to_pylist(), table["prompt_id"].to_pylist(), strict=True)
        marks = pa.array([self.cosines.get(key) for key in keys], pa.float64())
        return table.append_column(column, marks).filter(ds.field(column).is_valid())


def nearest(prompts: pa.Table, name: str, count: int) -> Similar:
    """The `count` prompts nearest to `name` in each run that has it, by cosine.

    Only embeddings of the same kind are compared. A policy's are centred first: all its hidden states share a large
    common part, beside which what tells prompts apart is small.

    Args:
        prompts: `RolloutStore.prompts`.
    """
    ids = prompts["prompt_id"].to_pylist()
    if name not in ids:
        near = get_close_matches(name, dict.fromkeys(ids), n=3) or list(dict.fromkeys(ids))[:3]
        there = f"the nearest names are {', '.join(near)}" if near else "these runs stored no prompts at all"
        raise RunError(f"no prompt {name!r} was stored with an embedding; {there}")
    cosines: dict[tuple[str, str], float] = {}
    for run in dict.fromkeys(prompts["run"].to_pylist()):
        run_prompts = prompts.filter(ds.field("run") == run)
        target = run_prompts.filter(ds.field("prompt_id") == name)
        if len(target):
            cosines |= {(run, other): value for other, value in _in_run(run_prompts, target, count)}
    return Similar(cosines)


def _in_run(run_prompts: pa.Table, target: pa.Table, count: int) -> list[tuple[str, float]]:
    kind, width = target["embedding_kind"][0].as_py(), len(target["embedding"][0])
    run_prompts = run_prompts.filter(ds.field("embedding_kind") == kind)
    pairs = zip(
        run_prompts["prompt_id"].to_pylist(),
        (embedding.values.to_numpy() for embedding in run_prompts["embedding"]),
        strict=True,
    )
    same = {other: vector for other, vector in pairs if vector.size == width}
    names, vectors = list(same), np.stack(list(same.values())).astype(np.float64)
    if kind == "policy":
        vectors -= vectors.mean(axis=0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    at = names.index(target["prompt_id"][0].as_py())
    cosines = vectors @ vectors[at]
    cosines[at] = np.inf  # first, whatever rounding says
    best = np.argsort(-cosines, kind="stable")[: max(count, 1)]
    return [(names[k], min(float(cosines[k]), 1.0)) for k in best]


SIMILARITY = "similarity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Filters of rollouts; a field that is None or empty lets everything through."""

    tasks: Sequence[str] = ()
    prompts: Sequence[str] = ()
    region: str | None = None
    """Text that the region's words contain, in any case."""
    outcomes: Sequence[str] = ()
    min_reward: float | None = None
    max_reward: float | None = None
    first: int | None = None
    """Training step."""
    last: int | None = None
    recent: int | None = None
    """Each run's last steps."""
    similar_to: str | None = None
    """Prompt id."""
    nearest: int = 10
    """Prompts that count as similar, itself included."""

    def of_prompts(self) -> pc.Expression:
        """The filter on whole groups."""
        expression = pc.scalar(True)
        if self.tasks:
            expression &= ds.field("task").isin(list(self.tasks))
        if self.prompts:
            expression &= ds.field("prompt_id").isin(list(self.prompts))
        if self.region is not None:
            inside = pc.match_substring  # ty: ignore[missing-attribute]  # made when pyarrow is imported
            expression &= inside(ds.field("region"), self.region, ignore_case=True)
        return expression

    def of_rollouts(self) -> pc.Expression:
        """The filter on members of a group."""
        unknown = sorted(set(self.outcomes) - set(Outcome))
        if unknown:
            raise RunError(f"{unknown[0]!r} is no outcome of a rollout; there are {', '.join(Outcome)}")
        expression = pc.scalar(True)
        if self.outcomes:
            expression &= ds.field("outcome").isin(list(self.outcomes))
        if self.min_reward is not None:
            expression &= ds.field("reward") >= self.min_reward
        if self.max_reward is not None:
            expression &= ds.field("reward") <= self.max_reward
        return expression


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Rollouts that the filters let through.

    Raises (every method):
        RunError: a column or prompt is unknown, or a file is damaged.
    """

    store: RolloutStore
    filters: Filters
    similar: Similar | None
    """The prompts nearest to `filters.similar_to`."""

    def count(self) -> int:
        """Number of rollouts."""
        with readable():
            return self._dataset().count_rows(filter=self._where())

    def table(
        self, columns: Sequence[str], *, sort: str | None = None, limit: int | None = None, groups: bool = False
    ) -> pa.Table:
        """These columns, in the order stored.

        Args:
            sort: a column; with a minus before it, descending. Similar prompts come nearest first when None.
            limit: no more than that many rows.
            groups: leave out the filter on members of a group.
        """
        order = "-" + SIMILARITY if sort is None and self.similar is not None else sort
        stored_columns = [name for name in columns if name != SIMILARITY]
        available = self.names()
        key = None if order is None else order.removeprefix("-")
        needed = dict.fromkeys([*stored_columns, *(() if key in (None, SIMILARITY) else (key,))])
        if self.similar is not None:
            needed |= dict.fromkeys(("run", "prompt_id"))
        _check([*columns, *needed], available)
        where = self.filters.of_prompts() if groups else self._where()
        with readable():
            scanner = self._dataset().scanner(columns=list(needed), filter=self._narrow(where))
            whole = order is None and limit is not None and self.similar is None
            table = scanner.head(limit) if whole else scanner.to_table()
            table = table if self.similar is None else self.similar.mark(table, SIMILARITY)
            table = table if order is None else sort_by(table, order)
            return (table if limit is None else table.slice(0, limit)).select(list(columns))

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """These columns as record batches, in the order stored: for tables larger than the memory."""
        if self.similar is not None:
            yield from self.table(columns).to_batches()
            return
        _check(columns, self.names())
        with readable():
            yield from self._dataset().scanner(columns=list(columns), filter=self._where()).to_batches()

    def schema(self, columns: Sequence[str]) -> pa.Schema:
        """Types of these columns."""
        _check(columns, self.names())
        stored_schema = self.store.schema
        marked = pa.field(SIMILARITY, pa.float64())
        return pa.schema([marked if name == SIMILARITY else stored_schema.field(name) for name in columns])

    def names(self) -> list[str]:
        """Names of the available columns."""
        return [*self.store.schema.names, *([] if self.similar is None else [SIMILARITY])]

    def _dataset(self) -> ds.Dataset:
        filters = self.filters
        return self.store.rollouts(filters.first, filters.last, filters.recent)

    def _where(self) -> pc.Expression:
        return self._narrow(self.filters.of_prompts() & self.filters.of_rollouts())

    def _narrow(self, where: pc.Expression) -> pc.Expression:
        return where if self.similar is None else where & self.similar.where()


def select(store: RolloutStore, filters: Filters) -> Selection:
    """The rollouts that the filters let through."""
    filters = replace(filters, tasks=tuple(filters.tasks), prompts=tuple(filters.prompts))
    filters.of_rollouts()
    similar = None
    if filters.similar_to is not None:
        similar = nearest(store.prompts, filters.similar_to, filters.nearest)
    return Selection(store=store, filters=filters, similar=similar)


def sort_by(table: pa.Table, order: str) -> pa.Table:
    """The table sorted by a column, rows without a value last; the sort is stable."""
    name = order.removeprefix("-")
    _check([name], table.column_names)
    kind = table.schema.field(name).type
    if pa.types.is_nested(kind):
        raise RunError(f"rows cannot be sorted by {name}, which holds {kind}; sort by a number or a text")
    return table.sort_by([(name, "descending" if order.startswith("-") else "ascending")])


def _check(columns: Sequence[str], available: Sequence[str]) -> None:
    for name in columns:
        if name not in available:
            near = get_close_matches(name, available, n=3) or available
            raise RunError(f"there is no column {name!r}; there are {', '.join(near)}")


KEYS = {"task": "task", "region": "region", "prompt": "prompt_id", "step": "step"}
"""Values of `--by` → column."""
EQUAL = 1e-8
"""Rewards of a group that differ by less are all the same, as in `Group.zero_variance`."""


def summarise(selection: Selection, by: str, *, sort: str | None = None, limit: int | None = None) -> pa.Table:
    """Summary with one row a key, and a run where there are several.

    Columns: rollouts, mean reward, its standard deviation, share of groups without variance, mean length (tokens), mean
    |advantage|, mean expected reward.

    Groups are the usable rollouts of a prompt in a step, two or more; filters that choose among their members do not
    change what counts as one.
    """
    if by not in KEYS:
        raise RunError(f"rollouts can be summed up by {', '.join(KEYS)}, not by {by!r}")
    key = KEYS[by]
    keys = [*(["run"] if len(selection.store.folders) > 1 else []), key]
    columns = [*dict.fromkeys((*keys, "prompt_id", "reward", "completion_length", "advantage", "expected"))]
    table = selection.table(columns)
    with readable():
        table = table.append_column("size", pc.call_function("abs", [table["advantage"]]))
        summary = table.group_by(keys, use_threads=False).aggregate(
            [
                ([], "count_all"),
                ("prompt_id", "count_distinct"),
                ("reward", "mean"),
                ("reward", "stddev"),
                ("completion_length", "mean"),
                ("size", "mean"),
                ("expected", "mean"),
            ]
        )
        zero_variance = _zero_variance_shares(selection, keys)
        shares = [zero_variance.get(tuple(row.values())) for row in summary.select(keys).to_pylist()]
        summary = summary.append_column("zero", pa.array(shares, pa.float64()))
        renamed = {
            "rollouts": "count_all",
            "prompts": "prompt_id_count_distinct",
            "reward": "reward_mean",
            "spread": "reward_stddev",
            "zero_variance": "zero",
            "length": "completion_length_mean",
            "abs_advantage": "size_mean",
            "expected": "expected_mean",
        }
        summary = pa.table(
            {**{name: summary[name] for name in keys}, **{new: summary[old] for new, old in renamed.items()}}
        )
        summary = sort_by(sort_by(summary, key), keys[0])
    summary = summary if sort is None else sort_by(summary, sort)
    return summary if limit is None else summary.slice(0, limit)


def _zero_variance_shares(selection: Selection, keys: list[str]) -> dict[tuple[object, ...], float | None]:
    """Share of groups without variance, by the keys."""
    columns = list(dict.fromkeys((*keys, "run", "step", "prompt_id", "reward")))
    table = selection.table(columns, groups=True)
    by_group = list(dict.fromkeys((*keys, "run", "step", "prompt_id")))
    groups = table.group_by(by_group, use_threads=False).aggregate(
        [("reward", "min"), ("reward", "max"), ("reward", "count")]
    )
    groups = groups.filter(ds.field("reward_count") >= 2)
    spans = zip(groups["reward_max"].to_pylist(), groups["reward_min"].to_pylist(), strict=True)
    groups = groups.append_column("zero", pa.array([float(high - low < EQUAL) for high, low in spans], pa.float64()))
    shares = groups.group_by(keys, use_threads=False).aggregate([("zero", "mean")])
    return {tuple(row[name] for name in keys): row["zero_mean"] for row in shares.to_pylist()}
