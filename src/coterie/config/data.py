"""The settings of the data: where prompts come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from coterie.config.section import Section


class ReasoningGymSource(Section):
    """A procedural generator of reasoning-gym with its own scorer."""

    type: Literal["reasoning_gym"]
    name: str
    """Generator name, e.g. `leg_counting`."""
    size: int = Field(default=1000, ge=1)
    """How many items to generate."""
    seed: int = 0
    """Seed of the generator; training and held-out sources need different ones."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The generator's own parameters, e.g. {max_animals = 3}."""
    instruction: str = ""
    """Added after the question, on a new line."""


class FileSource(Section):
    """A .jsonl, .parquet or .csv file with `prompt` or `question` and, usually, `answer`."""

    type: Literal["file"]
    path: str
    """Path of the file."""
    task: str | None = None
    """Task name of its rows; the file's stem when left out."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows."""
    instruction: str = ""
    """Added after the question, on a new line."""


class HubSource(Section):
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
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows."""
    instruction: str = ""
    """Added after the question, on a new line."""


class AssetSource(Section):
    """A question asset of `coterie assets ls`, e.g. gsm8k-100."""

    type: Literal["asset"]
    name: str
    """Asset name."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows."""
    instruction: str = ""
    """Added after the question, on a new line."""


class PythonSource(Section):
    """Your own function: `module:function` returning an iterable of row dicts."""

    type: Literal["python"]
    target: str
    """`module:function`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function."""
    task: str | None = None
    """Task name of its rows; the function's name when left out."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows."""
    instruction: str = ""
    """Added after the question, on a new line."""


Source = Annotated[
    ReasoningGymSource | FileSource | HubSource | AssetSource | PythonSource,
    Field(discriminator="type"),
]


class DataConfig(Section):
    """Where prompts come from."""

    train: list[Source] = Field(default_factory=list)
    """Sources of training prompts; rows of all sources are mixed."""
    heldout: list[Source] = Field(default_factory=list)
    """Sources of held-out prompts, never trained on. Rows that also occur in training are removed."""
    system: str | None = None
    """System message put before every prompt; None leaves it to the template."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """A longer prompt is a bad row."""
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    """Refuse to start when a larger share of a source's rows is bad."""
