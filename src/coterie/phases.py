"""Parts of a step, and their seconds: added up where they are spent, read by the loop.

One object for the process: the engine, the learner and the grouping know nothing of each other, and what they spend
belongs to the step that is going on.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

REST = "rest"


@dataclass(frozen=True, slots=True)
class Part:
    """A metric below `time/`, and the parts that it consists of; what they leave is its rest."""

    name: str
    heading: str
    parts: tuple[Part, ...] = ()

    def names(self) -> Iterator[str]:
        """Metrics of this part and of those within it."""
        yield self.name
        for part in self.parts:
            yield from part.names()

    def paths(self, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        """Headings from the step down, of this part, of those within it, and of its rest."""
        path = (*above, self.heading)
        yield path
        for part in self.parts:
            yield from part.paths(path)
        if self.parts:
            yield (*path, REST)

    def spent(self, seconds: Mapping[str, float], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], float]:
        """Path → seconds, as far as they were recorded."""
        if self.name not in seconds:
            return {}
        path = (*above, self.heading)
        spent = {path: seconds[self.name]}
        for part in self.parts:
            spent |= part.spent(seconds, path)
        within = [seconds[part.name] for part in self.parts if part.name in seconds]
        if within:
            spent[*path, REST] = max(0.0, seconds[self.name] - sum(within))
        return spent


GENERATE = Part(
    "generate",
    "generate",
    (Part("prefill", "prefill"), Part("decode", "decode"), Part("environment_wait", "wait for environments")),
)
UPDATE = Part(
    "update",
    "update",
    (
        Part("advantage", "advantage, packing"),
        Part("score", "old log-probs"),
        Part("gradient", "forward, backward"),
        Part("optimizer", "optimizer"),
    ),
)
STEP = Part("step", "step", (Part("collect", "collect", (GENERATE, Part("reward", "reward"))), UPDATE))
EMBED = Part("embed", "embedding of prompts")
"""Within `collect` or `update`, whichever saw a prompt first."""
PATHS = (*STEP.paths(), *EMBED.paths())


class Seconds(NamedTuple):
    """Seconds of the clock, and of the processors: of all threads of this process, and of no other process.

    A program beside this one adds to the first, hardly to the second: runs with one thread compare by it on a machine
    that others use.
    """

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Seconds:
        """As of this moment; only differences mean anything."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, before: Seconds) -> Seconds:
        """From `before` until this moment."""
        return Seconds(self.wall - before.wall, self.cpu - before.cpu)


class Phases:
    """Seconds by part, since the process started.

    On CUDA, where kernels run behind the calls, a part has the seconds of its calls alone.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, Seconds] = {}

    @contextmanager
    def measure(self, part: str) -> Generator[None]:
        """Add the seconds that the context takes to those of `part`."""
        began = Seconds.now()
        try:
            yield
        finally:
            spent, so_far = Seconds.now().since(began), self._seconds.get(part, Seconds(0.0, 0.0))
            self._seconds[part] = Seconds(so_far.wall + spent.wall, so_far.cpu + spent.cpu)

    def read(self) -> dict[str, Seconds]:
        """Seconds of each part so far."""
        return dict(self._seconds)

    def since(self, before: Mapping[str, Seconds]) -> dict[str, Seconds]:
        """Seconds of each part since `read` gave `before`.

        >>> phases = Phases()
        >>> before = phases.read()
        >>> with phases.measure("decode"):
        ...     pass
        >>> list(phases.since(before))
        ['decode']
        """
        none = Seconds(0.0, 0.0)
        spent = {part: seconds.since(before.get(part, none)) for part, seconds in self._seconds.items()}
        return {part: seconds for part, seconds in spent.items() if seconds.wall > 0}


PHASES = Phases()
"""Those of this process."""
