"""Pipelines: stages one after the other, each from what earlier ones left, with the same evaluations after each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from coterie import launch
from coterie.callbacks import Callback
from coterie.config.pipeline import BASE, PipelineConfig, StageConfig, load_pipeline
from coterie.config.schema import RunConfig
from coterie.errors import CoterieError
from coterie.inference.heldout import require_heldout, sampler_for, with_model
from coterie.policy.export import export
from coterie.preflight import Report
from coterie.runs.inspect import DATA
from coterie.runs.lock import Lock
from coterie.runs.models import BEST
from coterie.stages.records import (
    StageRecord,
    file_hash,
    forget,
    is_finished,
    key_of,
    model_hash,
    output_of,
    read_record,
    require_untouched,
    settings_file,
)
from coterie.stages.rejection import rejection, resume
from coterie.stages.summary import examples, write_summary


@dataclass(slots=True, kw_only=True)
class Pipeline:
    """A pipeline at its folder."""

    config: PipelineConfig
    place: Path
    """Folder at which its relative paths start."""

    @property
    def folder(self) -> Path:
        return self.config.folder(self.place)

    def run_of(self, stage: StageConfig | str) -> Path:
        """Folder of a stage's run."""
        return self.folder / (stage if isinstance(stage, str) else stage.name)

    def model_of(self, name: str) -> str:
        """The model that `STAGE` or `STAGE@best` means."""
        stage, _, mark = name.partition("@")
        return f"{self.run_of(stage)}@{BEST}" if mark else str(self.run_of(stage))

    def config_of(self, stage: StageConfig) -> RunConfig:
        """Settings of a stage's run, with what it takes from earlier ones."""
        taken: dict[str, Any] = {}
        if stage.model:
            taken["model"] = {"name": self.model_of(stage.model)}
        if stage.data:
            files = [{"type": "file", "path": str(self.run_of(name) / DATA)} for name in stage.data]
            taken["data"] = {"train": files}
        if stage.rollouts:
            taken["rejection"] = {"rollouts": [str(self.run_of(name)) for name in stage.rollouts]}
        for section, key, name in (("distill", "teacher", stage.teacher), ("reference", "model", stage.reference)):
            if name:
                taken[section] = {key: self.model_of(name)}
        config = self.config.run_config(stage, self.place, taken)
        return config.require_teacher() if stage.kind == "distill" else config

    def key_of(self, stage: StageConfig, outputs: dict[str, str]) -> str:
        """Hash of all that decides what the stage leaves.

        Args:
            outputs: of the finished stages before it.
        """
        config = self.config_of(stage)
        taken = {what: outputs[name] for what, name in stage.takes().items()}
        for what, name in (("model", stage.model), ("teacher", stage.teacher), ("reference", stage.reference)):
            if name and name.endswith(f"@{BEST}"):
                taken[what] = model_hash(self.model_of(name), Path(config.runs))
        return key_of(stage.kind, config, taken)

    def starts(self) -> dict[str, str]:
        """Stage → the stage whose last model it starts from, or `base`; without those that start from another model."""
        base = self.config_of(self.base_stage()).model.name
        starts = {}
        for stage in self.config.stage:
            if stage.model or self.config_of(stage).model.name == base:
                starts[stage.name] = stage.model or BASE
        return starts

    def base_stage(self) -> StageConfig:
        """The stage whose model is the one before any stage."""
        return next((stage for stage in self.config.stage if stage.model is None), self.config.stage[0])

    def plan(self, *, again: int | None = None) -> Iterator[tuple[StageConfig, str]]:
        """(stage, what will be done: `done`, `resume`, `run`, or `run again` with the reason), in order.

        Args:
            again: place of the first stage that is made again in any case.
        """
        outputs: dict[str, str] = {}
        for place, stage in enumerate(self.config.stage):
            record = read_record(self.folder, stage.name)
            waiting = [name for name in stage.takes().values() if name not in outputs]
            if again is not None and place >= again and record is not None:
                yield stage, "run again: asked for"
            elif record is None:
                yield stage, "run"
            elif waiting or record.key != self.key_of(stage, outputs):
                yield stage, f"run again: {waiting[0]} changes" if waiting else "run again: its inputs changed"
            elif record.finished:
                require_untouched(self.folder, stage.name, stage.kind, record)
                outputs[stage.name] = record.output
                yield stage, "done"
            else:
                yield stage, "resume" if (self.run_of(stage) / "config.toml").is_file() else "run"


def run_pipeline(
    source: Path | dict[str, Any],
    callback: Callback | None = None,
    *,
    until: str | None = None,
    since: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Run the stages that are not done, and evaluate after each; returns the pipeline's folder, with its report.

    The same call again goes on at the stage, and at the step, where the last one ended.

    Args:
        until: last stage to run.
        since: this stage and all after it are run again, whatever is there.
        settings: as for `load_pipeline`.

    Raises:
        ConfigError: the pipeline names what does not exist or comes later.
        RunError: a stage's folder is not what the stage left.
        CoterieError: a stage failed; those before it stay.
    """
    callback = callback or Callback()
    pipeline = _pipeline(source, settings)
    last = len(pipeline.config.stage) - 1 if until is None else pipeline.config.named(until)
    first = None if since is None else pipeline.config.named(since)
    for stage in pipeline.config.stage:  # wrong settings are told before the first hour of work
        pipeline.config_of(stage)
    for evaluation in pipeline.config.evaluation:
        require_heldout(pipeline.config.evaluation_config(evaluation, pipeline.place))
    pipeline.folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(pipeline.folder)
    try:
        if first is not None:
            list(pipeline.plan(again=first))  # an edited folder before them is told first
            for stage in pipeline.config.stage[first:]:
                forget(pipeline.folder, stage.name)
        _evaluate_base(pipeline, callback)
        outputs: dict[str, str] = {}
        for stage in pipeline.config.stage[: last + 1]:
            if not _advance(pipeline, stage, outputs, callback):
                callback.on_event("stop", f"the pipeline stopped in stage {stage.name}; the same command goes on there")
                break
            write_summary(pipeline.folder, pipeline.config, pipeline.starts())
    finally:
        lock.release()
    return pipeline.folder


def _pipeline(source: Path | dict[str, Any], settings: Mapping[str, Any] | None) -> Pipeline:
    config, place = load_pipeline(source, settings)
    return Pipeline(config=config, place=place)


def _advance(pipeline: Pipeline, stage: StageConfig, outputs: dict[str, str], callback: Callback) -> bool:
    """Bring a stage to its end, and evaluate it; False when it was asked to stop before."""
    folder, run = pipeline.folder, pipeline.run_of(stage)
    key, record = pipeline.key_of(stage, outputs), read_record(pipeline.folder, stage.name)
    if record is not None and record.key != key:
        callback.on_event("pipeline", f"stage {stage.name}: its inputs changed, so it is made again")
        forget(folder, stage.name)
        record = None
    if record is not None and record.finished:
        require_untouched(folder, stage.name, stage.kind, record)
        callback.on_event("pipeline", f"stage {stage.name} ({stage.kind}): done before, its inputs did not change")
    else:
        callback.on_event("pipeline", f"stage {stage.name} ({stage.kind})")
        if record is None and run.exists():
            forget(folder, stage.name)  # of nobody's making: set aside
        record = StageRecord(key=key)
        record.write(folder, stage.name)
        _run_stage(pipeline, stage, callback)
        if not is_finished(run, stage.kind):
            return False
        record = replace(record, output=output_of(run, stage.kind), config=file_hash(settings_file(run, stage.kind)))
        record.write(folder, stage.name)
    outputs[stage.name] = record.output
    if stage.kind != "rejection":
        _evaluate(pipeline, stage.name, str(run), record, callback)
    return True


def _run_stage(pipeline: Pipeline, stage: StageConfig, callback: Callback) -> None:
    """Start the stage, or go on with it where it has begun."""
    if stage.kind == "merge":
        export(pipeline.config_of(stage).model.name, pipeline.run_of(stage))
        return
    if (pipeline.run_of(stage) / "config.toml").is_file():
        resume(pipeline.run_of(stage), callback)
        return
    config = pipeline.config_of(stage)
    (rejection if stage.kind == "rejection" else launch.train)(config, callback)


def _evaluate_base(pipeline: Pipeline, callback: Callback) -> None:
    """Evaluate the model from which the first stage that trains starts."""
    config = pipeline.config_of(pipeline.base_stage())
    name = config.model.name
    key = model_hash(name, Path(config.runs))
    record = read_record(pipeline.folder, BASE)
    if record is None or record.key != key:
        record = StageRecord(key=key, output=key)
        record.write(pipeline.folder, BASE)
    _evaluate(pipeline, BASE, name, record, callback)


def _evaluate(pipeline: Pipeline, name: str, model: str, record: StageRecord, callback: Callback) -> None:
    """Make the evaluations of a model that are not recorded for it."""
    for evaluation in pipeline.config.evaluations_after(name):
        config = pipeline.config.evaluation_config(evaluation, pipeline.place)
        key = key_of("evaluation", config, {"model": record.output})
        done = dict(record.evaluations or {})
        if done.get(evaluation.name, {}).get("key") == key:
            continue
        callback.on_progress(f"evaluating {name}: {evaluation.name}")
        measured = sampler_for(with_model(config, model), callback, need_train=False).evaluate(callback)
        results = [asdict(result) for result in measured.results]
        items = [asdict(item) for item in measured.items]
        shown = examples(measured.experience)
        done[evaluation.name] = {"key": key, "results": results, "items": items, "examples": shown}
        record = replace(record, evaluations=done)
        record.write(pipeline.folder, name)
        told = [replace(x, task=f"{evaluation.name} ({x.task}) after {name}") for x in measured.results]
        callback.on_evaluate(told)


def plan_report(
    source: Path | dict[str, Any],
    *,
    until: str | None = None,
    since: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """What each stage would do, and the checks of those that would run: data, memory and time.

    A stage whose model does not exist yet is checked with the model of the settings, which has the same size; one whose
    rows do not exist yet is not.
    """
    pipeline = _pipeline(source, settings)
    last = len(pipeline.config.stage) - 1 if until is None else pipeline.config.named(until)
    first = None if since is None else pipeline.config.named(since)
    report = Report()
    for place, (stage, action) in enumerate(pipeline.plan(again=first)):
        if place > last:
            break
        report.add("ok", stage.name, f"{stage.kind}: {action}")
        if action != "done":
            _check_stage(report, pipeline, stage)
    return report


def _check_stage(report: Report, pipeline: Pipeline, stage: StageConfig) -> None:
    config = pipeline.config_of(stage)
    if stage.kind == "merge":
        return
    if stage.rollouts or not all((pipeline.run_of(name) / DATA).exists() for name in stage.data):
        report.add("ok", stage.name, f"its rows come from {', '.join(stage.data or stage.rollouts)}: not estimated")
        return
    update: dict[str, Any] = {}
    base = pipeline.config.run_config(stage, pipeline.place, {}).model
    for what, name in stage.takes().items():
        earlier = pipeline.config.stage[pipeline.config.named(name)]
        if not is_finished(pipeline.run_of(name), earlier.kind):
            section, key = {"teacher": ("distill", "teacher"), "reference": ("reference", "model")}.get(
                what, ("model", "name")
            )
            update[section] = getattr(config, section).model_copy(update={key: base.name})
    config = config.model_copy(update=update)
    try:
        checked = launch.dry_run(config)
    except CoterieError as error:
        report.add("fail", stage.name, str(error))
        return
    for level, subject, text in checked.lines:
        report.add(level, f"{stage.name}: {subject}", text)
