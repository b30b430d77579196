"""Command `experience`: filters, aggregates, SQL and export of stored rollouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli.options import JSON, print_json, print_table
from coterie.cli.runs import Root
from coterie.text import conversation, one_line

if TYPE_CHECKING:
    import pyarrow as pa

    from coterie.runs.query import Selection

SHOWN = 20
"""Rows of a table when no limit is given."""
WIDTH = 60
"""Characters of a cell."""
USUAL = (
    *("run", "step", "prompt_id", "sample", "similarity", "reward", "advantage", "outcome", "completion_length"),
    *("past_pass", "expected", "region"),
)
"""Columns shown by default, where they hold anything."""

Runs = Annotated[list[str], typer.Argument(metavar="RUN", help="Names under the runs' folder, or paths.")]


def experience(
    runs: Runs,
    root: Root = Path("runs"),
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Only this prompt id; may be repeated.")] = None,
    region: Annotated[str | None, typer.Option(help="Region name contains this.")] = None,
    outcome: Annotated[list[str] | None, typer.Option(help="ok, truncated, env_error, …; may be repeated.")] = None,
    min_reward: Annotated[float | None, typer.Option(help="Minimum reward.")] = None,
    max_reward: Annotated[float | None, typer.Option(help="Maximum reward.")] = None,
    first: Annotated[int | None, typer.Option("--from", help="First step.")] = None,
    last: Annotated[int | None, typer.Option("--to", help="Last step.")] = None,
    recent: Annotated[int | None, typer.Option(min=1, help="Only each run's last N steps.")] = None,
    similar_to: Annotated[
        str | None, typer.Option(help="Only prompts similar to this prompt id, by embedding.")
    ] = None,
    nearest: Annotated[int, typer.Option(min=1, help="Number of similar prompts, itself included.")] = 10,
    by: Annotated[str | None, typer.Option(help="Aggregate by task, region, prompt or step.")] = None,
    sort: Annotated[str | None, typer.Option(help="Sort by a column; -COLUMN sorts descending.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of rows; a printed table has 20 by default.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns, separated by commas; or all.")] = None,
    sql: Annotated[
        str | None, typer.Option(help="One SELECT over `rollouts` and `prompts` instead of filters.")
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Write to FILE.parquet, .jsonl or .csv.")] = None,
    json_: bool = JSON,
) -> None:
    """Query the stored rollouts of runs.

    Select rollouts with filters or one SQL statement (which needs DuckDB, of the `experience` extra); print them as a
    table or JSON, or export them.
    """
    from coterie.runs.query import Filters, open_runs, select

    filters = Filters(
        tasks=task or (),
        prompts=prompt or (),
        region=region,
        outcomes=outcome or (),
        min_reward=min_reward,
        max_reward=max_reward,
        first=first,
        last=last,
        recent=recent,
        similar_to=similar_to,
        nearest=nearest,
    )
    stored = open_runs(runs, root)
    most = SHOWN if limit is None and not json_ and export is None else limit
    if sql is not None:
        if filters != Filters() or by or sort or columns:
            raise typer.BadParameter("a SELECT filters, sorts and names its columns itself", param_hint="--sql")
        table = _answer(stored, sql)
    elif by is not None:
        if columns:
            raise typer.BadParameter("a summary has columns of its own", param_hint="--columns")
        table = _summary(select(stored, filters), by, sort)
    else:
        _list(select(stored, filters), columns, sort, most, export, json_)
        return
    _show(table, len(table), most, export, json_)


def _list(
    selection: Selection, columns: str | None, sort: str | None, most: int | None, file: Path | None, json_: bool
) -> None:
    """Print or export single rollouts; a whole unsorted selection is streamed to its file."""
    names = _columns(selection, columns, whole=file is not None)
    if file is not None and sort is None and most is None:
        _stream(selection, names, file)
        return
    table = selection.table(names, sort=sort, limit=most)
    count = len(table) if file is not None or most is None or len(table) < most else selection.count()
    _show(table, count, most, file, json_)


def _summary(selection: Selection, by: str, sort: str | None) -> pa.Table:
    from coterie.runs.query import summarise

    return summarise(selection, by, sort=sort)


def _answer(stored: Any, sql: str) -> pa.Table:
    from coterie.runs.query import query

    return query(stored, sql)


def _columns(selection: Selection, columns: str | None, *, whole: bool) -> list[str]:
    """Names of the columns to show; by default all for a file, else the usual ones."""
    available = selection.names()
    if columns == "all" or (columns is None and whole):
        return available
    if columns is not None:
        return list(dict.fromkeys(name.strip() for name in columns.split(",") if name.strip()))
    several = len(selection.store.folders) > 1
    return [name for name in USUAL if name in available and (several or name != "run")]


def _stream(selection: Selection, names: list[str], file: Path) -> None:
    from coterie.runs.export import export

    count = export(file, selection.schema(names), selection.batches(names))
    typer.echo(f"{count} rows in {one_line(str(file), 200)}")


def _show(table: pa.Table, count: int, most: int | None, file: Path | None, json_: bool) -> None:
    """Print a table as lines or JSON, or export it; `count` is the number of rows before the limit."""
    from coterie.runs.export import export, jsonable

    table = table if most is None else table.slice(0, most)
    if file is not None:
        rows = export(file, table.schema, table.to_batches())
        typer.echo(f"{rows} rows in {one_line(str(file), 200)}")
        return
    rows = jsonable(table.to_pylist())
    if json_:
        print_json(rows)
    elif not rows:
        typer.echo("no rollouts match")
    else:
        print_table([{one_line(name, WIDTH): _cell(name, value) for name, value in row.items()} for row in rows])
        if count > len(rows):
            typer.echo(f"… {count - len(rows)} more; --limit N shows more of them, --export FILE keeps all")


def _cell(name: str, value: Any) -> Any:
    """One value, shortened for a table; messages of an episode as a conversation."""
    if isinstance(value, float | int) or value is None:
        return value
    if name == "messages":
        return one_line(conversation(json.loads(value), " | "), 4 * WIDTH)
    return one_line(value if isinstance(value, str) else str(value), WIDTH)


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(experience)
