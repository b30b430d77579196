"""sft, distill, rejection and pipeline for scripts and notebooks: see `coterie.stages`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.api.run import Run
from coterie.api.verbs import callbacks_of, runs_folder, settings_of, tables_of
from coterie.callbacks import Callback

if TYPE_CHECKING:
    from coterie.config.schema import RunConfig


def sft(
    model: Any = None,
    data: Any = None,
    reward: Any = None,
    *,
    heldout: Any = None,
    tokenizer: Any = None,
    name: str | None = None,
    runs: str | Path | None = None,
    config: str | Path | RunConfig | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Run:
    """Fine-tune a model on conversations in a new run folder: only the assistant's tokens are trained.

    Args:
        model: as for `train`.
        data: rows of `messages`, `prompt` and `completion`, or `prompt`, `steps` and `answer`, given as for `train`.
        reward: measures the held-out accuracy; as for `train`.
        heldout: held-out prompts, given as `data` is; rows with a reply measure the held-out loss too.

    The other arguments are those of `train`.

    Raises:
        CoterieError: a row answers a held-out prompt, too many are bad, or the loss exploded.
    """
    tables = tables_of(sections, name, runs)
    with callbacks_of(callback, quiet) as callbacks:
        place = runs_folder(config, tables, settings)
        loaded = settings_of(
            "sft", config, tables, settings, place, model=model, tokenizer=tokenizer, data=data, heldout=heldout,
            reward=reward,
        )  # fmt: skip
        from coterie import launch

        return Run(launch.train(loaded.with_table("sft"), callbacks))


def distill(
    model: Any = None,
    data: Any = None,
    reward: Any = None,
    *,
    teacher: Any = None,
    heldout: Any = None,
    tokenizer: Any = None,
    name: str | None = None,
    runs: str | Path | None = None,
    config: str | Path | RunConfig | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Run:
    """Train a student on a teacher's log-probs of the tokens that it samples itself (on-policy distillation).

    Args:
        model: the student, as for `train`.
        data: the prompts, as for `train`.
        reward: as for `train`; recorded, and trained on where `distill.reward_weight` is not 0.
        teacher: a run, its folder or name, a model folder, an asset, or a loaded transformers model with the student's
            tokenizer; None takes `distill.teacher` of the settings.
        heldout: held-out prompts, as for `train`.

    The other arguments are those of `train`.

    Raises:
        ModelError: the teacher's tokenizer is another one.
        ConfigError: no teacher is named.
    """
    tables = tables_of(sections, name, runs)
    dotted = dict(settings or {})
    with callbacks_of(callback, quiet) as callbacks:
        place = runs_folder(config, tables, settings)
        if teacher is not None:
            from coterie.api.inputs import model_of

            source = str(teacher.path) if isinstance(teacher, Run) else teacher
            dotted["distill.teacher"] = model_of(source, tokenizer, place) if not isinstance(source, str) else source
        loaded = settings_of(
            "distill", config, tables, dotted, place, model=model, tokenizer=tokenizer, data=data, heldout=heldout,
            reward=reward,
        )  # fmt: skip
        from coterie import launch

        return Run(launch.train(loaded.require_teacher(), callbacks))


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
    tables = tables_of(sections, name, runs)
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
    settings: Mapping[str, Any] | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    quiet: bool = False,
) -> PipelineResult:
    """Run the stages of a pipeline that are not done, and evaluate after each.

    Args:
        source: a TOML file, or its content as a dict.
        until: last stage to run.
        since: this stage and all after it are run again.
        settings: by dotted key, e.g. `{"seed": 1}`, over those of all stages, under those of a single one; `name` and
            `runs` are the pipeline's.
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

        folder = run_pipeline(given, callbacks, until=until, since=since, settings=settings)
    runs = {run.name: Run(run) for run in sorted(folder.iterdir()) if "-replaced-" not in run.name and is_finished(run)}
    report = folder / "report.json"
    return PipelineResult(path=folder, runs=runs, report=json.loads(report.read_text()) if report.exists() else [])
