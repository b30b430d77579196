"""The process in which reward functions run: `python -m coterie.rewards.worker FD PARENT`.

It reads requests and writes replies, one line of JSON each, on the inherited socket FD, so that nothing a function
prints can damage them. PARENT is the process to die with, or 0. The functions may hang, crash or exit: whoever started
this process kills its whole group at the deadline. No torch, unless a function imports it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import inspect
import json
import linecache
import math
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Any

from coterie.config.user_functions import search_in, search_path
from coterie.errors import CoterieError, RewardError
from coterie.rewards import by_value
from coterie.rewards.base import EXTRA, IDS, METRIC, STATE, ContractError, check_steps, check_values
from coterie.rewards.registry import Part, load

LONGEST_MESSAGE = 500
"""Characters of an exception's own text that are reported."""
LOWEST = 19
"""Niceness of a worker: the lowest priority."""
_PR_SET_PDEATHSIG = 1


def main(channel: int, parent: int) -> None:
    """Serve the requests of a scorer."""
    parts: list[Part] = []

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal parts
        if "load" not in request:
            return run(parts[request["part"]], request)
        parts, reply = _load(request)
        lower_priority()  # not before: beside a busy program the imports alone would take a minute
        return reply

    serve(channel, parent, answer)


def serve(channel: int, parent: int, answer: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Answer requests until the other end closes; then end the whole process group."""
    isolate(channel, parent)
    pid, home = os.getpid(), os.getcwd()
    with open(channel, "rb", closefd=False) as requests:
        for line in requests:
            reply = answer(json.loads(line))
            _flush()  # what was printed is in the pipe before the reply is
            if os.getpid() != pid:  # a function forked, and its child came back instead of exiting
                os._exit(1)
            _send(channel, reply)
            with suppress(OSError):
                os.chdir(home)
    if os.getpgrp() == pid:
        os.killpg(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The part of transformers' `TrainerState` that has a meaning here."""

    global_step: int
    """Updates of the policy before these completions were sampled."""
    max_steps: int
    """Of the run; 0 where nothing is trained."""
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trainer_state has global_step and max_steps here, but no {name!r}")


class Logged:
    """Values that a function logs in a call.

    Args:
        rows: how many values a column has.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, float] = {}

    def log_extra(self, column: str, values: Any) -> None:
        """Store a value with each rollout."""
        listed = values.tolist() if hasattr(values, "tolist") else list(values)
        if not isinstance(listed, list) or len(listed) != self.rows:
            raise ValueError(f"log_extra({column!r}) got {len(listed)} values for {self.rows} completions")
        self.extra[str(column)] = json.loads(json.dumps(listed, allow_nan=False, default=str))

    def log_metric(self, name: str, value: float) -> None:
        """Record a number for this step."""
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"log_metric({name!r}) got {number}, expected a finite number")
        self.metrics[str(name)] = number


def run(part: Part, request: Mapping[str, Any]) -> dict[str, Any]:
    """Call one reward function on some rows.

    Args:
        request: `rows`, the `names` of their columns, in which `completions` and `prompts` are given, and the `state`
            of the trainer.

    Returns:
        `values`, by row `bad`, and what was logged; or `failed`, the cause, with `again`: whether scoring row by row
        can tell the guilty from the innocent.
    """
    rows = request["rows"]
    completions, logged = [row["completion"] for row in rows], Logged(len(rows))
    others = {
        IDS: [row.get("ids") for row in rows],
        STATE: TrainerState(**request["state"]),
        EXTRA: logged.log_extra,
        METRIC: logged.log_metric,
    }
    try:
        arguments = part.arguments(_columns(part, request), others)
    except RewardError as error:
        return {"failed": str(error), "again": False}
    try:
        returned = _awaited(part.function(**arguments))
    except BaseException as error:
        return {"failed": describe(error, _file(part.function)), "again": True}
    try:
        if part.steps:
            values, bad = check_steps(returned, completions)
        else:
            values, bad = check_values(returned, len(rows))
    except ContractError as error:
        # A single value for many rows would pass as the right number of values for each row alone.
        return {"failed": str(error), "again": error.count not in (None, 1)}
    reply = {"values": values, "bad": {str(row): cause for row, cause in bad.items()}}
    return reply | {"extra": logged.extra, "metrics": logged.metrics}


def _columns(part: Part, request: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is a list of one item a row."""
    rows = request["rows"]
    columns = {name: [row["columns"].get(name) for row in rows] for name in request["names"]}
    for name in rows[0]["gold"] if rows else ():
        # A built-in judge reads the gold answer; your own function the row's own column of that name, if it has one.
        columns[name] = [
            row["gold"][name] if part.built_in else row["columns"].get(name, row["gold"][name]) for row in rows
        ]
    columns |= {name: [row["own"][name] for row in rows] for name in rows[0]["own"]} if rows else {}
    columns["completions"] = [
        [{"role": "assistant", "content": row["completion"]}]
        if request["completions"] == "messages"
        else row["completion"]
        for row in rows
    ]
    columns["prompts"] = [
        row["prompt"] if request["prompts"] == "messages" else row["prompt"][-1]["content"] for row in rows
    ]
    return columns


def describe(error: BaseException, file: str | None) -> str:
    """`raised KeyError: 'x' (in my_rewards.py, line 12: return table[x])`: the deepest line in `file`, or of all."""
    try:
        message = str(error)
    except Exception:
        message = "…"
    if len(message) > LONGEST_MESSAGE:
        message = message[:LONGEST_MESSAGE] + "…"
    text = f"raised {type(error).__name__}" + (f": {message}" if message else "")
    if isinstance(error, SyntaxError) and error.filename:  # its text says file and line
        return text if not error.text else f"{text}: {error.text.strip()}"
    places = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)][1:]
    places = [place for place in places if not place[0].startswith("<frozen ")]
    user_places = [place for place in places if place[0] == file] or places
    if not user_places or isinstance(error, CoterieError):  # our own messages say all there is to say
        return text
    name, line = user_places[-1]
    source = linecache.getline(name, line).strip()
    return f"{text} (in {os.path.basename(name)}, line {line}{': ' if source else ''}{source})"


def _file(function: Callable[..., Any]) -> str | None:
    """Source file of a function, or of the class of a callable object."""
    plain = inspect.unwrap(function)
    written = plain if hasattr(plain, "__code__") else vars(type(plain)).get("__call__")
    return getattr(getattr(written, "__code__", None), "co_filename", None)


def _awaited(returned: object) -> object:
    """Result of a function, awaited if it is async."""
    if not inspect.isawaitable(returned):
        return returned

    import asyncio  # half of the start-up time, and few functions are async

    async def wait(awaitable: Awaitable[object]) -> object:
        return await awaitable

    return asyncio.run(wait(returned))


def _load(request: Mapping[str, Any]) -> tuple[list[Part], dict[str, Any]]:
    search_in(request["folders"])
    sys.path[:0] = search_path()
    sys.path += [folder for folder in request["path"] if folder not in sys.path]
    parts: list[Part] = []
    for spec in request["load"]:
        try:
            if "value" in spec:
                by_value.receive(spec["name"], spec["value"])
            parts.append(load(spec["name"], spec["params"], request["names"], steps=spec["steps"]))
        except CoterieError as error:
            return [], {"failed": str(error), "function": spec["name"]}
        except BaseException as error:
            cause = f"reward {spec['name']!r} cannot be imported: its module {describe(error, None)}"
            return [], {"failed": cause, "function": spec["name"]}
    return parts, {"loaded": [{"forms": part.forms(), "ids": part.asks_for(IDS)} for part in parts]}


def _send(channel: int, reply: Mapping[str, Any]) -> None:
    data = memoryview(json.dumps(reply).encode() + b"\n")
    while data:
        data = data[os.write(channel, data) :]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the function's own stream, or a closed one
            stream.flush()


def isolate(channel: int, parent: int) -> None:
    """Isolate the process: preferred by the out-of-memory killer, ended with its parent, its output line by line."""
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what is printed before a crash is not lost
            stream.reconfigure(line_buffering=True, errors="backslashreplace", encoding="utf-8")
    # A forked child of a function must not keep the channel open when this process dies.
    os.register_at_fork(after_in_child=lambda: os.close(channel))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def lower_priority() -> None:
    """Lower the scheduling priority, since the threads of tensor operations wait for the slowest of them.

    Nice 19 still gets a seventieth of a core that another thread uses, and all of an idle one; SCHED_IDLE would get a
    fifth of that beside threads that spin. SCHED_BATCH: waking up does not interrupt who runs. Children inherit both.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PGRP, 0, LOWEST)  # of the group: also of threads and children that an import started
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
