"""Settings of a pipeline: its stages in order, what each takes from earlier ones, and the evaluations after each."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from coterie.config.base import Section
from coterie.config.load import file_of, load_tables, read_toml
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,60}")
TRAINED = ("grpo", "sft", "distill", "merge")
"""Kinds of stages that leave a model."""
USES = {
    "data": ("sft",),
    "rollouts": ("rejection",),
    "teacher": ("distill",),
    "reference": ("grpo", "distill"),
}
"""What only some kinds of stages take from an earlier one."""
BASE = "base"
"""Name of the model before any stage, in reports."""


class StageConfig(Section):
    """One stage: a training, or rejection sampling."""

    name: str
    """Name of the stage and of its run folder."""
    kind: Literal["grpo", "sft", "rejection", "distill", "merge"]
    """grpo trains as `coterie train`, sft as `coterie sft`, distill as `coterie distill`; rejection keeps rollouts as
    `coterie rejection`; merge writes an adapter's stage as a model of its own, as `coterie export --to merged`."""
    model: str | None = None
    """Earlier stage whose model this one takes, `STAGE` (its last checkpoint) or `STAGE@best`; none: model.name of the
    settings."""
    teacher: str | None = None
    """Earlier stage whose model teaches a distill stage, as in `model`; none: distill.teacher of the settings."""
    reference: str | None = None
    """Earlier stage whose model the KL of a grpo or distill stage is taken to, as in `model`; none: the model with
    which the stage starts, or reference.model of the settings."""
    data: list[str] = Field(default_factory=list)
    """Earlier rejection stages whose rows an sft stage imitates, in place of data.train."""
    rollouts: list[str] = Field(default_factory=list)
    """Earlier grpo stages whose stored rollouts a rejection stage reads instead of sampling."""
    files: list[str] = Field(default_factory=list)
    """Files of settings, under `settings`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of this stage, over those of all."""

    def takes(self) -> dict[str, str]:
        """Earlier stages that it takes something from, by what it takes."""
        models = (("model", self.model), ("teacher", self.teacher), ("reference", self.reference))
        named = {what: name.removesuffix("@best") for what, name in models if name}
        for what, names in (("data", self.data), ("rollouts", self.rollouts)):
            named |= {f"{what}.{index}": name for index, name in enumerate(names)}
        return named


class EvaluationConfig(Section):
    """One measurement of the stages' models on held-out prompts."""

    name: str
    """Name in the report."""
    after: list[str] = Field(default_factory=list)
    """Stages after which it is made, `base` for the model before the first; none: base and every stage that trains."""
    files: list[str] = Field(default_factory=list)
    """Files of settings, under `settings`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the evaluation, over those of all: data.heldout, rewards, environment, sampling, eval."""


class PipelineConfig(Section):
    """A pipeline of stages."""

    name: str = "pipeline"
    """Folder below `runs`: it holds the stages' run folders, the records, and the report."""
    runs: str = "runs"
    """Folder that holds all runs."""
    files: list[str] = Field(default_factory=list)
    """Files of settings for all stages, under `settings`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of all stages and evaluations."""
    stage: list[StageConfig] = Field(min_length=1)
    """The stages in their order."""
    evaluation: list[EvaluationConfig] = Field(default_factory=list)
    """Made of the model before the first stage, and after each stage that trains."""

    @model_validator(mode="after")
    def _check_stages(self) -> PipelineConfig:
        earlier: dict[str, str] = {}
        later = [stage.name for stage in self.stage]
        for stage in self.stage:
            if not _NAME.fullmatch(stage.name) or stage.name == BASE:
                raise ValueError(f"stage name {stage.name!r} is not usable; take letters, digits, '.', '_' and '-'")
            if stage.name in earlier:
                raise ValueError(f"there are two stages {stage.name!r}; give each its own name")
            for what, name in stage.takes().items():
                kind = what.partition(".")[0]
                expected = {"data": ("rejection",), "rollouts": ("grpo", "distill")}.get(kind, TRAINED)
                if name not in earlier:
                    when = "comes later" if name in later else "does not exist"
                    names = ", ".join(earlier) or "none"
                    raise ValueError(
                        f"stage {stage.name!r} takes its {kind} from {name!r}, which {when}; stages before it: {names}"
                    )
                if earlier[name] not in expected:
                    raise ValueError(
                        f"stage {stage.name!r} takes its {kind} from {name!r}, a stage of kind {earlier[name]!r}; "
                        f"expected {', '.join(expected[:-1])}{' or ' * (len(expected) > 1)}{expected[-1]}"
                    )
            for what, kinds in USES.items():
                if getattr(stage, what) and stage.kind not in kinds:
                    raise ValueError(
                        f"stage {stage.name!r} is of kind {stage.kind!r}: {what} is for {' and '.join(kinds)}"
                    )
            if stage.kind == "merge" and not stage.model:
                raise ValueError(f"stage {stage.name!r} merges an adapter: name its stage in model")
            earlier[stage.name] = stage.kind
        names = [evaluation.name for evaluation in self.evaluation]
        if len(set(names)) < len(names):
            raise ValueError(f"two evaluations have the same name: {', '.join(names)}")
        measured = [BASE, *(stage.name for stage in self.stage if stage.kind != "rejection")]
        for evaluation in self.evaluation:
            for name in evaluation.after:
                if name not in measured:
                    raise ValueError(
                        f"evaluation {evaluation.name!r} is made after {name!r}, which leaves no model; "
                        f"expected some of {', '.join(measured)}"
                    )
        return self

    def named(self, name: str) -> int:
        """Place of a stage.

        Raises:
            ConfigError: there is none of this name.
        """
        names = [stage.name for stage in self.stage]
        if name not in names:
            raise ConfigError(f"there is no stage {name!r}; expected one of {', '.join(names)}")
        return names.index(name)

    def run_config(self, stage: StageConfig, place: Path, taken: dict[str, Any]) -> RunConfig:
        """Settings of a stage's run.

        Args:
            place: folder at which the pipeline's relative paths start.
            taken: settings by section for what it takes from earlier stages.
        """
        tables = [*self._common(place), *_tables(stage.name, stage.files, stage.settings, place)]
        kind = {stage.kind: {}} if stage.kind in ("sft", "rejection") else {}
        identity = {"runs": str(self.folder(place)), "name": stage.name}
        return load_tables([*tables, (f"stage {stage.name}", {**kind, **identity, **taken})], place)

    def evaluations_after(self, name: str) -> list[EvaluationConfig]:
        """What is measured after a stage, or of the model before the first (`BASE`)."""
        return [evaluation for evaluation in self.evaluation if not evaluation.after or name in evaluation.after]

    def evaluation_config(self, evaluation: EvaluationConfig, place: Path) -> RunConfig:
        """Settings of an evaluation, whose model is the caller's to set."""
        name = f"evaluation {evaluation.name}"
        tables = [*self._common(place), *_tables(name, evaluation.files, evaluation.settings, place)]
        return load_tables(tables, place)

    def folder(self, place: Path) -> Path:
        """The pipeline's folder."""
        return Path(os.path.normpath(place / Path(self.runs).expanduser() / self.name)).absolute()

    def _common(self, place: Path) -> list[tuple[str, dict[str, Any]]]:
        return _tables("pipeline", self.files, self.settings, place)


def _tables(name: str, files: Sequence[str], settings: dict[str, Any], place: Path) -> list[tuple[str, dict[str, Any]]]:
    """Tables with what an error calls their place; settings may have dotted keys, as flags have."""
    read = [(str(place / file), read_toml(place / file)) for file in files]
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        table = nested
        *parents, last = key.split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = value
    return [*read, (f"settings of {name}", nested)]


def load_pipeline(
    source: Path | dict[str, Any], settings: Mapping[str, Any] | None = None
) -> tuple[PipelineConfig, Path]:
    """The pipeline of a TOML file or of a table, and the folder at which its relative paths start.

    Args:
        settings: by dotted key, e.g. `{"seed": 1}`, over the pipeline's settings of all stages and evaluations, under
            those of a single one; `name` and `runs` replace the pipeline's own.

    Raises:
        ConfigError: it cannot be read, or names what does not exist or comes later.
    """
    place = Path.cwd() if isinstance(source, dict) else file_of(source).parent.absolute()
    table = source if isinstance(source, dict) else read_toml(source)
    if settings:
        identity = {key: settings[key] for key in ("name", "runs") if key in settings}
        shared = {key: value for key, value in settings.items() if key not in identity}
        table = {**table, **identity, "settings": {**table.get("settings", {}), **shared}}
    try:
        return PipelineConfig.model_validate(table), place
    except ValidationError as error:
        where = "the pipeline" if isinstance(source, dict) else str(source)
        lines = [
            f"{where}: {'.'.join(map(str, problem['loc'])) or 'stages'}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False, include_context=False)
        ]
        raise ConfigError("\n".join(lines)) from None
