"""Reward functions that misbehave in every way we could think of. Imported by worker processes only."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = os.getcwd()
CALLS = 0


class Tensor:
    """Looks like a tensor to a reader of its attributes."""

    def tolist(self):
        return [1.0]

    def item(self):
        return 1.0


BAD_RETURNS = {
    "none": lambda n: None,
    "number": lambda n: 1.0,
    "text": lambda n: "1" * n,
    "tensor": lambda n: Tensor(),
    "mapping": lambda n: dict.fromkeys(range(n), 1.0),
    "generator": lambda n: (1.0 for _ in range(n)),
    "empty": lambda n: [],
    "one": lambda n: [1.0],
    "short": lambda n: [1.0] * (n - 1),
    "long": lambda n: [1.0] * (n + 1),
}
BAD_VALUES = {
    "nan": float("nan"),
    "inf": float("inf"),
    "minus_inf": float("-inf"),
    "text": "1.0",
    "nested": [1.0],
    "tensor": Tensor(),
    "complex": 1j,
    "huge": 1e30,
    "huge_int": 10**400,
}


def bad_return(completions, kind):
    return BAD_RETURNS[kind](len(completions))


def bad_value(completions, kind):
    return [BAD_VALUES[kind] if "bad" in c else 1 for c in completions]


def good_values(completions):
    return [{"true": True, "false": False, "int": 3, "float": -0.5, "zero": -0.0, "none": None}[c] for c in completions]


def echo(prompts, completions, answer, task, scale=1.0, **columns):
    """Checks what it is given, so that a wrong call is an error."""
    assert all(isinstance(message, dict) for messages in prompts for message in messages)
    assert all(len(values) == len(completions) for values in columns.values()), columns
    return [scale * len(c) + (level or 0) for c, level in zip(completions, columns.get("level", answer), strict=True)]


def narrow(completions, level):
    return list(level)


def counts(completions):
    return [float(len(completions))] * len(completions)


def slow(completions):
    time.sleep(0.0015 * len(completions))
    return [1.0] * len(completions)


def hangs(completions):
    time.sleep(3600)


async def later(completions):
    await asyncio.sleep(0.001)
    return [float(len(c)) for c in completions]


def raises(completions):
    for completion in completions:
        if completion == "bad":
            raise KeyError(completion)
    return [1.0] * len(completions)


def raises_badly(completions):
    class RudeError(Exception):
        def __str__(self):
            raise RuntimeError

    raise RudeError


def recurses(completions):
    return recurses(completions)


def skips(completions):
    return [1.0 for c in completions if c != "bad"]


def act(completions):
    """Does the first named deed, then scores 1."""
    for completion in completions:
        if completion in DEEDS:
            DEEDS[completion]()
    return [1.0] * len(completions)


def sleep():
    time.sleep(3600)


def spin():
    while True:
        pass


def backtrack():
    re.match(r"(a+)+$", "a" * 60 + "b")


def stubborn():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sleep()


def flood():
    for _ in range(100):
        print("x" * 100_000)
    print("the end")


def leave():
    print("last words", flush=True)
    os._exit(7)


def crash():
    ctypes.string_at(0)


def wander():
    os.chdir("/")
    random.seed(0)
    os.environ["OMP_NUM_THREADS"] = "64"


def at_home(completions):
    """1 while the folder is the one that it was imported in."""
    return [float(os.getcwd() == HERE)] * len(completions)


def breed():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    Path("child.pid").write_text(str(child.pid))


def fork_and_die():
    child = os.fork()
    if child == 0:
        time.sleep(3600)
    Path("child.pid").write_text(str(child))
    os._exit(3)


def fork_and_return():
    os.fork()


def close_everything():
    os.closerange(0, 64)


def corrupt():
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"{ no json\n")
        except OSError:
            continue


DEEDS = {
    "sleep": sleep,
    "spin": spin,
    "backtrack": backtrack,
    "stubborn": stubborn,
    "flood": flood,
    "leave": leave,
    "crash": crash,
    "sys_exit": lambda: sys.exit(3),
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "wander": wander,
    "breed": breed,
    "fork_and_die": fork_and_die,
    "fork_and_return": fork_and_return,
    "close_everything": close_everything,
    "corrupt": corrupt,
}


class Estimator:
    """A callable object with a method, as users write them."""

    def __call__(self, completions):
        return [2.0 for _ in completions]

    def fail(self, completions):
        raise ValueError("no")


judge = Estimator()
not_callable = 3


def needs_solution(completions, solution):
    return [float(text == gold) for text, gold in zip(completions, solution, strict=True)]


def not_applicable(completions):
    return [None] * len(completions)
