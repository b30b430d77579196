"""Loading of prompt sources into renderable prompts; bad rows are quarantined with row and reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from coterie.config.data import (
    AssetSource,
    ColumnNames,
    CurriculumSpan,
    DataConfig,
    FileSource,
    HubSource,
    PythonSource,
    ReasoningGymSource,
    RowSource,
    Source,
)
from coterie.data import assets, rows, tasks
from coterie.data.chat import Chat
from coterie.data.columns import BadRowError, Question, read_columns, to_json, with_instruction
from coterie.data.files import read_file, stem_of
from coterie.data.layouts import check_columns, column_paths, listed
from coterie.data.notes import SourceNotes, Told
from coterie.data.shards import read_path
from coterie.errors import DataError
from coterie.text import counted
from coterie.types import POOLED, Message, Prompt

_FIRST_ROWS = 256
"""Rows by whose columns a source is judged as a whole."""
_MOST_CHARACTERS = 64
"""Characters a token of a prompt can stand for on average, at most; in text it is about 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A quarantined row."""

    source: str
    """The source as a person knows it: file name, dataset id, generator."""
    row: int
    """Line of a .jsonl file, index of a generated item, else the record counted from 1."""
    reason: str

    def as_dict(self) -> dict[str, str | int]:
        """JSON."""
        return {"source": self.source, "row": self.row, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceColumns:
    """Columns of a source, for messages."""

    source: str
    columns: tuple[str, ...]
    """Names, nested ones as dotted paths."""
    prompts: frozenset[str]
    """Ids of the prompts of the source."""
    unmarked: int
    """Rows whose worked solution ends in no marked answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Prompts of a list of sources, with their token ids and bad rows."""

    prompts: tuple[Prompt, ...]
    """In the order of the sources."""
    token_ids: Mapping[str, tuple[int, ...]]
    """Rendered prompt [P] by prompt id."""
    quarantined: tuple[BadRow, ...]
    excluded: int
    """Good rows left out because `exclude` has the same prompt."""
    repeated: int
    """Rows and generated items left out because an earlier one, of any source, asks the same."""
    presence: Mapping[str, CurriculumSpan] = field(default_factory=dict)
    """`after` and `until` of the source by prompt id, where it has any."""
    notes: tuple[str, ...] = ()
    """Notes on how sources were read, where that was not set: files of a folder, layouts, columns."""
    sources: tuple[SourceColumns, ...] = ()
    """Of the sources with columns."""

    @classmethod
    def empty(cls) -> PromptSet:
        """A set without prompts."""
        return cls(prompts=(), token_ids={}, quarantined=(), excluded=0, repeated=0)

    @property
    def warnings(self) -> list[str]:
        """Notes on the sources and on rows left out, one line each."""
        lines: list[str] = list(self.notes)
        if self.quarantined:
            count = counted(len(self.quarantined), "bad row")
            lines.append(f"{count} left out; first: {describe(self.quarantined[0])}")
        if self.excluded:
            lines.append(f"dropped {counted(self.excluded, 'held-out prompt')} (also in the training data)")
        if self.repeated:
            lines.append(f"dropped {counted(self.repeated, 'duplicate prompt')}")
        return lines


@dataclass(slots=True)
class _SourceRows:
    """Rows of a source, as far as it has been read."""

    name: str
    task: str
    columns: list[str] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    fresh: list[tuple[str, Question, tuple[int, ...]]] = field(default_factory=list)
    """Id within the task, question and rendered prompt of each row that is kept."""
    total: int = 0
    excluded: int = 0
    repeated: int = 0


@dataclass(slots=True)
class _Loading:
    """State of loading over all sources."""

    config: DataConfig
    chat: Chat
    forbidden: frozenset[tuple[int, ...]]
    taken: set[str]
    limit: int | None
    staged: bool
    """True if sources join and leave during the run."""
    told: Told
    prompts: list[Prompt] = field(default_factory=list)
    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)
    asked: dict[tuple[int, ...], str | None] = field(default_factory=dict)
    """Gold answer by rendered prompt."""
    rendered: dict[tuple[tuple[str, str], ...], tuple[int, ...]] = field(default_factory=dict)
    """Rendered prompt by its messages: some files hold every question a hundred times."""
    bad: list[BadRow] = field(default_factory=list)
    presence: dict[str, CurriculumSpan] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sources: list[SourceColumns] = field(default_factory=list)
    excluded: int = 0
    repeated: int = 0


def load(
    sources: Sequence[Source],
    config: DataConfig,
    chat: Chat,
    exclude: PromptSet | Iterable[Prompt] = (),
    *,
    limit: int | None = None,
    told: Told = lambda rows: None,
) -> PromptSet:
    """Read, check and render every row of `sources`.

    Ids are `<task>/<row>`, or `<task>/<id>` where the row has an `id`; generated items are `<task>/<seed>-<index>`. A
    source whose ids an earlier one (or `exclude`) already has gets `<task>.2/…`.

    Args:
        sources: of `data.train` or `data.heldout`.
        config: for `system`, `max_prompt_tokens` and `max_bad_share`.
        exclude: prompts that must not occur, e.g. those trained on; a set of the same `chat` is not rendered again.
        limit: keep only the first good prompts of each source.
        told: called with each row.

    Raises:
        DataError: a source cannot be read or has a reserved task name, too large a share of its rows is bad, or none
            of them is left.
        AssetError: a question asset cannot be fetched.
    """
    if isinstance(exclude, PromptSet):
        excluded, forbidden = exclude.prompts, frozenset(exclude.token_ids.values())
    else:
        excluded = tuple(exclude)
        forbidden = frozenset(tuple(chat.render(prompt.messages)) for prompt in excluded)
    loading = _Loading(
        config=config,
        chat=chat,
        forbidden=forbidden,
        taken={prompt.id for prompt in excluded},
        limit=limit,
        staged=any(source.after or source.until for source in sources),
        told=told,
    )
    if not sources:
        raise DataError('there are no prompt sources; add a [[data.train]] table, e.g. type = "reasoning_gym"')
    for source in sources:
        _load_source(source, loading)
    return PromptSet(
        prompts=tuple(loading.prompts),
        token_ids=loading.tokens,
        quarantined=tuple(loading.bad),
        excluded=loading.excluded,
        repeated=loading.repeated,
        presence=loading.presence,
        notes=tuple(loading.notes),
        sources=tuple(loading.sources),
    )


def _load_source(source: Source, loading: _Loading) -> None:
    name, task = source_names(source)
    if task == POOLED:
        raise DataError(
            f"{name} gives its prompts the task name {task!r}, which is reserved for the result over all tasks; give "
            "the source another `task`, or rename the file or function"
        )
    notes = SourceNotes(name, source.column_names if isinstance(source, RowSource) else ColumnNames())
    rows = _SourceRows(name, task)
    for number, candidate in _questions(source, name, rows, notes):
        if isinstance(source, ReasoningGymSource) and len(rows.fresh) == loading.limit:
            break
        rows.total += 1
        loading.told(rows.total)
        try:
            if isinstance(candidate, BadRowError):
                raise candidate
            tokens = _render(candidate, source.instruction, loading)
        except BadRowError as error:
            rows.bad.append(BadRow(source=name, row=number, reason=str(error)))
            continue
        _sort_in(rows, number, candidate, tokens, loading, notes)
    _check_share(rows, loading.config.max_bad_share)
    loading.bad += rows.bad
    if not rows.fresh:
        _check_left(rows, loading)
    kept = _keep(source, rows, loading)
    loading.notes += notes.lines()
    if isinstance(source, RowSource):
        columns = tuple(rows.columns)
        loading.sources.append(SourceColumns(source=name, columns=columns, prompts=kept, unmarked=notes.unmarked))


def _sort_in(
    rows: _SourceRows,
    number: int,
    question: Question,
    tokens: tuple[int, ...],
    loading: _Loading,
    notes: SourceNotes,
) -> None:
    """Add a good row, unless it is a duplicate, excluded or beyond the limit."""
    if tokens in loading.asked:
        rows.repeated += 1
        loading.repeated += 1
        notes.conflicting += rows.columns != [] and question.answer != loading.asked[tokens]
        return
    loading.asked[tokens] = question.answer
    if tokens in loading.forbidden:
        rows.excluded += 1
        loading.excluded += 1
        return
    local = question.id or str(number)
    if local in rows.ids:
        notes.renumbered += question.id is not None
        local = next(
            name for name in (f"row-{number}", *(f"row-{number}.{k}" for k in range(2, 9))) if name not in rows.ids
        )
    rows.ids.add(local)
    rows.fresh.append((local, question, tokens))


def _check_left(rows: _SourceRows, loading: _Loading) -> None:
    """Refuse a source of which nothing is left, unless all of it stands in other sources of an unstaged run."""
    if rows.repeated == rows.total and not loading.staged and loading.prompts:
        return
    raise DataError(
        f"no prompt of {rows.name} is left: {len(rows.bad)} of {rows.total} rows are bad, {rows.excluded} also "
        f"occur in training, {rows.repeated} are duplicates; for a generator change seed or params"
    )


def _keep(source: Source, rows: _SourceRows, loading: _Loading) -> frozenset[str]:
    """Ids of the prompts that were added."""
    fresh = rows.fresh[: loading.limit]
    prefix = _free_prefix(rows.task, [local for local, _, _ in fresh], loading.taken)
    name = rows.name
    ids = []
    for local, question, tokens in fresh:
        prompt = Prompt(
            id=f"{prefix}/{local}",
            messages=_messages(question, source.instruction, loading.config.system),
            answer=question.answer,
            task=rows.task,
            attributes=question.attributes,
            # Of a file the name alone: the same rows are the same experience wherever they lie.
            source=f"{source.type}:{Path(name).name if isinstance(source, FileSource) else name}",
        )
        loading.prompts.append(prompt)
        loading.tokens[prompt.id] = tokens
        loading.taken.add(prompt.id)
        ids.append(prompt.id)
        if source.after or source.until:
            loading.presence[prompt.id] = source.presence
    return frozenset(ids)


def _render(question: Question, instruction: str, loading: _Loading) -> tuple[int, ...]:
    messages = _messages(question, instruction, loading.config.system)
    limit = loading.config.max_prompt_tokens
    length = sum(len(message["content"]) for message in messages)
    if length > _MOST_CHARACTERS * limit:  # a file in one cell: half a minute of tokenising, to no end
        raise BadRowError(f"has {length:,} characters, more than data.max_prompt_tokens = {limit} can hold")
    key = tuple((message["role"], message["content"]) for message in messages)
    tokens = loading.rendered.get(key)
    if tokens is None:
        try:
            tokens = loading.rendered[key] = tuple(loading.chat.render(messages))
        except DataError as error:
            raise BadRowError(f"cannot be rendered: {error}") from error
    if len(tokens) > limit:
        raise BadRowError(f"has {len(tokens)} prompt tokens, more than data.max_prompt_tokens = {limit}")
    return tokens


def _messages(question: Question, instruction: str, system: str | None) -> tuple[Message, ...]:
    """Messages of a row; its own system message takes precedence over `data.system`."""
    messages = with_instruction(question.messages, instruction)
    if system is None or messages[0]["role"] == "system":
        return messages
    return (Message(role="system", content=system), *messages)


def _questions(
    source: Source, name: str, rows: _SourceRows, notes: SourceNotes
) -> Iterator[tuple[int, Question | BadRowError]]:
    """(row number, question or what is wrong with it) of every row.

    Raises:
        DataError: no row has a column for the prompt, or one that is set.
    """
    if isinstance(source, ReasoningGymSource):
        for item in tasks.items(source.name, source.params, source.size, source.seed):
            yield item.index, _generated(item, source.seed)
        return
    stream = islice(source_rows(source, notes), source.limit)
    first = list(islice(stream, _FIRST_ROWS))
    readable = [row.data for row in first if row.data is not None]
    rows.columns = column_paths(readable)
    check_columns(readable, source.column_names, name)
    for row in chain(first, stream):
        if row.data is None:
            yield row.number, BadRowError(row.problem)
            continue
        try:
            question = read_columns(row.data, source.column_names)
        except BadRowError as error:
            yield row.number, error
            continue
        notes.add(question)
        yield row.number, question


def _generated(item: tasks.Item, seed: int) -> Question | BadRowError:
    row = {"id": f"{seed}-{item.index}", "prompt": item.question, "answer": item.answer}
    try:
        question = read_columns(row)
    except BadRowError as error:
        return error
    return replace(question, attributes={name: to_json(value, name) for name, value in item.attributes.items()})


def source_rows(source: FileSource | HubSource | AssetSource | PythonSource, notes: SourceNotes) -> Iterator[rows.Row]:
    """Raw rows of a source, all of them.

    Raises:
        DataError, AssetError: it cannot be read or fetched.
    """
    match source:
        case FileSource():
            path = Path(source.path).expanduser()
            stream, notes.chosen = read_path(path, split=source.split, config=source.config)
            return stream
        case HubSource():
            return rows.read_hub(source.name, source.config, source.split, source.revision)
        case PythonSource():
            return rows.read_python(source.target, source.params)
        case AssetSource():
            path = assets.ensure(source.name)
            if path.is_dir():
                raise DataError(
                    f"the asset {source.name!r} is a model, not questions; put it into model.name, or choose a "
                    "questions asset of `coterie assets ls`"
                )
            return read_file(path)


def source_names(source: Source) -> tuple[str, str]:
    """(display name, task name) of a source."""
    match source:
        case FileSource():
            name, task = source.path, _file_task(Path(source.path).expanduser())
        case HubSource():
            name, task = source.name, source.name.rsplit("/", 1)[-1]
        case PythonSource():
            name, task = source.target, source.target.rsplit(":", 1)[-1]
        case _:
            name = task = source.name
    return name, source.task or task


def _file_task(path: Path) -> str:
    if path.is_dir():
        return path.name or path.resolve().name or "data"
    return stem_of(path)


def _check_share(rows: _SourceRows, limit: float) -> None:
    check_share(rows.name, rows.columns, rows.bad, rows.total, limit)


def check_share(name: str, columns: Sequence[str], bad: Sequence[BadRow], total: int, limit: float) -> None:
    """Refuse a source without rows, or with too many bad ones.

    Args:
        total: rows read, bad ones included.
        limit: `data.max_bad_share`.

    Raises:
        DataError: with the first five bad rows.
    """
    if total == 0:
        raise DataError(f"{name} has no rows; expected rows with `prompt` or `question`")
    if len(bad) <= limit * total:
        return
    first = "".join(f"\n  {describe(row)}" for row in bad[:5])
    more = f"\n  … and {len(bad) - 5} more" if len(bad) > 5 else ""
    if len(bad) == total:
        names = f"; its columns are {listed(columns)}" if columns else ""
        raise DataError(f"none of the {counted(total, 'row')} of {name} can be used{names}:{first}{more}")
    raise DataError(
        f"{len(bad)} of {total} rows of {name} are bad, more than data.max_bad_share = {limit:g} allows; fix "
        f"them, or raise data.max_bad_share to train without them:{first}{more}"
    )


def describe(bad: BadRow) -> str:
    """`rows.jsonl row 7 has an empty answer`."""
    return f"{bad.source} row {bad.row} {bad.reason}"


def _free_prefix(task: str, locals_: Sequence[str], taken: set[str]) -> str:
    prefix, count = task, 1
    while any(f"{prefix}/{local}" in taken for local in locals_):
        count += 1
        prefix = f"{task}.{count}"
    return prefix
