"""Trials: a prompt answered several times by a run's model at a checkpoint and by the model that the run started from,
each answer scored by the run's own reward functions.

`python -m coterie.inference.trial FOLDER STEP` is the process that the board starts for them: it reads a request a
line, writes an event a line, and ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from coterie.board.trial_request import SIDES, TrialRequest
from coterie.build.reading import locate_model, read_inputs
from coterie.build.run import collector_for, embedded_engine, policy_for, sampling_for, use_threads
from coterie.callbacks import Callback, ToStderr, printing_to
from coterie.config.load import load_file
from coterie.config.schema import RunConfig
from coterie.data.chat import Chat
from coterie.engines.base import Engine, Request, Sampling
from coterie.errors import CoterieError, DataError, RunError
from coterie.inference.heldout import with_model
from coterie.rewards.base import Score
from coterie.rewards.pool import Scorer
from coterie.text import safe_text
from coterie.types import Message, Prompt, Rollout, StopReason, Turn

EVERY = 0.25
"""Seconds between two reports of texts that grow."""
TIMEOUT_S = 240.0
"""Of the answers of one side."""
TYPED = "typed"
"""Id and source of a prompt that the user typed."""

Report = Callable[..., None]
"""Told the fields of an event."""


class TrialCancelledError(RunError):
    """The user called the trial off."""


class ReportedEngine(Engine):
    """An engine that tells what it sampled so far, and stops when a trial is called off.

    Args:
        report: told `sample`, `turn` and `text` of each open answer, a few times a second.
        cancelled: set to stop at the next token.
    """

    def __init__(self, engine: Engine, chat: Chat, report: Report, cancelled: threading.Event) -> None:
        self.engine, self.chat, self.report, self.cancelled = engine, chat, report, cancelled
        self._open: dict[int, Request] = {}
        self._told = 0.0

    @property
    def vocabulary(self) -> int:
        return self.engine.vocabulary

    @property
    def version(self) -> int:
        return self.engine.version

    @property
    def unfinished(self) -> int:
        return self.engine.unfinished

    def submit(self, request: Request, sampling: Sampling) -> int:
        number = self.engine.submit(request, sampling)
        self._open[number] = request
        return number

    def step(self) -> list[tuple[int, Turn]]:
        if self.cancelled.is_set():
            raise TrialCancelledError("the trial was called off")
        ended = self.engine.step()
        for number, turn in ended:
            self._tell(self._open.pop(number), turn.tokens)
        if time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            for number, request in self._open.items():
                self._tell(request, (self.engine.sampled(number, 0) or ([], []))[0])
        return ended

    def _tell(self, request: Request, tokens: Sequence[int]) -> None:
        text = safe_text(self.chat.decode(tokens))
        self.report(sample=request.key.sample, turn=request.key.turn, text=text, tokens=len(tokens))

    def abort(self, request: int, reason: StopReason = StopReason.ABANDONED) -> Turn | None:
        self._open.pop(request, None)
        return self.engine.abort(request, reason)

    def commit(self, version: int) -> None:
        self.engine.commit(version)

    def close(self) -> None:
        self.engine.close()


class UnscoredAnswers:
    """In place of the run's reward functions where they cannot be had: no answer gets a reward."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], **facts: Any) -> list[Score]:
        return [Score(reward=None, parts={}, error=None) for _ in completions]


class LoadedRun:
    """A run's model at a checkpoint with its prompts and rewards, and its base model once that is asked for.

    Args:
        folder: of the run.
        step: of the checkpoint.

    Raises:
        CoterieError: the checkpoint, the data or the model cannot be read.
    """

    def __init__(self, folder: Path, step: int, callback: Callback) -> None:
        self.callback = callback
        stored = load_file(folder / "config.toml").config
        self.base = stored.model_copy(update={"model": stored.model.model_copy(update={"lora": None})})
        config = with_model(stored, f"{folder}@{step}")
        # A failure is shown with its answer, and ends nothing.
        self.config = config.model_copy(update={"collect": config.collect.model_copy(update={"max_error_share": 1.0})})
        use_threads(self.config)
        self.inputs = read_inputs(self.config, callback, need_train=False)
        self.prompts = {prompt.id: prompt for prompt in self.inputs.prompts}
        self.scorer, self.note = self._scorer()
        self._engines: dict[str, Engine] = {}

    def _scorer(self) -> tuple[Scorer | UnscoredAnswers, str]:
        """The run's reward functions, or none and the reason: Python objects ended with their session."""
        self.callback.on_progress("loading the rewards")
        try:
            scorer = Scorer(self.config.rewards)
            scorer.start(self.inputs.prompts)
        except CoterieError as error:
            return UnscoredAnswers(), f"The answers have no rewards: {error}"
        return scorer, ""

    def engine(self, side: str) -> Engine:
        """The engine of a side, its model loaded when it is first asked."""
        if side not in self._engines:
            config, inputs = self.config, self.inputs
            if side == SIDES[1]:
                config = self.base
                runs, revision = Path(config.runs), config.model.revision
                inputs = replace(inputs, source=locate_model(config.model.name, self.callback, runs, revision))
            self.callback.on_progress("loading the model" if side == SIDES[0] else "loading the base model")
            self._engines[side] = embedded_engine(policy_for(config, inputs), inputs.chat, config, 0)
        return self._engines[side]

    def answer(self, request: TrialRequest, side: str, report: Report, cancelled: threading.Event) -> list[Rollout]:
        """The answers of one side, scored; both sides draw by the same random numbers.

        Raises:
            TrialCancelledError: it was called off meanwhile.
            CoterieError: there is no such prompt, or sampling failed.
        """
        prompt = self.prompt(request, side)
        engine = ReportedEngine(self.engine(side), self.inputs.chat, report, cancelled)
        config: RunConfig = self.config
        collector = collector_for(config, engine, self.inputs.chat, self.scorer, seed=request.seed)  # ty: ignore[invalid-argument-type]
        sampling = replace(
            sampling_for(config, request.temperature), max_tokens=request.max_tokens, timeout_s=TIMEOUT_S
        )
        with printing_to(ToStderr()):
            return list(collector.collect([prompt], samples=request.samples, sampling=sampling).rollouts)

    def prompt(self, request: TrialRequest, side: str) -> Prompt:
        """The prompt of the data that the request names, or the conversation that was typed for this side.

        Raises:
            DataError: the data has no such prompt.
        """
        if request.prompt:
            if request.prompt not in self.prompts:
                raise DataError(
                    f"the run's data has no prompt {request.prompt!r} any more; choose another, or type one"
                )
            return self.prompts[request.prompt]
        messages = [Message(role=item.role, content=item.content) for item in request.messages[side]]  # ty: ignore[invalid-argument-type]
        if self.config.data.system and messages[0]["role"] != "system":
            messages.insert(0, Message(role="system", content=self.config.data.system))
        task = next((prompt.task for prompt in self.inputs.prompts), TYPED)
        return Prompt(id=TYPED, messages=tuple(messages), answer=request.answer or None, task=task, source=TYPED)


def shown(rollout: Rollout) -> dict[str, Any]:
    """An answer as the page shows it."""
    return {
        "sample": rollout.sample,
        "text": safe_text(rollout.completion),
        "reward": rollout.reward,
        "parts": dict(rollout.reward_parts),
        "tokens": rollout.context.completion_length,
        "stop": str(rollout.stop_reason),
        "error": None if rollout.error is None else safe_text(rollout.error[:2000]),
        "messages": [
            {"role": message["role"], "content": safe_text(str(message.get("content") or ""))}
            for message in rollout.messages
        ],
    }


class _Progress(Callback):
    """Tells what is being loaded."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_progress(self, name: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        self.report(kind="progress", text=f"{name} {done} of {total} {unit}".strip() if total else name)


def _serve(folder: Path, step: int, lines: SimpleQueue[dict[str, Any]], report: Report, off: threading.Event) -> None:
    """Answer requests one after the other; what fails ends its trial and no other."""
    run: LoadedRun | None = None
    while True:
        line = lines.get()
        off.clear()
        try:
            request = TrialRequest.model_validate(line)
            run = run or LoadedRun(folder, step, _Progress(report))
            if run.note:
                report(kind="note", text=run.note)
            for side in request.sides:

                def sampled(side: str = side, **fields: Any) -> None:
                    report(kind="sampled", side=side, **fields)

                answers = run.answer(request, side, sampled, off)
                report(kind="answers", side=side, answers=[shown(rollout) for rollout in answers])
            report(kind="done")
        except TrialCancelledError:
            report(kind="cancelled")
        except CoterieError as error:
            report(kind="failed", error=str(error))
        except Exception as error:  # of a model or a tool: it is told, and the next trial may do better
            traceback.print_exception(error)
            report(kind="failed", error=f"{type(error).__name__}: {error}")


def main(folder: Path, step: int) -> None:
    """Serve the requests of standard input until it ends. What anything prints goes to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.nice(10)  # a training beside it goes first
    lines: SimpleQueue[dict[str, Any]] = SimpleQueue()
    off = threading.Event()

    def report(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    threading.Thread(target=_serve, args=(folder, step, lines, report, off), daemon=True).start()
    for text in sys.stdin:
        line: Mapping[str, Any] = json.loads(text)
        if "cancel" in line:
            off.set()
        else:
            lines.put(dict(line))
    os._exit(0)  # whoever asked is gone, however far a model has come


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
