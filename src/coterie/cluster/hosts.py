"""Hosts: where a service lives, and the handle of a service in a child process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from coterie.cluster.frames import BrokenStreamError, Frames
from coterie.errors import EngineError

if TYPE_CHECKING:  # a service without torch imports this module too
    from torch import Tensor

PACKAGE = Path(__file__).parents[2]
"""Folder that holds the package, for another interpreter than this one."""
POLITE_S = 5.0
"""In which a service that is asked to end may do so."""
_TOLD = 2000
"""Bytes at the end of a service's log in which its last line is looked for."""


class LostError(Exception):
    """The service died, or did not answer in time."""


class UnplacedError(EngineError):
    """Nothing had room for the service; another try would find none either."""


class Service(Protocol):
    """A process that answers messages, in their order."""

    def send(self, message: Mapping[str, Any], seconds: float) -> None:
        """Send a message, without waiting for its answer.

        Raises:
            LostError: it is dead, or does not read.
        """
        ...

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next answer.

        Raises:
            LostError: none came within so many seconds.
        """
        ...

    def kill(self) -> None:
        """End it at once; a dead one stays dead."""
        ...

    def close(self) -> None:
        """Ask it to end, and see that it does."""
        ...


class WeightMemory(Protocol):
    """Memory from which the services of a host read the weights."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What a service opens it with, JSON-able."""
        ...

    @property
    def files(self) -> Sequence[int]:
        """Descriptors that a service on this machine inherits for it."""
        ...

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Give the services these weights from their next message on.

        Raises:
            EngineError: no room.
        """
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Host(ABC):
    """Where services live."""

    @abstractmethod
    def start(self, name: str, order: Mapping[str, Any], memory: WeightMemory | None = None) -> Service:
        """Begin to start a service; its first answer says that it is ready.

        Args:
            name: of its log.
            order: its first message: `target`, the function `module:function` that builds what it serves, and the
                `arguments` of that.
            memory: with the weights that it reads, which the argument `weights` of the order describes.

        Raises:
            EngineError: the system refuses.
        """

    def memory(self, weights: Mapping[str, Tensor]) -> WeightMemory:
        """Memory for weights of these names, shapes and number formats.

        Raises:
            EngineError: no room.
        """
        from coterie.policy.shared_memory import SharedWeights

        return SharedWeights.of(weights)

    @property
    def meeting(self) -> str:
        """Address of this machine at which learner ranks of other machines find rank 0; empty where there are none."""
        return ""

    def close(self) -> None:  # noqa: B027 - most hosts have nothing to give back
        """Give back what the host itself holds, once its services are closed."""


@dataclass(frozen=True, kw_only=True)
class ProcessHost(Host):
    """Child processes of this one; they end with it, also by SIGKILL.

    Args:
        logs: folder of the services' output, `NAME.log`; None keeps what they say in a file without a name.
        python: interpreter of the services, where it is not this one.
        threads: compute threads of each.
        environment: variables that are set for them.
    """

    logs: Path | None = None
    python: str = sys.executable
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, name: str, order: Mapping[str, Any], memory: WeightMemory | None = None) -> ChildService:
        ours, theirs = socket.socketpair()
        # Linux ends the child when the *thread* that started it ends, so only the main thread may ask for that; the
        # end of the socket ends it in any case. A group of its own keeps Ctrl-C to this process, and dies as one.
        main = threading.current_thread() is threading.main_thread()
        command = [self.python, "-P", "-m", "coterie.cluster.engine_service", str(theirs.fileno())]
        output: IO[bytes] | None = None
        try:
            output = tempfile.TemporaryFile() if self.logs is None else open(self.logs / f"{name}.log", "a+b")  # noqa: SIM115
            process = subprocess.Popen(
                [*command, str(os.getpid() if main else 0)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), *(() if memory is None else memory.files)),
                process_group=0,
                env=self._surroundings(),
            )
        except OSError as error:
            ours.close()
            if output is not None:
                output.close()
            raise EngineError(f"cannot start the service {name}: {error}; free memory and file descriptors") from error
        finally:
            theirs.close()
        service = ChildService(name=name, process=process, frames=Frames(ours), output=output)
        with suppress(LostError):  # the answer tells
            service.send(order, POLITE_S)
        return service

    def _surroundings(self) -> dict[str, str]:
        """The environment of a service."""
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        environment |= self.environment
        if self.python != sys.executable:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH", ""))))
        return environment


@dataclass(kw_only=True, eq=False)
class ChildService:
    """A service in a child process."""

    name: str
    process: subprocess.Popen[bytes]
    frames: Frames
    output: IO[bytes]
    """File with what it printed."""

    def send(self, message: Mapping[str, Any], seconds: float) -> None:
        try:
            self.frames.send(message, seconds)
        except BrokenStreamError as error:
            raise LostError(self._cause(error)) from error

    def receive(self, seconds: float) -> dict[str, Any]:
        try:
            return self.frames.receive(seconds)
        except BrokenStreamError as error:
            raise LostError(self._cause(error)) from error

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with what it started itself
        self.process.wait()
        for file in Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{self.process.pid}_*"):  # of Intel's OpenMP
            file.unlink(missing_ok=True)
        self.frames.close()
        self.output.close()

    def close(self) -> None:
        self.frames.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(POLITE_S)
        self.kill()

    def _cause(self, error: BrokenStreamError) -> str:
        """What became of it, and the last line that it printed."""
        text = str(error)
        if "closed" in text:
            with suppress(subprocess.TimeoutExpired):
                code = self.process.wait(POLITE_S)
                text = f"ended with exit code {code}"
                if code < 0:
                    text = f"ended by {signal.Signals(-code).name if -code in set(signal.Signals) else -code}"
        return with_last_line(text, self.output)


def with_last_line(cause: str, output: IO[bytes]) -> str:
    """What became of a service, and the last line that it printed."""
    with suppress(OSError, ValueError):
        end = output.seek(0, os.SEEK_END)
        output.seek(max(0, end - _TOLD))
        lines = output.read().decode(errors="replace").strip().splitlines()
        if lines:
            return f"{cause}; it last printed {lines[-1][:300]!r}"
    return cause
