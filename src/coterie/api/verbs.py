"""train, resume, evaluate and sample for scripts and notebooks.

Objects become settings and files, then the same functions run as for the command line. Nothing here imports torch
before one of them is called.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.api.run import Run, load_run
from coterie.callbacks import Callback, CallbackList
from coterie.types import EvalResult

if TYPE_CHECKING:
    from coterie.config.schema import RunConfig

_OF_TRL = {
    "reward_funcs": "reward",
    "train_dataset": "data",
    "eval_dataset": "heldout",
    "processing_class": "tokenizer",
    "callbacks": "callback",
    "args": "settings by name, e.g. steps=100, optim={'lr': 1e-5}",
    "peft_config": "settings={'model.lora.rank': 16}",
}
"""Arguments of TRL's GRPOTrainer → their names here."""


def train(
    model: Any = None,
    data: Any = None,
    reward: Any = None,
    *,
    heldout: Any = None,
    reward_weights: Sequence[float] | None = None,
    tokenizer: Any = None,
    name: str | None = None,
    runs: str | Path | None = None,
    config: str | Path | RunConfig | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Run:
    """Train a model with GRPO in a new run folder.

    Args:
        model: an asset (`smollm2-135m` when left out), a folder, a run, a hub id, or a loaded transformers model.
        data: training prompts: a list of dicts, a pandas or Arrow table, a Hugging Face Dataset, a path, an asset's
            name, or a source as in a TOML file.
        reward: a function with TRL's signature, a built-in reward's name, `module:function`, a table as in
            `rewards.functions`, or a list of these.
        heldout: held-out prompts, given as `data` is.
        reward_weights: one for each reward.
        tokenizer: of a loaded model.
        name: of the run; a numbered one when left out.
        runs: folder of the runs; `runs` when left out.
        config: settings to start from: a TOML file or a `RunConfig`.
        callback: one `Callback` or several, called during the run.
        quiet: print nothing.
        settings: by dotted key, e.g. `{"optim.lr": 1e-5, "model.lora.rank": 16}`.
        sections: settings by name, e.g. `steps=100, optim={"lr": 1e-5}`.

    Raises:
        ConfigError: a setting is unknown or refused.
        CoterieError: see its subclasses; what was recorded until then stays and can be resumed.
    """
    tables = tables_of(sections, name, runs)
    with callbacks_of(callback, quiet) as callbacks:
        place = runs_folder(config, tables, settings)
        loaded = settings_of(
            "train", config, tables, settings, place, model=model, tokenizer=tokenizer, data=data, heldout=heldout,
            reward=reward, weights=reward_weights,
        )  # fmt: skip
        from coterie import launch

        return Run(launch.train(loaded, callbacks))


def resume(
    run: Run | str | Path,
    reward: Any = None,
    *,
    steps: int | None = None,
    fresh: bool = False,
    accept_reward_change: bool = False,
    runs: str | Path = "runs",
    callback: Callback | Sequence[Callback] | None = None,
    quiet: bool = False,
) -> Run:
    """Continue a run from its newest checkpoint, bit for bit as if it had never been interrupted.

    Args:
        run: a run, its folder or its name.
        reward: what the run was started with. Needed in another session, where the functions are of no module.
        steps: a new number of steps, to lengthen the run.
        fresh: set the checkpoints aside and start over.
        accept_reward_change: go on although a reward function's module was edited; evaluations before and after are
            not compared.
        runs: the folder in which a name is looked for.
        callback: one `Callback` or several, called during the run.
        quiet: print nothing.

    Raises:
        RunError: there is no such run, another process uses it, or `reward` is another function than it was started
            with.
        CheckpointError: no checkpoint verifies, or a reward function's module was edited since.
    """
    opened = run if isinstance(run, Run) else load_run(run, runs)
    if reward is not None:
        from coterie.api.functions import register_again

        register_again(reward, [part.name for part in opened.config.rewards.functions])
    with callbacks_of(callback, quiet) as callbacks:
        from coterie.stages import rejection

        resumed = rejection.resume(
            opened.path, callbacks, fresh=fresh, steps=steps, accept_reward_change=accept_reward_change
        )
        return Run(resumed)


def evaluate(
    model: Any,
    data: Any = None,
    reward: Any = None,
    *,
    reward_weights: Sequence[float] | None = None,
    tokenizer: Any = None,
    config: str | Path | RunConfig | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **sections: Any,
) -> list[EvalResult]:
    """Evaluate a run or model on held-out prompts.

    Args:
        model: a run, its folder or name (`NAME@STEP` for one of its checkpoints), or a model as for `train`.
        data: the prompts, as for `train`; None takes the held-out ones of the run or of `config`.
        reward: as for `train`; None takes that of the run or of `config`.
        config: settings to start from; a run's own when left out.

    The other arguments are those of `train`. Nothing is stored.

    Returns:
        One result for each task, then `all` where there are several; with 95 % intervals over prompts.

    Raises:
        DataError: there are no held-out prompts.
    """
    target, base = target_of(model, config)
    with scratch() as place, callbacks_of(callback, quiet) as callbacks:
        if data is not None:  # what is asked for is measured, also where a run was trained on it
            settings = {"data.train": [], "data.rehearsal": 0.0, **(settings or {})}
        loaded = settings_of(
            "evaluate", base, sections, settings, place, model=target, tokenizer=tokenizer, heldout=data,
            reward=reward, weights=reward_weights,
        )  # fmt: skip
        from coterie import launch

        return launch.evaluate(loaded.model.name, loaded, callbacks)


def sample(
    model: Any,
    prompts: Sequence[str | Sequence[Mapping[str, str]]],
    *,
    n: int = 1,
    temperature: float = 0.7,
    max_tokens: int = 128,
    system: str | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    quiet: bool = False,
) -> list[list[str]]:
    """Completions of a run's or model's policy.

    Args:
        model: as for `evaluate`.
        prompts: a text each, or a list of messages, `[{"role": "user", "content": …}]`.
        n: completions of each prompt.
        temperature: 0 is greedy decoding.
        max_tokens: limit of one completion.
        system: put before every prompt that is a text; None takes the one a run was trained with, if any.
        seed: of the random draws.

    Returns:
        n texts for each prompt, in order.

    Raises:
        DataError: a prompt is neither text nor messages.
        EngineError: a prompt does not fit the model's context.
    """
    target, _ = target_of(model, None)
    with scratch() as place, callbacks_of(None, quiet) as callbacks:
        from coterie.api.inputs import model_of
        from coterie.inference.conversation import complete

        name = model_of(target, tokenizer, place)
        return complete(
            name,
            prompts,
            samples=n,
            temperature=temperature,
            max_tokens=max_tokens,
            system=system,
            seed=seed,
            callback=callbacks,
        )


@contextmanager
def callbacks_of(callback: Callback | Sequence[Callback] | None, quiet: bool) -> Generator[Callback]:
    """The callbacks of one call, after the console's unless `quiet`."""
    callbacks = [callback] if isinstance(callback, Callback) else list(callback or ())
    for given in callbacks:
        if not isinstance(given, Callback):
            raise TypeError(f"callback = {given!r}; expected an object of a subclass of coterie.Callback, or a list")
    if quiet:
        yield CallbackList(callbacks)
        return
    from coterie.console import console_callback

    with console_callback() as console:
        console.on_progress("loading PyTorch and transformers")
        yield CallbackList([console, *callbacks])


@contextmanager
def scratch() -> Generator[Path]:
    """Temporary folder for inputs that are not stored."""
    with tempfile.TemporaryDirectory(prefix="coterie-") as folder:
        yield Path(folder)


def target_of(model: Any, config: str | Path | RunConfig | None) -> tuple[Any, str | Path | RunConfig | None]:
    """The model, and the settings to start from: `config`, or those of the run that the model names."""
    if isinstance(model, Run):
        return str(model.path), config or model.path / "config.toml"
    if isinstance(model, str | Path):
        from coterie.runs.models import resolve

        run = resolve(str(model)).run
        return str(model), config or (None if run is None else run / "config.toml")
    return model, config


def runs_folder(
    config: str | Path | RunConfig | None, tables: Mapping[str, Any], settings: Mapping[str, Any] | None
) -> Path:
    """Folder of the runs, for the files that the settings name."""
    from coterie.config.load import file_of, read_toml
    from coterie.config.paths import located
    from coterie.config.schema import RunConfig

    given = (settings or {}).get("runs", tables.get("runs", os.environ.get("COTERIE_RUNS")))
    if given is not None or config is None:
        return Path(given or "runs").expanduser().absolute()
    if isinstance(config, RunConfig):
        given = config.runs
    else:
        file = file_of(Path(config).expanduser())
        runs = read_toml(file).get("runs")
        given = located(runs, file.absolute().parent) if isinstance(runs, str) else None
    return Path(given or "runs").expanduser().absolute()


def tables_of(sections: Mapping[str, Any], name: str | None, runs: str | Path | None) -> dict[str, Any]:
    """The sections of a call, with the run's name and folder where they are given."""
    return {**sections} | {key: value for key, value in (("name", name), ("runs", runs)) if value is not None}


def settings_of(
    verb: str,
    config: str | Path | RunConfig | None,
    sections: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    place: Path,
    *,
    model: Any = None,
    tokenizer: Any = None,
    data: Any = None,
    heldout: Any = None,
    reward: Any = None,
    weights: Sequence[float] | None = None,
) -> RunConfig:
    """The settings of a call.

    Args:
        place: folder for what was given in memory.
    """
    from coterie.api.functions import parts_of
    from coterie.api.inputs import model_of, source_of
    from coterie.config.load import load_with
    from coterie.errors import ConfigError

    for section in ("model", "data"):
        if section in (settings or {}):
            raise ConfigError(f"settings names {section!r}; give {section}= or dotted keys such as '{section}.…'")
    for name in sections:
        if name in _OF_TRL:
            raise ConfigError(f"coterie.{verb}() has no argument {name!r}: here it is {_OF_TRL[name]}")
    dotted = {key: _plain(value, key) for key, value in (settings or {}).items()}
    tables = {key: _plain(value, key) for key, value in sections.items()}
    folders: list[str] = []
    if isinstance(model, Run):
        model = str(model.path)
    if model is not None or tokenizer is not None:
        dotted["model.name"] = model_of(model, tokenizer, place)
    for key, rows, task in (("data.train", data, "train"), ("data.heldout", heldout, "heldout")):
        if rows is not None:
            dotted[key] = [source_of(rows, place, task)]
    if reward is not None:
        dotted["rewards.functions"], folders = parts_of(reward, weights)
    elif weights is not None:
        raise ConfigError("reward_weights needs reward=")
    base = Path(config).expanduser() if isinstance(config, str) else config
    return load_with(base, tables, dotted, source=f"coterie.{verb}()", folders=folders).config


def _plain(value: Any, key: str) -> Any:
    """A setting as plain data: tables, lists, text, numbers."""
    from coterie.api.inputs import plain
    from coterie.errors import ConfigError

    try:
        return plain(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key} = {value!r} (from Python): {error}") from error
