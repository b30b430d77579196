"""Settings of the data: sources of prompts, and their curriculum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from coterie.config.base import Section


class CurriculumSpan(NamedTuple):
    """Span of the curriculum in which a source is drawn from."""

    after: int = 0
    """Prompts drawn before the span."""
    until: int | None = None
    """Prompts drawn at its end; None: no end."""

    def holds(self, cursor: int) -> bool:
        """True if the span covers this number of drawn prompts."""
        return self.after <= cursor and not self.past(cursor)

    def past(self, cursor: int) -> bool:
        """True if the span ended at or before this number of drawn prompts."""
        return self.until is not None and self.until <= cursor


def changes(times: Iterable[CurriculumSpan]) -> list[int]:
    """Numbers of drawn prompts at which sources join or leave, ascending, 0 first."""
    return sorted({0} | {at for pair in times for at in pair if at is not None})


class ColumnNames(NamedTuple):
    """Columns of a source by role; None where the layout is recognised from the columns' names."""

    prompt: str | None = None
    answer: str | None = None
    """Empty: the rows have no gold answer."""
    system: str | None = None


class _Source(Section):
    """Settings of every source."""

    task: str | None = None
    """Task name of its rows, under which they are scored and reported; the name of the generator, file,
    dataset, asset or function when left out."""
    instruction: str = ""
    """Added after the question, on a new line."""
    after: int = Field(default=0, ge=0)
    """Curriculum, training only: prompts of this source are used after this many were drawn from all sources."""
    until: int | None = Field(default=None, ge=1)
    """Curriculum, training only: and until this many were drawn; none = to the end."""

    @property
    def presence(self) -> CurriculumSpan:
        """The span in which this source is drawn from."""
        return CurriculumSpan(self.after, self.until)

    def active(self, cursor: int) -> bool:
        """True if this source is drawn from after this number of drawn prompts."""
        return self.presence.holds(cursor)

    @model_validator(mode="after")
    def _some_time(self) -> _Source:
        if self.until is not None and self.until <= self.after:
            raise ValueError(f"until = {self.until} must be above after = {self.after}: its prompts are never drawn")
        return self


class RowSource(_Source):
    """A source of rows with columns."""

    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows."""
    prompt_column: str | None = Field(default=None, min_length=1)
    """Column with the prompt, text or messages, e.g. `query`, or a dotted path, e.g. `extra_info.question`. When left
    out, it is recognised: `prompt`, `question`, `problem`, `messages`, `conversations` or `instruction`."""
    answer_column: str | None = None
    """Column with the gold answer, e.g. `reward_model.ground_truth`. When left out, it is recognised: `answer`,
    `reward_model.ground_truth`, `ground_truth`, `final_answer`, `expected_answer`, `solution` or `extra_info.answer`,
    or the reply that ends the conversation. Empty: the rows have no gold answer."""
    system_column: str | None = Field(default=None, min_length=1)
    """Column with the row's own system message; wins over `data.system`."""

    @property
    def column_names(self) -> ColumnNames:
        """The three settings above."""
        return ColumnNames(self.prompt_column, self.answer_column, self.system_column)


class ReasoningGymSource(_Source):
    """A procedural generator of reasoning-gym with its own scorer."""

    type: Literal["reasoning_gym"]
    name: str
    """Generator name, e.g. `leg_counting`."""
    size: int = Field(default=1000, ge=1)
    """Number of items to generate."""
    seed: int = 0
    """Seed of the generator; training and held-out sources need different ones."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The generator's own parameters, e.g. {max_animals = 3}."""


class FileSource(RowSource):
    """A file (.jsonl, .json, .parquet, .csv, .tsv, .arrow), or a folder of shards or of a saved dataset."""

    type: Literal["file"]
    path: str
    """Path of the file or folder."""
    split: str | None = None
    """Split to read of a folder; `train`, or the only one, when left out."""
    config: str | None = None
    """Configuration to read of a folder whose README.md names several; the default one when left out."""


class HubSource(RowSource):
    """A Hugging Face dataset (needs the `hub` extra)."""

    type: Literal["hub"]
    name: str
    """Dataset id, e.g. `openai/gsm8k`."""
    config: str | None = None
    """Dataset configuration, e.g. `main`."""
    split: str = "train"
    """Split."""
    revision: str | None = None
    """Pinned revision."""


class AssetSource(RowSource):
    """A question asset of `coterie assets ls`, e.g. gsm8k-100."""

    type: Literal["asset"]
    name: str
    """Asset name."""


class PythonSource(RowSource):
    """A function of yours, `module:function`, that returns an iterable of row dicts."""

    type: Literal["python"]
    target: str
    """`module:function`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function."""


Source = Annotated[
    ReasoningGymSource | FileSource | HubSource | AssetSource | PythonSource,
    Field(discriminator="type"),
]


class DataConfig(Section):
    """Sources of the training and held-out prompts."""

    train: list[Source] = Field(default_factory=list)
    """Sources of training prompts; rows of all sources are mixed."""
    heldout: list[Source] = Field(default_factory=list)
    """Sources of held-out prompts, never trained on. Rows that also occur in training are removed."""
    rehearsal: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the drawn prompts that come from finished curriculum stages, i.e. sources past their
    `until`."""
    system: str | None = None
    """System message put before every prompt; None leaves it to the template."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Maximum prompt length in tokens; a longer prompt is a bad row: dropped, and counted in max_bad_share."""
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    """Refuse to start when a larger share of a source's rows is bad."""

    def changes(self) -> list[int]:
        """Numbers of drawn prompts at which sources join or leave, ascending, 0 first."""
        return changes(source.presence for source in self.train)

    @model_validator(mode="after")
    def _always_some(self) -> DataConfig:
        if any(source.after or source.until for source in self.heldout):
            raise ValueError("data.heldout has a source with after or until: these are for data.train; leave them out")
        for cursor in self.changes() if self.train else ():
            if not any(source.active(cursor) for source in self.train):
                raise ValueError(
                    f"no source of data.train is there after {cursor} drawn prompts; set one's after and until so that "
                    "it is"
                )
        if self.rehearsal and not any(source.until for source in self.train):
            raise ValueError(
                f"data.rehearsal = {self.rehearsal} draws from sources that have left, and none ever does; give one an "
                "until"
            )
        return self
