"""Demonstrations: conversations to imitate as the learner sees them, tokens with the assistant's turns among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from coterie.config.data import CurriculumSpan, DataConfig, FileSource, ReasoningGymSource, Source
from coterie.config.imitation import SftConfig
from coterie.data.assistant_turns import turn_tokens
from coterie.data.chat import Chat
from coterie.data.columns import BadRowError
from coterie.data.conversations import Conversation, read_conversation, step_ends
from coterie.data.layouts import column_paths
from coterie.data.notes import SourceNotes, Told
from coterie.data.prompts import BadRow, check_share, source_names, source_rows
from coterie.errors import DataError
from coterie.rewards.steps import token_ends
from coterie.rng import generator
from coterie.text import counted
from coterie.types import Context, Message, Outcome, Prompt, Rollout, StepReward, StopReason, Turn

STEP = "step"
"""Label of the ends of annotated steps among a demonstration's step rewards."""
ConversationKey = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """One conversation to imitate."""

    prompt: Prompt
    rollout: Rollout
    """Its tokens: each imitated turn is a turn, and `step_rewards` hold the ends of the annotated steps."""
    source: str
    """As a person knows it."""
    row: int

    @property
    def tokens(self) -> int:
        """Length of the whole conversation."""
        last = self.rollout.turns[-1]
        return len(last.prompt_tokens) + len(last.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationSet:
    """Conversations of a list of sources, and what was left out."""

    train: tuple[Demonstration, ...]
    heldout: tuple[Demonstration, ...] = ()
    """For the held-out loss alone."""
    quarantined: tuple[BadRow, ...] = ()
    presence: Mapping[str, CurriculumSpan] = field(default_factory=dict)
    """`after` and `until` of the source by prompt id, where it has any."""
    notes: tuple[str, ...] = ()

    @property
    def everything(self) -> tuple[Demonstration, ...]:
        return (*self.train, *self.heldout)

    def longest(self) -> Demonstration:
        """The one of most tokens."""
        return max(self.everything, key=lambda demonstration: demonstration.tokens)


@dataclass(slots=True)
class _Reading:
    """State of reading over all sources."""

    data: DataConfig
    settings: SftConfig
    chat: Chat
    told: Told
    ids: set[str] = field(default_factory=set)
    bad: list[BadRow] = field(default_factory=list)


def read_demonstrations(
    data: DataConfig,
    settings: SftConfig,
    chat: Chat,
    *,
    heldout: Sequence[Prompt],
    seed: int,
    told: Told = lambda rows: None,
) -> DemonstrationSet:
    """Read, check and tokenize every row of `data.train`, and the conversations among the rows of `data.heldout`.

    Args:
        heldout: prompts of the held-out evaluation, of which no row may be an answer.
        seed: of the choice of those that measure the held-out loss.
        told: called with each row.

    Raises:
        DataError: a source cannot be read, too many of its rows are bad, or one answers a held-out prompt.
    """
    reading = _Reading(data, settings, chat, told)
    if not data.train:
        raise DataError("there is nothing to imitate; add a [[data.train]] table with conversations")
    forbidden = {_key(prompt.messages): prompt.id for prompt in heldout}
    presence: dict[str, CurriculumSpan] = {}
    rows: list[Demonstration] = []
    for source in data.train:
        fresh = list(_of_source(source, reading, strict=True))
        for demonstration in fresh:
            name = forbidden.get(_key(demonstration.prompt.messages))
            if name is not None:
                raise DataError(
                    f"{demonstration.source} row {demonstration.row} answers the held-out prompt {name!r}, which would "
                    "then measure memory; take the row out of data.train, or the prompt out of data.heldout"
                )
            if source.after or source.until:
                presence[demonstration.prompt.id] = source.presence
        rows += fresh
    measured = [demo for source in data.heldout for demo in _of_source(source, reading, strict=False)]
    train, aside = _set_aside(rows, settings.heldout_share, seed)
    return DemonstrationSet(
        train=tuple(train),
        heldout=(*measured, *aside),
        quarantined=tuple(reading.bad),
        presence=presence,
        notes=tuple(_notes(train, reading.bad, len(aside))),
    )


def _key(messages: Sequence[Message]) -> ConversationKey:
    """What is asked, whatever the system message, the case and the white space are."""
    return tuple((m["role"], " ".join(m["content"].casefold().split())) for m in messages if m["role"] != "system")


def _notes(train: Sequence[Demonstration], bad: Sequence[BadRow], aside: int) -> Iterator[str]:
    steps = sum(bool(demo.rollout.step_rewards) for demo in train)
    turns = sum(len(demo.rollout.turns) for demo in train)
    tokens = sum(demo.rollout.trained_tokens for demo in train)
    marked = f"; {steps} have annotated steps" if steps else ""
    count = counted(len(train), "conversation")
    yield f"{count} to imitate, {counted(turns, 'turn')} of the assistant with {tokens:,} tokens{marked}"
    if aside:
        yield f"{counted(aside, 'conversation')} set aside for the held-out loss (sft.heldout_share)"
    if bad:
        yield f"{counted(len(bad), 'bad row')} left out; first: {bad[0].source} row {bad[0].row} {bad[0].reason}"


def _set_aside(
    rows: Sequence[Demonstration], share: float, seed: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """The rows to train on, and those of a share of the prompts: all answers to a prompt stay together."""
    by_key: dict[ConversationKey, list[Demonstration]] = {}
    for row in rows:
        by_key.setdefault(_key(row.prompt.messages), []).append(row)
    count = max(1, round(share * len(by_key))) if share and len(by_key) > 4 else 0
    order = generator("heldout loss", seed).permutation(len(by_key))[:count]
    keys = list(by_key)
    chosen = {keys[index] for index in order}
    train = [row for row in rows if _key(row.prompt.messages) not in chosen]
    return train, [row for key in keys if key in chosen for row in by_key[key]]


def _of_source(source: Source, reading: _Reading, *, strict: bool) -> Iterator[Demonstration]:
    """Conversations of a source; `strict` counts rows that are none as bad."""
    if isinstance(source, ReasoningGymSource):
        if strict:
            raise DataError(
                f"data.train has the generator {source.name!r}, whose items hold no answers to imitate; give a file of "
                "conversations, or train with GRPO (`coterie train`)"
            )
        return
    name, task = source_names(source)
    notes = SourceNotes(name, source.column_names)
    bad: list[BadRow] = []
    columns: list[str] = []
    total = 0
    for row in islice(source_rows(source, notes), source.limit):
        total += 1
        reading.told(total)
        try:
            if row.data is None:
                raise BadRowError(row.problem)
            columns = columns or column_paths([row.data])
            conversation = read_conversation(
                row.data,
                source.column_names,
                reading.settings,
                instruction=source.instruction,
                system=reading.data.system,
            )
            yield _tokenized(conversation, source, name, task, row.number, reading)
        except BadRowError as error:
            bad.append(BadRow(source=name, row=row.number, reason=str(error)))
    if strict:
        check_share(name, columns, bad, total, reading.data.max_bad_share)
        reading.bad += bad


def _tokenized(
    conversation: Conversation, source: Source, name: str, task: str, row: int, reading: _Reading
) -> Demonstration:
    """The conversation as turns, each with its exact prompt.

    Raises:
        BadRowError: the template refuses it, or it is too long.
    """
    try:
        turns = _turns(conversation, reading.chat, reading.settings.turns)
    except DataError as error:
        raise BadRowError(f"cannot be rendered: {error}") from error
    length = len(turns[-1].prompt_tokens) + len(turns[-1].tokens)
    if length > reading.settings.max_tokens:
        raise BadRowError(
            f"has {length} tokens, more than sft.max_tokens = {reading.settings.max_tokens}; nothing is cut: raise it, "
            "or leave the row out"
        )
    first = conversation.turns(reading.settings.turns)[0]
    local = next(local for local in _names(conversation.id, row) if f"{task}/{local}" not in reading.ids)
    reading.ids.add(f"{task}/{local}")
    prompt = Prompt(
        id=f"{task}/{local}",
        messages=conversation.messages[:first],
        answer=conversation.answer,
        task=task,
        source=f"{source.type}:{Path(name).name if isinstance(source, FileSource) else name}",
    )
    rollout = _rollout(prompt, conversation, turns)
    if conversation.steps:
        rollout = _with_step_ends(rollout, conversation.steps, reading.chat)
    return Demonstration(prompt=prompt, rollout=rollout, source=name, row=row)


def _names(own_id: str | None, row: int) -> Iterator[str]:
    if own_id is not None:
        yield own_id
    yield str(row)
    number = 1
    while True:
        number += 1
        yield f"{row}.{number}"


def _turns(conversation: Conversation, chat: Chat, which: str) -> list[Turn]:
    """Each imitated turn behind the exact tokens of all that came before."""
    turns: list[Turn] = []
    tokens: list[int] = []
    after = 0
    for index in conversation.turns(which):
        before = conversation.messages[:index]
        if turns:
            tokens += chat.render_continuation(conversation.messages[after:index], turns[-1].tokens)
        else:
            tokens = chat.render(before)
        spoken = turn_tokens(chat, before, conversation.messages[index]["content"])
        turns.append(
            Turn(
                prompt_tokens=tuple(tokens),
                tokens=tuple(spoken),
                sampler_logprobs=(0.0,) * len(spoken),
                temperature=1.0,
                stop_reason=StopReason.STOP,
                version=0,
            )
        )
        tokens += spoken
        after = index + 1
    return turns


def _rollout(prompt: Prompt, conversation: Conversation, turns: Sequence[Turn]) -> Rollout:
    return Rollout(
        id=prompt.id,
        sample=0,
        turns=tuple(turns),
        completion=conversation.messages[-1]["content"],
        messages=conversation.messages if len(turns) > 1 else (),
        reward=None,
        reward_parts={},
        outcome=Outcome.OK,
        context=Context(
            prompt_id=prompt.id,
            task=prompt.task,
            difficulty=None,
            source=prompt.source,
            version=0,
            prompt_length=len(turns[0].prompt_tokens),
            completion_length=sum(len(turn.tokens) for turn in turns),
            stop_reason=StopReason.STOP,
        ),
    )


def _with_step_ends(rollout: Rollout, steps: Sequence[str], chat: Chat) -> Rollout:
    """The rollout with the last token of each annotated step; without where the tokenizer changes their text."""
    texts = [chat.decode(turn.tokens) for turn in rollout.turns]
    try:
        ends = [sum(map(len, texts[:-1])) + end for end in step_ends(texts[-1], steps)]
    except BadRowError:
        return rollout
    tokens = token_ends([turn.tokens for turn in rollout.turns], ends, chat.decode)
    return replace(rollout, step_rewards=tuple(StepReward(end=end, value=1.0, label=STEP) for end in tokens))
