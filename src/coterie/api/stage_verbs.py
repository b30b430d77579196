"""rejection and pipeline for scripts and notebooks: see `coterie.stages`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.api.run import Run
from coterie.api.verbs import callbacks_of, runs_folder, settings_of
from coterie.callbacks import Callback

if TYPE_CHECKING:
    from coterie.config.schema import RunConfig


def rejection(
    model: Any = None,
    data: Any = None,
    reward: Any = None,
    *,
    rollouts: Sequence[Run | str | Path] = (),
    name: str | None = None,
    runs: str | Path | None = None,
    config: str | Path | RunConfig | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Run:
    """Keep the best rollouts as a data set: `run.path / "data.parquet"`, which `coterie.sft` takes as `data`.

    Args:
        model: as for `train`; `collect.group_size` rollouts of each prompt are sampled.
        data: the prompts, as for `train`.
        reward: as for `train`.
        rollouts: runs whose stored rollouts are read instead of sampling.
        sections: settings by name, e.g. `rejection={"per_prompt": 2}`.

    The other arguments are those of `train`.

    Raises:
        DataError: no rollout is kept; the message says why.
        RunError: one of `rollouts` stored none.
    """
    tables = {key: value for key, value in (("name", name), ("runs", runs)) if value is not None} | sections
    dotted = dict(settings or {})
    if rollouts:
        dotted["rejection.rollouts"] = [str(run.path if isinstance(run, Run) else run) for run in rollouts]
    with callbacks_of(callback, quiet) as callbacks:
        place = runs_folder(config, tables, settings)
        loaded = settings_of("rejection", config, tables, dotted, place, model=model, data=data, reward=reward)
        from coterie.stages import rejection as stage

        return Run(stage.rejection(loaded.with_table("rejection"), callbacks))


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineResult:
    """A pipeline that ran."""

    path: Path
    """Its folder, with `README.md` and `report.json`."""
    runs: Mapping[str, Run]
    """Each stage's run, by name."""
    report: Sequence[Mapping[str, Any]]
    """`{"stage", "evaluations": {name: {"value": [mean, low, high], …}}}` of each model, the first before any."""


def pipeline(
    source: str | Path | Mapping[str, Any],
    *,
    until: str | None = None,
    since: str | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    quiet: bool = False,
) -> PipelineResult:
    """Run the stages of a pipeline that are not done, and evaluate after each.

    Args:
        source: a TOML file, or its content as a dict.
        until: last stage to run.
        since: this stage and all after it are run again.
        callback: one `Callback` or several, called during each stage.
        quiet: print nothing.

    Raises:
        ConfigError: the pipeline names what does not exist or comes later.
        RunError: a stage's folder was edited.
        CoterieError: a stage failed; those before it stay.
    """
    import json

    given = dict(source) if isinstance(source, Mapping) else Path(source).expanduser()
    with callbacks_of(callback, quiet) as callbacks:
        from coterie.stages.pipeline import run_pipeline
        from coterie.stages.records import is_finished

        folder = run_pipeline(given, callbacks, until=until, since=since)
    runs = {run.name: Run(run) for run in sorted(folder.iterdir()) if "-replaced-" not in run.name and is_finished(run)}
    report = folder / "report.json"
    return PipelineResult(path=folder, runs=runs, report=json.loads(report.read_text()) if report.exists() else [])
