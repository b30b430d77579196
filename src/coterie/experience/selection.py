"""Which rollouts are wanted, in which order, with which columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from coterie.errors import RunError
from coterie.experience.similar import Similar, nearest
from coterie.experience.stored import Stored, readable
from coterie.types import Outcome

SIMILARITY = "similarity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """None or nothing of a kind lets everything through."""

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
        """The part that lets in whole groups."""
        found = pc.scalar(True)
        if self.tasks:
            found &= ds.field("task").isin(list(self.tasks))
        if self.prompts:
            found &= ds.field("prompt_id").isin(list(self.prompts))
        if self.region is not None:
            inside = pc.match_substring  # ty: ignore[missing-attribute]  # made when pyarrow is imported
            found &= inside(ds.field("region"), self.region, ignore_case=True)
        return found

    def of_rollouts(self) -> pc.Expression:
        """The part that chooses among a group's members."""
        unknown = sorted(set(self.outcomes) - set(Outcome))
        if unknown:
            raise RunError(f"{unknown[0]!r} is no outcome of a rollout; there are {', '.join(Outcome)}")
        found = pc.scalar(True)
        if self.outcomes:
            found &= ds.field("outcome").isin(list(self.outcomes))
        if self.min_reward is not None:
            found &= ds.field("reward") >= self.min_reward
        if self.max_reward is not None:
            found &= ds.field("reward") <= self.max_reward
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Rollouts that the filters let through.

    Raises (every method):
        RunError: a column or prompt is unknown, or a file is damaged.
    """

    stored: Stored
    filters: Filters
    similar: Similar | None
    """What is near the prompt that `filters.similar_to` names."""

    def count(self) -> int:
        """How many there are."""
        with readable():
            return self._dataset().count_rows(filter=self._where())

    def table(
        self, columns: Sequence[str], *, sort: str | None = None, limit: int | None = None, groups: bool = False
    ) -> pa.Table:
        """These columns, in the order stored.

        Args:
            sort: a column; with a minus before it, descending. Similar prompts come nearest first when None.
            limit: no more than that many rows.
            groups: leave out the part of the filters that chooses among a group's members.
        """
        order = "-" + SIMILARITY if sort is None and self.similar is not None else sort
        own = [name for name in columns if name != SIMILARITY]
        known = self.names()
        key = None if order is None else order.removeprefix("-")
        needed = dict.fromkeys([*own, *(() if key in (None, SIMILARITY) else (key,))])
        if self.similar is not None:
            needed |= dict.fromkeys(("run", "prompt_id"))
        _check([*columns, *needed], known)
        where = self.filters.of_prompts() if groups else self._where()
        with readable():
            scanner = self._dataset().scanner(columns=list(needed), filter=self._narrow(where))
            whole = order is None and limit is not None and self.similar is None
            table = scanner.head(limit) if whole else scanner.to_table()
            table = table if self.similar is None else self.similar.mark(table, SIMILARITY)
            table = table if order is None else sort_by(table, order)
            return (table if limit is None else table.slice(0, limit)).select(list(columns))

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The same a piece at a time, in the order stored: for what is larger than the memory."""
        if self.similar is not None:
            yield from self.table(columns).to_batches()
            return
        _check(columns, self.names())
        with readable():
            yield from self._dataset().scanner(columns=list(columns), filter=self._where()).to_batches()

    def schema(self, columns: Sequence[str]) -> pa.Schema:
        """Types of these columns."""
        _check(columns, self.names())
        own = self.stored.schema
        marked = pa.field(SIMILARITY, pa.float64())
        return pa.schema([marked if name == SIMILARITY else own.field(name) for name in columns])

    def names(self) -> list[str]:
        """Columns that can be asked for."""
        return [*self.stored.schema.names, *([] if self.similar is None else [SIMILARITY])]

    def _dataset(self) -> ds.Dataset:
        filters = self.filters
        return self.stored.rollouts(filters.first, filters.last, filters.recent)

    def _where(self) -> pc.Expression:
        return self._narrow(self.filters.of_prompts() & self.filters.of_rollouts())

    def _narrow(self, where: pc.Expression) -> pc.Expression:
        return where if self.similar is None else where & self.similar.where()


def select(stored: Stored, filters: Filters) -> Selection:
    """What the filters let through.

    Raises:
        RunError: `similar_to` names a prompt that was never stored, or an outcome is none.
    """
    filters = replace(filters, tasks=tuple(filters.tasks), prompts=tuple(filters.prompts))
    filters.of_rollouts()
    similar = None
    if filters.similar_to is not None:
        similar = nearest(stored.prompts, filters.similar_to, filters.nearest)
    return Selection(stored=stored, filters=filters, similar=similar)


def sort_by(table: pa.Table, order: str) -> pa.Table:
    """By a column, rows without a value last; rows that are equal keep their order.

    Raises:
        RunError: there is no such column, or its values have no order.
    """
    name = order.removeprefix("-")
    _check([name], table.column_names)
    kind = table.schema.field(name).type
    if pa.types.is_nested(kind):
        raise RunError(f"rows cannot be sorted by {name}, which holds {kind}; sort by a number or a text")
    return table.sort_by([(name, "descending" if order.startswith("-") else "ascending")])


def _check(columns: Sequence[str], known: Sequence[str]) -> None:
    for name in columns:
        if name not in known:
            near = get_close_matches(name, known, n=3) or known
            raise RunError(f"there is no column {name!r}; there are {', '.join(near)}")
