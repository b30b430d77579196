"""How many threads do the maths, and how they wait for each other. No torch: this is decided before it is loaded.

torch's wheels for Linux do their sums with GNU OpenMP, which reads its environment once, when torch is loaded. A thread
that has nothing to do first spins for a while, then sleeps: spinning answers sooner, sleeping leaves the core to
others. Which is better depends on the machine and on what else runs there: `coterie bench --threads` measures it.
GOMP_SPINCOUNT and OMP_WAIT_POLICY: https://gcc.gnu.org/onlinedocs/libgomp/Environment-Variables.html
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal

from coterie import machine

COUNT = "OMP_NUM_THREADS"
WAITING: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin-1000": {"GOMP_SPINCOUNT": "1000"},
    "spin-20000": {"GOMP_SPINCOUNT": "20000"},
    "spin-1000000": {"GOMP_SPINCOUNT": "1000000"},
    "active": {"OMP_WAIT_POLICY": "active"},
}
"""Wait policy → the environment that asks for it. `default` is libgomp's own, 300,000 spins; `passive` sleeps at once;
`active` hardly ever sleeps."""
_OTHERS = ("KMP_BLOCKTIME",)
"""Said to another OpenMP; whoever sets it has made up their mind too."""
VARIABLES = tuple(dict.fromkeys(name for settings in WAITING.values() for name in settings)) + _OTHERS
"""What decides how threads wait; none is touched once the user has set any of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """What a measurement says for machines of one size."""

    cores: int
    """For machines with up to this many physical cores."""
    spare: int
    """Cores left to everybody else."""
    waiting: str
    """Key of `WAITING`."""
    because: str
    """The figures, in words."""


DEFAULTS: tuple[Default, ...] = (
    Default(
        cores=2,
        spare=0,
        waiting="default",
        because="on two quiet cores it decoded 1,333 tokens a second, sleeping at once 925, spinning briefly 1,181, "
        "and reward workers did not slow it",
    ),
    Default(
        cores=1 << 16, spare=0, waiting="default", because="no other policy has been measured to be better in general"
    ),
)
"""By number of cores, smallest first; the first that fits is taken. From `coterie bench --threads`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was decided, and why."""

    count: int
    """Threads of the maths."""
    cores: int
    """Physical cores that this process may use."""
    waiting: str
    """Key of `WAITING`, or the variables as they stand in the environment."""
    source: Literal["measured", "environment", "late", "runtime"]
    """measured: by `DEFAULTS`; environment: the user's variables; late: `prepare` was not called, or too late; runtime:
    no GNU OpenMP on this system, so nothing is set."""
    because: str

    def line(self) -> str:
        """One sentence for people."""
        cores = "core" if self.cores == 1 else "cores"
        return f"{self.count} of {self.cores} physical {cores}, wait policy {self.waiting}, because {self.because}"


_set: dict[str, str] = {}
"""What `prepare` put into this process's environment."""
_done = False
"""Whether `prepare` was in time."""


def count(configured: int = 0, environ: Mapping[str, str] | None = None) -> int:
    """Threads of the maths: the setting if it is not 0, else OMP_NUM_THREADS, else the measured default; at least 1."""
    if configured:
        return configured
    seen = machine.cores()
    return _users_count(os.environ if environ is None else environ) or max(1, seen - _default(seen).spare)


def prepare(environ: MutableMapping[str, str] | None = None) -> None:
    """Set how OpenMP threads wait, where the user has not. To be called before torch is first imported.

    The program `coterie` does so itself. Who uses coterie as a library calls it before the first import of torch:

        from coterie import threads
        threads.prepare()
        import torch

    Calling it again, or too late, changes nothing; `choice` then says so. Processes started later inherit what was set,
    unless they are given `clean_environment()`.

    Args:
        environ: the process's own environment when None.
    """
    global _done
    environ = os.environ if environ is None else environ
    if _done or not _gnu_openmp() or _users(environ) or "torch" in sys.modules:
        return
    wanted = WAITING[_default(machine.cores()).waiting]
    _done = True
    environ.update(wanted)
    _set.update(wanted)


def choice(configured: int = 0, environ: Mapping[str, str] | None = None) -> Choice:
    """What holds in this process, after `prepare`.

    Args:
        configured: the setting `threads`; 0 = coterie chooses.
        environ: the process's own environment when None.
    """
    environ = os.environ if environ is None else environ
    seen = machine.cores()
    number, users = count(configured, environ), _users(environ)
    default = _default(seen)
    if users:
        waiting = " ".join(f"{name}={value}" for name, value in users.items())
        source, because = "environment", "the environment says so"
    elif not _gnu_openmp():
        waiting, source, because = "default", "runtime", "torch brings no GNU OpenMP here, whose waiting could be set"
    elif WAITING[default.waiting] and not _done:
        waiting, source = "default", "late"
        because = "coterie.threads.prepare() was not called before the first import of torch"
    else:
        waiting, source, because = default.waiting, "measured", default.because
        settings = " ".join(f"{name}={value}" for name, value in WAITING[waiting].items())
        waiting += f" ({settings})" if settings else ""
    if configured:
        because += "; the setting `threads` gives the number"
    elif _users_count(environ):
        because += f"; {COUNT} gives the number"
    return Choice(count=number, cores=seen, waiting=waiting, source=source, because=because)


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what `prepare` set: for programs that are to be measured as they come."""
    environ = os.environ if environ is None else environ
    return {name: value for name, value in environ.items() if _set.get(name) != value}


def _default(cores: int) -> Default:
    return next(default for default in DEFAULTS if cores <= default.cores)


def _users(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables about waiting that are set, and not by `prepare`."""
    found = {name: environ[name] for name in VARIABLES if environ.get(name)}
    return {name: value for name, value in found.items() if _set.get(name) != value}


def _users_count(environ: Mapping[str, str]) -> int:
    """OMP_NUM_THREADS may be a list by level of nesting: the first number counts."""
    written = re.match(r"\s*(\d+)", environ.get(COUNT, ""))
    return int(written.group(1)) if written else 0


def _gnu_openmp() -> bool:
    return sys.platform == "linux"
