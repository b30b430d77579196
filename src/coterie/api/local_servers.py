"""serve and board for scripts and notebooks: servers that answer from threads of this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.api.run import Run
from coterie.api.verbs import callbacks_of, scratch, target_of

if TYPE_CHECKING:
    from coterie.board.server import Board
    from coterie.serve.endpoint import Endpoint


def board(
    runs: Run | str | Path = "runs", *, port: int | None = None, open_browser: bool = False, trying: bool = False
) -> Board:
    """Show runs in a browser, also while they train: a page on loopback, served from a thread of this process.

    Args:
        runs: folder of runs, or one run.
        port: None takes the first free one from 8642 on.
        open_browser: open the page.
        trying: add a page that samples from checkpoints.

    Returns:
        The board; `address` is what to open, `stop()` ends it, and it ends with the process. In a `with` statement it
        ends with the block.

    Raises:
        ConfigError: the packages of the extra `board` are not installed.
        RunError: there is no such folder, or the port is taken.
    """
    from coterie.board.server import Board

    served = Board(runs.path if isinstance(runs, Run) else Path(runs), port, trying=trying).start()
    if open_browser:
        served.open()
    return served


def serve(
    model: Any,
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    api_key: str | None = None,
    name: str = "",
    tokenizer: Any = None,
    dtype: str = "auto",
    weights_folder: str | Path | None = None,
    quiet: bool = False,
    **limits: Any,
) -> Endpoint:
    """Serve a model to clients of OpenAI's API, from threads of this process.

    Args:
        model: as for `evaluate`.
        port: None takes the first free one from 8000 on, 0 any free one.
        host: address to listen on; any other than loopback needs a key.
        api_key: that clients must send.
        name: by which clients ask for the model; the run's, or the model's, when left out.
        tokenizer: of a loaded model.
        dtype: number format, as `model.dtype`.
        weights_folder: from which a learner (`engine.name = "http"`) may replace the weights; needs a key.
        quiet: print nothing.
        limits: `max_num_seqs`, `max_model_len`, `max_queue`, `max_kept_tokens`, `max_body`, `timeout_s` and `grace_s`,
            as `coterie.serve.endpoint.Limits` explains them.

    Returns:
        The endpoint; `address` is the clients' base address, `stop()` ends it, and it ends with the process. In a
        `with` statement it ends with the block.

    Raises:
        ConfigError: the packages of the extra `serve` are not installed, or a limit is wrong.
        RunError: there is no such run, or the port is taken.
    """
    label = name or (model.path.name if isinstance(model, Run) else "" if isinstance(model, str | Path) else "model")
    target, _ = target_of(model, None)
    with scratch() as place, callbacks_of(None, quiet) as callbacks:
        from coterie.api.inputs import model_of

        source = model_of(target, tokenizer, place)
        from coterie.serve.endpoint import Endpoint, Limits

        try:
            accepted = Limits(**limits)
        except TypeError:
            names = ", ".join(Limits.__slots__)
            raise TypeError(f"coterie.serve() got {', '.join(limits)}; its limits are {names}") from None
        return Endpoint(
            source,
            port=port,
            host=host,
            api_key=api_key,
            name=label,
            limits=accepted,
            callback=callbacks,
            dtype=dtype,
            weights_folder=None if weights_folder is None else Path(weights_folder),
        ).start()
