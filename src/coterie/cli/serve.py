"""Command `serve`: a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli.options import JSON, LOADING, print_json
from coterie.errors import ConfigError

if TYPE_CHECKING:
    from coterie.serve.endpoint import Endpoint

KEY = "COTERIE_API_KEY"
"""Of the environment, where a key is not seen by other users of the machine."""


Host = Annotated[str, typer.Option(help="Address to listen on; any other than loopback needs a key.")]
Port = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="The first free one from 8000 on when left out, 0 any.", show_default=False),
]
Name = Annotated[
    str, typer.Option(help="Name by which clients ask for the model; MODEL_OR_RUN when left out.", show_default=False)
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", help=f"Key that clients send; better given as {KEY}.", show_default=False)
]
Length = Annotated[
    int | None,
    typer.Option(
        "--max-model-len",
        min=2,
        help="Most tokens of a prompt and its completion; the model's context, at most 4096, when left out.",
        show_default=False,
    ),
]
Slots = Annotated[int, typer.Option("--max-num-seqs", min=1, help="Sequences decoded at once.")]
Queue = Annotated[int, typer.Option("--max-queue", min=1, help="Completions that wait or are decoded.")]
Kept = Annotated[int, typer.Option("--max-kept-tokens", min=1, help="Tokens kept for prompts that begin alike.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds that a request may take.")]
Format = Annotated[str, typer.Option(help="Number format of the model, as model.dtype of a run.")]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights-folder",
        help="Folder from which a learner (engine.name = http) may replace the weights; needs a key.",
        show_default=False,
    ),
]


def serve(
    target: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN")],
    host: Host = "127.0.0.1",
    port: Port = None,
    name: Name = "",
    api_key: ApiKey = None,
    max_model_len: Length = None,
    max_num_seqs: Slots = 64,
    max_queue: Queue = 1024,
    max_kept_tokens: Kept = 16_384,
    timeout_s: Timeout = 600.0,
    dtype: Format = "auto",
    weights_folder: Weights = None,
    json_: bool = JSON,
) -> None:
    """Serve a model, or the model of a run, to clients of OpenAI's API.

    MODEL_OR_RUN is a run, RUN@STEP, a model folder, an asset or a hub id. The first line that is printed is the base
    address. Ctrl-C ends it, and lets open requests end within ten seconds.
    """
    from coterie import console
    from coterie.runs.models import resolve

    resolve(target, check_files=False)  # a wrong name is reported before torch is loaded
    key = _key(api_key)
    with console.console_callback(sys.stderr) as callback:
        callback.on_progress(LOADING)
        from coterie.serve.endpoint import Endpoint, Limits

        limits = Limits(
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            max_queue=max_queue,
            max_kept_tokens=max_kept_tokens,
            timeout_s=timeout_s,
        )
        where: dict[str, Any] = {"host": host, "port": port, "api_key": key, "weights_folder": weights_folder}
        endpoint = Endpoint(target, name=name, limits=limits, callback=callback, dtype=dtype, **where)
    _announce(endpoint, as_json=json_)
    endpoint.serve()


def _key(given: str | None) -> str | None:
    """The key of the command line, else of the environment; None where neither has one."""
    key = os.environ.get(KEY) if given is None else given
    if key is not None and not key.strip():
        raise ConfigError(f"the API key is empty; give one, or leave --api-key and {KEY} out")
    return key


def _announce(endpoint: Endpoint, *, as_json: bool) -> None:
    """Print where clients find the model, as one record or with its address as the first line."""
    if as_json:
        record = {"address": endpoint.address, "port": endpoint.port, "model": endpoint.name}
        print_json(record | {"max_model_len": endpoint.max_model_len})
    else:
        typer.echo(f"{endpoint.address}\nserves {endpoint.name!r}, {endpoint.max_model_len} tokens; Ctrl-C ends it")
    sys.stdout.flush()


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(serve)
