"""Prompt sources → prompts that the model can really be shown; the rest is quarantined with row and reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from coterie.config.data import (
    AssetSource,
    DataConfig,
    FileSource,
    HubSource,
    Presence,
    PythonSource,
    ReasoningGymSource,
    Source,
)
from coterie.data import assets, rows, tasks
from coterie.data.chat import Chat
from coterie.data.columns import BadRowError, Question, read_columns, with_instruction
from coterie.errors import DataError
from coterie.observer import POOLED
from coterie.types import Message, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that no rollout will ever see."""

    source: str
    """The source as a person knows it: file name, dataset id, generator."""
    row: int
    """Line of a .jsonl file, index of a generated item, else the record counted from 1."""
    reason: str

    def as_dict(self) -> dict[str, str | int]:
        """JSON."""
        return {"source": self.source, "row": self.row, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """What a list of sources holds."""

    prompts: tuple[Prompt, ...]
    """In the order of the sources."""
    token_ids: Mapping[str, tuple[int, ...]]
    """Rendered prompt [P] by prompt id."""
    quarantined: tuple[BadRow, ...]
    excluded: int
    """Good rows left out because `exclude` has the same prompt."""
    repeated: int
    """Generated items left out because an earlier one asks the same."""
    presence: Mapping[str, Presence] = field(default_factory=dict)
    """`after` and `until` of the source by prompt id, where it has any."""

    @classmethod
    def empty(cls) -> PromptSet:
        """Nothing, from no source."""
        return cls(prompts=(), token_ids={}, quarantined=(), excluded=0, repeated=0)

    @property
    def warnings(self) -> list[str]:
        """What was left out, one line each."""
        lines: list[str] = []
        if self.quarantined:
            lines.append(f"{len(self.quarantined)} bad rows left out; first: {_describe(self.quarantined[0])}")
        if self.excluded:
            lines.append(f"{self.excluded} held-out prompts left out that also occur in training")
        if self.repeated:
            lines.append(f"{self.repeated} generated items left out that repeat an earlier one")
        return lines

    def write_quarantine(self, path: Path) -> None:
        """One JSON object a line: source, row, reason. The file is written even when nothing is bad."""
        path.write_text("".join(f"{json.dumps(row.as_dict())}\n" for row in self.quarantined), encoding="utf-8")


@dataclass(slots=True)
class _Loading:
    """What has been seen so far, over all sources."""

    config: DataConfig
    chat: Chat
    forbidden: frozenset[tuple[int, ...]]
    taken: set[str]
    limit: int | None
    prompts: list[Prompt] = field(default_factory=list)
    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)
    asked: dict[tuple[int, ...], str] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    presence: dict[str, Presence] = field(default_factory=dict)
    excluded: int = 0
    repeated: int = 0


def load(
    sources: Sequence[Source],
    config: DataConfig,
    chat: Chat,
    exclude: PromptSet | Iterable[Prompt] = (),
    *,
    limit: int | None = None,
) -> PromptSet:
    """Read, check and render every row of `sources`.

    Ids are `<task>/<row>`, or `<task>/<id>` where the row has an `id`; generated items are `<task>/<seed>-<index>`. A
    source whose ids an earlier one (or `exclude`) already has gets `<task>.2/…`.

    Args:
        sources: of `data.train` or `data.heldout`.
        config: for `system`, `max_prompt_tokens` and `max_bad_share`.
        exclude: prompts that must not occur, e.g. those trained on; a set of the same `chat` is not rendered again.
        limit: keep only the first good prompts of each source.

    Raises:
        DataError: a source cannot be read or has a reserved task name, too large a share of its rows is bad, or none
            of them is left.
        AssetError: a question asset cannot be fetched.
    """
    if isinstance(exclude, PromptSet):
        known, forbidden = exclude.prompts, frozenset(exclude.token_ids.values())
    else:
        known = tuple(exclude)
        forbidden = frozenset(tuple(chat.render(prompt.messages)) for prompt in known)
    loading = _Loading(
        config=config,
        chat=chat,
        forbidden=forbidden,
        taken={prompt.id for prompt in known},
        limit=limit,
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
    )


def _load_source(source: Source, loading: _Loading) -> None:
    name, task = _names(source)
    if task == POOLED:
        raise DataError(
            f"{name} gives its prompts the task name {task!r}, which is reserved for the result over all tasks; give "
            "the source another `task`, or rename the file or function"
        )
    generated = isinstance(source, ReasoningGymSource)
    bad: list[BadRow] = []
    ids: set[str] = set()
    fresh: list[tuple[str, Question, tuple[int, ...]]] = []
    total, excluded, repeated = 0, loading.excluded, loading.repeated
    for number, candidate in _questions(source):
        if generated and len(fresh) == loading.limit:
            break
        total += 1
        try:
            if isinstance(candidate, BadRowError):
                raise candidate
            tokens = _render(candidate, source.instruction, loading)
            local = candidate.id or str(number)
            if local in ids:
                raise BadRowError(f"has the id {local!r} of an earlier row")
            if tokens in loading.asked and not generated:
                raise BadRowError(f"asks the same as {loading.asked[tokens]}")
        except BadRowError as error:
            bad.append(BadRow(source=name, row=number, reason=str(error)))
            continue
        ids.add(local)
        if tokens in loading.asked:
            loading.repeated += 1
        elif tokens in loading.forbidden:
            loading.excluded += 1
        else:
            fresh.append((local, candidate, tokens))
        loading.asked.setdefault(tokens, f"{task}/{local}")
    _check_share(name, bad, total, loading.config.max_bad_share)
    loading.bad += bad
    if not fresh:
        raise DataError(
            f"no prompt of {name} is left: {len(bad)} of {total} rows are bad, {loading.excluded - excluded} also "
            f"occur in training, {loading.repeated - repeated} repeat another; for a generator change seed or params"
        )
    _keep(source, task, fresh[: loading.limit], loading)


def _keep(source: Source, task: str, fresh: Sequence[tuple[str, Question, tuple[int, ...]]], loading: _Loading) -> None:
    prefix = _free_prefix(task, [local for local, _, _ in fresh], loading.taken)
    name, _ = _names(source)
    for local, question, tokens in fresh:
        prompt = Prompt(
            id=f"{prefix}/{local}",
            messages=_messages(question, source.instruction, loading.config.system),
            answer=question.answer,
            task=task,
            attributes=question.attributes,
            # Of a file the name alone: the same rows are the same experience wherever they lie.
            source=f"{source.type}:{Path(name).name if isinstance(source, FileSource) else name}",
        )
        loading.prompts.append(prompt)
        loading.tokens[prompt.id] = tokens
        loading.taken.add(prompt.id)
        if source.after or source.until:
            loading.presence[prompt.id] = source.presence


def _render(question: Question, instruction: str, loading: _Loading) -> tuple[int, ...]:
    messages = _messages(question, instruction, loading.config.system)
    try:
        tokens = tuple(loading.chat.render(messages))
    except DataError as error:
        raise BadRowError(f"cannot be rendered: {error}") from error
    limit = loading.config.max_prompt_tokens
    if len(tokens) > limit:
        raise BadRowError(f"has {len(tokens)} prompt tokens, more than data.max_prompt_tokens = {limit}")
    return tokens


def _messages(question: Question, instruction: str, system: str | None) -> tuple[Message, ...]:
    """The row's own system message wins over `data.system`."""
    messages = with_instruction(question.messages, instruction)
    if system is None or messages[0]["role"] == "system":
        return messages
    return (Message(role="system", content=system), *messages)


def _questions(source: Source) -> Iterator[tuple[int, Question | BadRowError]]:
    """(row number, question or what is wrong with it) of every row."""
    if isinstance(source, ReasoningGymSource):
        for item in tasks.items(source.name, source.params, source.size, source.seed):
            row = {"id": f"{source.seed}-{item.index}", "question": item.question, "answer": item.answer}
            yield item.index, _question({**row, **item.attributes})
        return
    for row in islice(_rows(source), source.limit):
        yield row.number, BadRowError(row.problem) if row.data is None else _question(row.data)


def _question(data: Mapping[str, object]) -> Question | BadRowError:
    try:
        return read_columns(data)
    except BadRowError as error:
        return error


def _rows(source: FileSource | HubSource | AssetSource | PythonSource) -> Iterator[rows.Row]:
    match source:
        case FileSource():
            return rows.read_file(Path(source.path).expanduser())
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
            return rows.read_file(path)


def _names(source: Source) -> tuple[str, str]:
    """(what a person knows the source as, its task name)."""
    match source:
        case FileSource():
            name, task = source.path, Path(source.path).stem
        case HubSource():
            name, task = source.name, source.name.rsplit("/", 1)[-1]
        case PythonSource():
            name, task = source.target, source.target.rsplit(":", 1)[-1]
        case _:
            name = task = source.name
    return name, source.task or task


def _check_share(name: str, bad: Sequence[BadRow], total: int, limit: float) -> None:
    if total == 0:
        raise DataError(f"{name} has no rows; expected rows with `prompt` or `question`")
    if len(bad) > limit * total:
        first = "".join(f"\n  {_describe(row)}" for row in bad[:5])
        more = f"\n  … and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(
            f"{len(bad)} of {total} rows of {name} are bad, more than data.max_bad_share = {limit:g} allows; repair "
            f"them, or raise data.max_bad_share to train without them:{first}{more}"
        )


def _describe(bad: BadRow) -> str:
    return f"{bad.source} row {bad.row} {bad.reason}"


def _free_prefix(task: str, locals_: Sequence[str], taken: set[str]) -> str:
    prefix, count = task, 1
    while any(f"{prefix}/{local}" in taken for local in locals_):
        count += 1
        prefix = f"{task}.{count}"
    return prefix
