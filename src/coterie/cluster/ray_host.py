"""A host whose services are Ray actors: where they are placed, what they are asked, and how lost ones are noticed."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coterie.cluster.hosts import POLITE_S, Host, LostError, UnplacedError, WeightMemory, with_last_line
from coterie.cluster.ray_actor import ServiceActor
from coterie.cluster.ray_session import RaySession, session_for
from coterie.errors import EngineError
from coterie.policy.shared_memory import SharedWeights
from coterie.text import one_line

if TYPE_CHECKING:
    from torch import Tensor

_DETAIL = re.compile(r"exit detail: (.+?)(?: Some common|\s\s|$)", re.DOTALL)
"""In Ray's text about a dead actor."""


class StoredWeights:
    """Weights in Ray's object store: written once a version, read by each actor into memory of its own."""

    def __init__(self, session: RaySession, weights: Mapping[str, Tensor]) -> None:
        self._session, self._draft = session, SharedWeights.of(weights)
        self.number = 0
        """Times that weights were written."""
        self.reference: Any = None
        """Of Ray, to the bytes of the last ones."""

    @property
    def arguments(self) -> dict[str, Any]:
        return {"slots": self._draft.slots}

    @property
    def files(self) -> Sequence[int]:
        return ()

    def write(self, weights: Mapping[str, Tensor]) -> None:
        self._draft.write(weights)
        try:
            self.reference = self._session.ray.put(np.frombuffer(self._draft.content, dtype=np.uint8))
        except self._session.ray.exceptions.RayError as error:
            raise EngineError(
                f"Ray's object store has no room for {len(self._draft.content)} bytes of weights: "
                f"{one_line(str(error), 300)}; free memory and disk"
            ) from error
        self.number += 1

    def close(self) -> None:
        self.reference = None
        self._draft.close()


@dataclass(kw_only=True, eq=False)
class RayHost(Host):
    """Services in Ray actors, each in a bundle of one placement group; they end with the run.

    Args:
        address: of the cluster; empty for a Ray of its own on this machine.
        names: of all services, in the order of their bundles.
        resources: of each actor, by Ray's names, e.g. `{"CPU": 1}`.
        placement: strategy of the placement group.
        total: CPUs that a Ray of its own offers: of all services of the run.
        logs: folder of the services' output, `NAME.log`, where their node sees it; None leaves it to Ray.
        start_s: seconds until a service must have been placed.
    """

    address: str
    names: Sequence[str]
    resources: Mapping[str, float]
    total: int
    placement: str = "PACK"
    logs: Path | None = None
    start_s: float = 600.0
    _session: RaySession | None = None
    _group: Any = None
    """The placement group, once the first service is started."""

    def start(self, name: str, order: Mapping[str, Any], memory: WeightMemory | None = None) -> RayService:
        session = self._connected()
        ray = session.ray
        if self._group is None:
            bundles = [dict(self.resources) for _ in self.names]
            self._group = ray.util.placement_group(bundles, strategy=self.placement)
        actor = (
            ray.remote(ServiceActor)
            .options(
                num_cpus=self.resources.get("CPU", 0),
                num_gpus=self.resources.get("GPU", 0),
                scheduling_strategy=session.bundle(self._group, list(self.names).index(name)),
                max_restarts=0,  # a new one would have no weights, and no rank
                max_task_retries=0,
                runtime_env={"env_vars": self._variables()},
            )
            .remote()
        )
        log = "" if self.logs is None else str((self.logs / f"{name}.log").absolute())
        service = RayService(name=name, session=session, actor=actor, memory=memory, log=log, asks=self._asks())
        service.begin(order, self.start_s)
        return service

    def memory(self, weights: Mapping[str, Tensor]) -> WeightMemory:
        return StoredWeights(self._connected(), weights)

    @property
    def meeting(self) -> str:
        session = self._connected()
        return "" if session.started_here else session.node_address()

    def close(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        if self._group is not None:
            with suppress(Exception):  # the cluster may be gone
                session.ray.util.remove_placement_group(self._group)
            self._group = None
        session.release()

    def _connected(self) -> RaySession:
        if self._session is None:
            self._session = session_for(self.address, self.total)
        return self._session

    def _variables(self) -> dict[str, str]:
        """The environment of a service beside that of its node."""
        threads = str(max(1, int(self.resources.get("CPU", 1))))
        variables = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        if path := os.environ.get("PYTHONPATH"):
            variables["PYTHONPATH"] = path
        return variables

    def _asks(self) -> str:
        return f"{words_of(self.resources)} for each of {', '.join(self.names)} ({self.placement})"


@dataclass(kw_only=True, eq=False)
class RayService:
    """A service in a Ray actor."""

    name: str
    session: RaySession
    actor: Any
    memory: WeightMemory | None
    log: str
    """File with what it prints, where its node sees the folder; empty: in Ray's own logs."""
    asks: str
    """What its placement group asks for, in words."""
    place: dict[str, Any] | None = None
    """Where it is, once it has been placed."""
    _placed: Any = None
    _start_s: float = 0.0
    _answers: deque[Any] = field(default_factory=deque)
    """Ray's references to answers that have not been read, the oldest first."""
    _written: int = 0
    """Weights that it has been sent, by their number."""

    def begin(self, order: Mapping[str, Any], start_s: float) -> None:
        """Ask Ray to place it, and it to build what the order says."""
        self._placed = self.actor.place.remote({"folder": os.getcwd(), "log": self.log})
        self._start_s = start_s
        self._answers.append(self.actor.begin.remote(json.dumps(order)))

    def send(self, message: Mapping[str, Any], seconds: float) -> None:
        weights, memory = (), self.memory
        if isinstance(memory, StoredWeights) and memory.number != self._written:
            weights, self._written = (memory.reference,), memory.number
        try:
            self._answers.append(self.actor.answer.remote(json.dumps(message), *weights))
        except self.session.ray.exceptions.RayError as error:
            raise LostError(self._told(_cause(error))) from error

    def receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        if self.place is None:
            self._await_place()
        text = self._result(self._answers[0], seconds, max(0.0, deadline - time.monotonic()))
        self._answers.popleft()
        return json.loads(text)

    def kill(self) -> None:
        self._answers.clear()
        with suppress(Exception):  # Ray may be gone, or the actor dead
            self.session.ray.kill(self.actor, no_restart=True)
        if self.session.started_here and self.place is not None:
            kill_worker(self.place["pid"])  # one that is frozen does not hear Ray

    def close(self) -> None:
        with suppress(Exception):
            self.session.ray.get(self.actor.end.remote(), timeout=POLITE_S)
        self.kill()

    def _await_place(self) -> None:
        """Wait until it runs on a node.

        Raises:
            UnplacedError: no node had room in time.
            LostError: it died before it said where it is.
        """
        try:
            self.place = self._result(self._placed, self._start_s, self._start_s)
        except LostError as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
            raise UnplacedError(
                f"Ray placed {self.name} on no node within {self._start_s:g} s: the run asks for {self.asks}, and the "
                f"cluster has {self._has()}; lower cluster.threads, engine.replicas or cluster.learners, add nodes, "
                "or raise cluster.start_s"
            ) from error
        assert self.place is not None
        if self.log and not self.place["logs"]:
            with suppress(OSError):
                Path(self.log).write_text(
                    f"{self.name} runs on {self.place['host']} (process {self.place['pid']}), which does not see this "
                    "folder; Ray keeps what it prints there\n"
                )

    def _has(self) -> str:
        ray = self.session.ray
        with suppress(Exception):
            free, all_of = ray.available_resources(), ray.cluster_resources()
            kinds = [kind for kind in ("CPU", "GPU") if all_of.get(kind)]
            words = ", ".join(f"{kind} {all_of[kind]:g} ({free.get(kind, 0):g} free)" for kind in kinds)
            return f"{words or 'neither CPUs nor GPUs'} on {len(ray.nodes())} nodes"
        return "no answer to give"

    def _result(self, reference: Any, limit: float, seconds: float) -> Any:
        """What a call returned.

        Args:
            limit: seconds that are told of.
            seconds: that are left of them.

        Raises:
            LostError: the actor died, or did not answer in time.
        """
        exceptions = self.session.ray.exceptions
        try:
            return self.session.ray.get(reference, timeout=seconds)
        except exceptions.GetTimeoutError as error:
            raise LostError(self._told(f"did not answer within {limit:g} s")) from TimeoutError(str(error))
        except exceptions.RayError as error:
            raise LostError(self._told(_cause(error))) from error

    def _told(self, cause: str) -> str:
        with suppress(OSError), open(self.log, "rb") as output:
            return with_last_line(cause, output)
        return cause


def _cause(error: Exception) -> str:
    """What Ray says of a lost actor, on one line."""
    text = str(error)
    detail = _DETAIL.search(text)
    return f"was lost by Ray ({type(error).__name__}: {one_line(detail[1] if detail else text, 200)})"


def words_of(resources: Mapping[str, float]) -> str:
    """Resources in words.

    >>> words_of({"CPU": 2, "GPU": 0.5})
    'CPU 2, GPU 0.5'
    """
    return ", ".join(f"{kind} {number:g}" for kind, number in resources.items())


def kill_worker(pid: int) -> None:
    """Kill a worker process of Ray on this machine; another process that has its number by now is left alone."""
    if sys.platform == "linux":
        with suppress(OSError):
            if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
