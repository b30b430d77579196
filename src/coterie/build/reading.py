"""Inputs of a run: its tokenizer and every prompt or conversation, read and checked before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from coterie.callbacks import Callback
from coterie.config.data import Source
from coterie.config.objective import DistillConfig
from coterie.config.schema import RunConfig
from coterie.config.user_functions import search_in
from coterie.data import prompts
from coterie.data.chat import Chat, load_chat
from coterie.data.notes import Told
from coterie.data.order import PromptOrder
from coterie.data.prompts import BadRow, PromptSet
from coterie.data.tool_templates import equip
from coterie.engines.completion_client import CompletionClient
from coterie.engines.http_teacher import HttpTeacher
from coterie.envs.registry import environment_for
from coterie.envs.tool_use import ToolUse
from coterie.envs.trl_environment import TrlEnvironment
from coterie.errors import DataError, ModelError
from coterie.policy.device import device_named
from coterie.policy.embedding import Encoder, load_encoder
from coterie.runs import models
from coterie.runs.durable import json_dumps
from coterie.runs.models import Kind
from coterie.train.demonstrations import DemonstrationSet, read_demonstrations
from coterie.types import Prompt


def device_of(config: RunConfig) -> torch.device:
    """Device of the model; `auto` is the first CUDA device, else the CPU.

    Raises:
        ConfigError: torch cannot compute on it here.
    """
    return device_named(config.model.device)


def locate_model(
    name: str, callback: Callback, runs: Path = Path("runs"), revision: str | None = None, kind: Kind = "model"
) -> str:
    """Folder or hub id behind a model's name; an asset is fetched if need be.

    Raises:
        AssetError, ModelError, RunError: nothing is called so, or it cannot be had.
    """
    return models.locate(
        models.resolve(name, runs, kind),
        revision,
        note=lambda message: callback.on_event("progress", message),
        arrived=lambda what, done, total: callback.on_progress(f"{what} {name}", done, total, "bytes"),
    )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Tokenizer and prompts, read before anything is written: bad input leaves nothing behind."""

    source: str
    chat: Chat
    train: PromptSet
    heldout: PromptSet
    encoder: Encoder | None = None
    """Embeds the prompts, where it is not the policy that does."""
    demonstrations: DemonstrationSet | None = None
    """What supervised fine-tuning imitates, in place of training prompts."""
    teacher: str = ""
    """Folder, hub id or address of the teacher of a distillation."""
    reference: str = ""
    """The same of the KL's reference, where that is not the policy's start."""

    @property
    def task(self) -> str:
        """Task of the first item that is trained on."""
        items = self.train.prompts if self.demonstrations is None else [d.prompt for d in self.demonstrations.train]
        return items[0].task

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All of them, training prompts first."""
        return (*self.train.prompts, *self.heldout.prompts)

    @property
    def quarantined(self) -> tuple[BadRow, ...]:
        """Refused rows of all sources."""
        rows = () if self.demonstrations is None else self.demonstrations.quarantined
        return (*self.train.quarantined, *self.heldout.quarantined, *rows)

    def longest(self) -> int:
        """Tokens of the longest prompt."""
        sets = (self.train.token_ids, self.heldout.token_ids)
        return max((len(ids) for token_ids in sets for ids in token_ids.values()), default=0)

    def digest(self) -> str:
        """Hash of the prompts, as the model sees them, and of their gold answers."""
        digest = hashlib.sha256(self.chat.template_hash.encode())
        for source in (self.train, self.heldout):
            for prompt in source.prompts:
                digest.update(json_dumps([prompt.id, list(source.token_ids[prompt.id]), prompt.answer]).encode())
        for demonstration in () if self.demonstrations is None else self.demonstrations.everything:
            turns = [[list(turn.prompt_tokens), list(turn.tokens)] for turn in demonstration.rollout.turns[-1:]]
            digest.update(json_dumps([demonstration.prompt.id, turns]).encode())
        return digest.hexdigest()[:16]


READING = "reading and tokenizing the prompts"
"""Name of the activity."""


def _tell_rows(callback: Callback, rows: int) -> None:
    callback.on_progress(READING, rows, 0, "rows")


def read_inputs(config: RunConfig, callback: Callback, *, need_train: bool = True) -> Inputs:
    """Load the tokenizer and every prompt, rendered and checked.

    Raises:
        DataError: no training prompts, or too many bad rows, or the chat template does not do for the environment.
        ConfigError: there is no such environment, or it does not take its params.
    """
    search_in(config.module_path)
    source = locate_model(config.model.name, callback, Path(config.runs), config.model.revision)
    callback.on_progress("loading the tokenizer")
    chat = load_chat(source, config.model.revision, skip_special_tokens=config.sampling.skip_special_tokens)
    callback.on_progress(READING)
    told = partial(_tell_rows, callback)
    environment = environment_for(config.environment)
    if isinstance(environment, ToolUse | TrlEnvironment):
        chat = equip(chat, environment.schemas, environment.preamble, environment.role)
    if config.environment.talks:
        chat.check_turns()
    if config.sft is not None:
        heldout, rows = _load(config.data.heldout, config, chat, told, limit=config.eval.limit), None
        if need_train:
            rows = read_demonstrations(
                config.data, config.sft, chat, heldout=heldout.prompts, seed=config.seed, told=told
            )
        return Inputs(source=source, chat=chat, train=PromptSet.empty(), heldout=heldout, demonstrations=rows)
    train = _load(config.data.train, config, chat, told)
    if need_train:
        _check_enough(config, train)
    heldout = _load(config.data.heldout, config, chat, told, exclude=train, limit=config.eval.limit)
    if not need_train:
        return Inputs(source=source, chat=chat, train=train, heldout=heldout)
    taught = config.distill
    return Inputs(
        source=source,
        chat=chat,
        train=train,
        heldout=heldout,
        encoder=encoder_for(config, callback),
        teacher="" if taught is None else _teacher(taught, config, chat, callback),
        reference=beside(config.reference.model or "", "reference.model", config, chat, callback),
    )


def _teacher(taught: DistillConfig, config: RunConfig, chat: Chat, callback: Callback) -> str:
    """Folder, hub id or address of a teacher with the policy's tokenizer.

    Raises:
        CoterieError: see `beside`; a server is away, or spells tokens otherwise.
    """
    if taught.remote:
        remote_teacher(taught).require_tokenizer(chat.tokenizer)
        return taught.teacher
    return beside(taught.teacher, "distill.teacher", config, chat, callback)


def remote_teacher(taught: DistillConfig) -> HttpTeacher:
    """The teacher that a server holds.

    Raises:
        EngineError: the server is not there, or has no such model.
    """
    client = CompletionClient(
        base_url=taught.teacher,
        api_key_var=taught.api_key_var,
        timeout_s=taught.timeout_s,
        retry_s=taught.retry_s,
        setting="distill.teacher",
    )
    return HttpTeacher(client, taught.teacher_model)


def beside(name: str, setting: str, config: RunConfig, chat: Chat, callback: Callback) -> str:
    """Folder or hub id of a model that scores the policy's tokens, so it must have the same ones; empty without a name.

    Args:
        name: of the model.
        setting: that names it.

    Raises:
        AssetError, ConfigError, ModelError, RunError: nothing is called so, or it cannot be had.
        ModelError: its tokenizer is another one.
    """
    if not name:
        return ""
    source = locate_model(name, callback, Path(config.runs))
    theirs, ours = load_chat(source).tokenizer.get_vocab(), chat.tokenizer.get_vocab()
    if theirs == ours:
        return source
    id_ = min(number for _, number in set(ours.items()) ^ set(theirs.items()))
    there, here = (next((token for token, x in tokens.items() if x == id_), None) for tokens in (theirs, ours))
    raise ModelError(
        f"{setting} = {name!r} has another tokenizer than {config.model.name!r} ({len(theirs)} and {len(ours)} tokens; "
        f"token {id_} is {there!r} there and {here!r} here): its log-probs would be of other words. Take a model of "
        "the same family; a teacher of another one can be imitated: `coterie rejection` with it as the model, then "
        "`coterie sft`"
    )


def prompt_order(config: RunConfig, train: PromptSet) -> PromptOrder:
    """The endless stream of training prompts."""
    return PromptOrder(train.prompts, seed=config.seed, presence=train.presence, rehearsal=config.data.rehearsal)


def _check_enough(config: RunConfig, train: PromptSet) -> None:
    """Refuse fewer prompts than a step draws, all different, also where sources have left or not yet joined."""
    needed = config.collect.prompts_per_step
    order = prompt_order(config, train)
    for stage in order.stages:
        count = order.available(stage.start)
        if count < needed:
            when = f" after {stage.start} drawn ones" if stage.start else ""
            raise DataError(
                f"data.train has {count} usable prompts{when}, fewer than the {needed} that one step draws "
                '(collect.prompts_per_step); add a [[data.train]] source, e.g. type = "reasoning_gym", or draw fewer'
            )


def encoder_for(config: RunConfig, callback: Callback) -> Encoder | None:
    """The sentence encoder that the settings ask for.

    Raises:
        AssetError, ModelError: it cannot be had.
    """
    if config.grouping.preset == "prompt" or config.grouping.embedding in ("policy", "none"):
        return None
    source = locate_model(config.grouping.embedding, callback, kind="encoder")
    return load_encoder(source, device_of(config))


def _load(
    sources: Sequence[Source],
    config: RunConfig,
    chat: Chat,
    told: Told,
    *,
    exclude: PromptSet | None = None,
    limit: int | None = None,
) -> PromptSet:
    if not sources:
        return PromptSet.empty()
    return prompts.load(sources, config.data, chat, exclude or (), limit=limit, told=told)
