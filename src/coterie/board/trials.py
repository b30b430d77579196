"""Trials of the board: a queue of requests, and the process with a model that answers them one at a time.

The model is loaded with the first request for a checkpoint, in a process of its own, and freed with that process: when
another checkpoint is asked for, when nothing was asked for a while, and with the board.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from subprocess import PIPE
from typing import Any

from coterie.board.trial_request import TrialRequest
from coterie.errors import RunError
from coterie.runs import checkpoint
from coterie.text import safe_text

WAITING = 4
"""Trials that may wait beside the one that is answered."""
KEPT = 32
"""Trials whose answers are kept to be asked for."""
IDLE_S = 180.0
"""After which the model is freed."""
LONGEST_S = 900.0
"""Of one trial, with the loading of both models."""
GRACE_S = 10.0
"""In which a trial that was called off must end before its process is ended; loading cannot be interrupted."""
COMMAND = (sys.executable, "-m", "coterie.inference.trial")


class FullError(RunError):
    """Too many trials wait."""


@dataclass(slots=True, kw_only=True)
class Trial:
    """A request and what came of it so far."""

    id: str
    request: TrialRequest
    folder: Path
    step: int
    state: str = "waiting"
    """waiting, loading, sampling, done, failed or cancelled"""
    note: str = ""
    """What is being done, or what the answers lack."""
    error: str = ""
    sides: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """Side → sample → the answer, as far as it has come."""
    ended: bool = False
    off: bool = False
    """The user called it off."""

    def take(self, event: Mapping[str, Any]) -> None:
        """Record an event of the process."""
        kind = event.get("kind")
        if kind in ("progress", "note"):
            self.note = safe_text(str(event["text"]))
        elif kind == "sampled":
            self.state = "sampling"
            growing = {name: event[name] for name in ("sample", "turn", "text", "tokens")}
            self.sides.setdefault(event["side"], {})[event["sample"]] = growing
        elif kind == "answers":
            self.sides[event["side"]] = {answer["sample"]: answer | {"whole": True} for answer in event["answers"]}
        elif kind in ("done", "failed", "cancelled"):
            self.end(kind, str(event.get("error", "")))

    def end(self, state: str, error: str = "") -> None:
        self.state, self.error, self.ended = state, safe_text(error), True

    def plain(self, place: int) -> dict[str, Any]:
        """The trial as JSON-able data.

        Args:
            place: in the queue, from 1; 0 for one that does not wait.
        """
        return {
            "id": self.id,
            "run": self.request.run,
            "step": self.step,
            "state": self.state,
            "place": place,
            "note": self.note,
            "error": self.error,
            "sides": {side: [answers[key] for key in sorted(answers)] for side, answers in self.sides.items()},
        }


class Trials:
    """Trials one at a time, in the order in which they were asked for.

    Args:
        idle_s: seconds without a trial after which the model is freed.
    """

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self.idle_s = idle_s
        self._trials: OrderedDict[str, Trial] = OrderedDict()
        self._queue: deque[Trial] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._process: _Process | None = None
        self._thread = threading.Thread(target=self._run, name="coterie-trials", daemon=True)
        self._thread.start()

    def submit(self, request: TrialRequest, folder: Path) -> dict[str, Any]:
        """Queue a trial; returns it as `find` does.

        Raises:
            RunError: the run has no such checkpoint.
            FullError: too many wait.
        """
        steps = checkpoint.steps(folder / "checkpoints")
        if not steps:
            raise RunError(f"{folder.name} has no checkpoint yet: a model can be tried once one is saved")
        step = steps[-1] if request.checkpoint is None else request.checkpoint
        if step not in steps:
            raise RunError(f"{folder.name} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
        with self._changed:
            if len(self._queue) >= WAITING:
                raise FullError(f"{len(self._queue)} trials wait already; ask again when one has ended")
            trial = Trial(id=secrets.token_hex(8), request=request, folder=folder, step=step)
            self._trials[trial.id] = trial
            while len(self._trials) > KEPT + WAITING:
                self._trials.popitem(last=False)
            self._queue.append(trial)
            self._changed.notify()
        return self.find(trial.id)

    def find(self, name: str) -> dict[str, Any]:
        """A trial as it stands.

        Raises:
            RunError: there is none of that id, or it is long past.
        """
        with self._changed:
            trial = self._trials.get(name)
            if trial is None:
                raise RunError("there is no such trial; the newest are kept as long as the board runs")
            return trial.plain(self._queue.index(trial) + 1 if trial in self._queue else 0)

    def cancel(self, name: str) -> dict[str, Any]:
        """Call a trial off; nothing where it has ended."""
        with self._changed:
            trial = self._trials.get(name)
            if trial is not None and not trial.ended:
                trial.off = True
                if trial in self._queue:
                    self._queue.remove(trial)
                    trial.end("cancelled")
        return self.find(name)

    def stop(self) -> None:
        """End the process, and with it what is being answered."""
        with self._changed:
            self._stopped = True
            for trial in self._trials.values():
                trial.off = True
            self._changed.notify()
        process = self._process
        if process is not None:
            process.end()
        self._thread.join(timeout=15)

    def _run(self) -> None:
        try:
            while (trial := self._next()) is not None:
                try:
                    self._answer(trial)
                except OSError as error:  # the process ended while it was written to
                    self._free()
                    trial.end("failed", f"the process with the model ended: {error}")
        finally:
            self._free()

    def _next(self) -> Trial | None:
        """The next trial; the model is freed while none comes. None at the end."""
        with self._changed:
            while not self._queue and not self._stopped:
                if not self._changed.wait(self.idle_s if self._process is not None else None):
                    self._free()
            return None if self._stopped else self._queue.popleft()

    def _answer(self, trial: Trial) -> None:
        place = (trial.folder, trial.step)
        if self._process is not None and (self._process.place != place or not self._process.alive):
            self._free()
        process = self._process = self._process or _Process(place)
        trial.state = "loading"
        process.say(trial.request.model_dump(mode="json"))
        deadline = time.monotonic() + LONGEST_S
        called_off = False
        while not trial.ended:
            if trial.off and not called_off:
                called_off, deadline = True, min(deadline, time.monotonic() + GRACE_S)
                process.say({"cancel": trial.id})
            event = process.event(0.2)
            with self._changed:
                if event is not None:
                    trial.take(event)
                elif not process.alive:
                    trial.end("cancelled" if trial.off else "failed", process.last_words())
                elif time.monotonic() > deadline:
                    self._free()
                    trial.end("cancelled" if trial.off else "failed", f"no answer within {LONGEST_S:g} s")

    def _free(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


class _Process:
    """The process with the models of one checkpoint and its base."""

    def __init__(self, place: tuple[Path, int]) -> None:
        self.place = place
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        command = [*COMMAND, str(place[0]), str(place[1])]
        self._process = subprocess.Popen(
            command, stdin=PIPE, stdout=PIPE, stderr=self._errors, text=True, start_new_session=True
        )
        self._events: Queue[dict[str, Any]] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def say(self, line: Mapping[str, Any]) -> None:
        """Send a line.

        Raises:
            OSError: it has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def event(self, seconds: float) -> dict[str, Any] | None:
        """The next event; None where none comes within these seconds."""
        try:
            return self._events.get(timeout=seconds)
        except Empty:
            return None

    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        self._errors.seek(0)
        words = self._errors.read()[-2000:].decode(errors="replace").strip()
        return f"the process with the model ended with {self._process.returncode}: {words or 'it said nothing'}"

    def end(self) -> None:
        """End it, and free its memory."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it and close its pipes."""
        self.end()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(OSError):  # what was not sent any more
                    stream.close()
