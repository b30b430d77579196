"""Commands `index build`, `index check`, `index recall` and `index serve`: search indexes for the tool search."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.options import JSON, HintedGroup, print_json
from coterie.text import safe_text

index = typer.Typer(cls=HintedGroup, no_args_is_help=True, rich_markup_mode=None, help="Search indexes for tools.")

Target = Annotated[Path, typer.Argument(metavar="INDEX", help="File of the index, e.g. facts.sqlite.")]
Where = Annotated[str, typer.Argument(metavar="INDEX", help="File of an index, asset with a corpus, or server URL.")]


@index.command()
def build(
    target: Target,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Text, Markdown, JSONL, Parquet, CSV or Arrow files.")
    ],
    backend: Annotated[
        str | None,
        typer.Option(help="Ranking: fts5, bm25s or dense; that of the index, or else fts5, if left out."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column with the passage; text, contents, … if left out.")] = (
        None
    ),
    title_column: Annotated[str | None, typer.Option(help="Column with its title; title or name if left out.")] = None,
    key_column: Annotated[str | None, typer.Option(help="Column with its key; id if left out.")] = None,
    json_: bool = JSON,
) -> None:
    """Add files to a search index, which is made if need be.

    Unchanged files are left alone, changed ones replace their former passages, and an interrupted build goes on where
    it was. For example: coterie index build wiki.sqlite passages.jsonl
    """
    from coterie import console
    from coterie.search.builder import Columns
    from coterie.search.builder import build as add

    with console.console_callback(sys.stderr) as callback:
        built = add(
            target,
            files,
            backend=backend,
            columns=Columns(text=text_column, title=title_column, key=key_column),
            progress=lambda name, count: callback.on_progress(f"indexing {name}", count, 0, "passages"),
        )
    if json_:
        print_json(built)
        return
    typer.echo(f"{built.added} passages added, {built.unchanged} files unchanged, {built.passages} passages in all")


@index.command()
def check(target: Target) -> None:
    """Verify that an index is whole: every row against its digest."""
    from coterie.search.index import Index

    opened = Index(target, verify=True)
    typer.echo(f"{safe_text(str(target))} is whole: {len(opened)} passages")


@index.command()
def recall(
    target: Where,
    questions: Annotated[Path, typer.Argument(metavar="FILE", help="Rows with question and answer.")],
    ks: Annotated[str, typer.Option("--k", help="Numbers of passages, separated by commas.")] = "1,2,5,10",
    json_: bool = JSON,
) -> None:
    """Report recall@k: the share of questions of which one of the first k passages holds the answer.

    The question as it stands is the query. For example: coterie index recall wiki.sqlite questions.jsonl --k 1,5
    """
    from coterie.data.files import read_file
    from coterie.errors import ConfigError, DataError
    from coterie.search.words import recall as measured
    from coterie.tools.registry import searcher_for

    parts = ks.replace(" ", "").split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--k = {ks!r}; expected numbers above 0 separated by commas, e.g. 1,5")
    pairs = []
    for row in read_file(questions):
        data = row.data or {}
        if not isinstance(data.get("question"), str) or data.get("answer") is None:
            raise DataError(f"row {row.number} of {questions} has no question and answer; name the columns so")
        pairs.append((data["question"], str(data["answer"])))
    shares = measured(searcher_for(target), pairs, [int(part) for part in parts])
    if json_:
        print_json({"questions": len(pairs), "recall": {str(k): share for k, share in shares.items()}})
        return
    for k, share in shares.items():
        typer.echo(f"recall@{k} {100 * share:.1f} % of {len(pairs)} questions")


@index.command()
def serve(
    target: Where,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 = a free one.")] = 8000,
) -> None:
    """Serve an index over HTTP as Search-R1's retrieval server: POST /retrieve.

    Anybody who reaches the address can read the corpus. For example: coterie index serve geonames-facts --port 8000
    """
    from coterie.search.retrieval import server_for
    from coterie.tools.registry import searcher_for

    with server_for(searcher_for(target), host, port) as server:
        typer.echo(f"POST http://{host}:{server.server_address[1]}/retrieve; Ctrl-C ends it")
        sys.stdout.flush()
        server.serve_forever()


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(index, name="index")
