"""The Ray of a run: one of its own on this machine that nobody else can reach, or a cluster that is joined.

This is the only file that imports Ray. A Ray of its own listens on the loopback device alone, which Ray decides from a
variable when it is imported, and asks for a token that lies in a file of mode 0600; both are gone when the run ends.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from coterie.cluster.sockets import descendants, open_to_others
from coterie.errors import ConfigError, EngineError, install_command

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0 before its import, Ray takes 127.0.0.1 for the address of this machine, as it does on macOS."""
PREFIX = "coterie-ray-"
"""Of the folder in which a Ray of its own keeps its sockets; short, since a path of a socket has at most 107 bytes."""
_LONGEST = 16


def require_ray() -> None:
    """Refuse a run on Ray where there is none.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("ray") is None:
        raise ConfigError(f'cluster.host = "ray" needs Ray: {install_command("ray")}')


@dataclass(kw_only=True, eq=False)
class RaySession:
    """A connection to Ray that the hosts of this process share.

    Attributes:
        ray: the module.
        address: of the cluster that was joined; empty for one of its own.
        users: hosts that hold it.
    """

    ray: Any
    address: str
    users: int = 0
    stays: bool = False
    """The program had connected before; it stays connected after."""
    folder: Path | None = None
    """Of a Ray of its own."""
    lock: IO[str] | None = None
    before: dict[str, str | None] = field(default_factory=dict)
    """Variables as they were."""

    @property
    def started_here(self) -> bool:
        """Ray was started by this process, and ends with it."""
        return self.folder is not None

    def bundle(self, group: Any, index: int) -> Any:
        """Scheduling strategy of an actor: this bundle of a placement group."""
        strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
        return strategies.PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)

    def node_address(self) -> str:
        """Address of this machine in the cluster."""
        return self.ray.util.get_node_ip_address()

    def release(self) -> None:
        """Count a host less; the last one ends the connection, and a Ray of its own."""
        self.users -= 1
        if self.users <= 0:
            self.end()

    def end(self) -> None:
        """End the connection whoever uses it."""
        global _session
        if _session is not self:
            return
        _session = None
        atexit.unregister(self.end)
        if not self.stays:
            self.ray.shutdown()
        _restore(self.before)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.lock is not None:
            self.lock.close()


_session: RaySession | None = None


def session_for(address: str, cpus: int) -> RaySession:
    """The connection to Ray, made by the first who asks; `release` it when done.

    Args:
        address: of a cluster to join: `auto`, `HOST:PORT` or what the program has connected to; empty starts a Ray of
            its own on this machine.
        cpus: that a Ray of its own offers: all that the run will ask for.

    Raises:
        ConfigError: there is no Ray, no cluster at the address, or another one is joined already.
        EngineError: Ray does not start, or others could reach it.
    """
    global _session
    require_ray()
    if _session is None:
        _session = _joined(address) if address else _started(cpus)
        atexit.register(_session.end)
    elif _session.address != address:
        raise ConfigError(
            f"cluster.address = {address!r}, but this process is connected to the Ray at "
            f"{_session.address or 'this machine, of its own'!r}; start another process"
        )
    _session.users += 1
    return _session


def _joined(address: str) -> RaySession:
    if os.environ.get(LOOPBACK) == "0":
        raise ConfigError(
            f"{LOOPBACK} = 0 keeps Ray to this machine, and cluster.address = {address!r} joins others; unset it"
        )
    ray: Any = importlib.import_module("ray")
    session = RaySession(ray=ray, address=address, stays=ray.is_initialized())
    if session.stays:
        return session
    try:
        with _signals_kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # ConnectionError, ValueError, AuthenticationError, RuntimeError
        raise ConfigError(
            f"cluster.address = {address!r}: no Ray cluster can be joined there: {_first_line(error)}; start one with "
            '`ray start --head`, submit the run with `ray job submit`, or leave cluster.address = "" for a Ray of its '
            "own on this machine"
        ) from error
    return session


def _started(cpus: int) -> RaySession:
    if "ray" in sys.modules and importlib.import_module("ray").is_initialized():
        raise ConfigError(
            'this process is connected to a Ray already; set cluster.address = "auto" to use that, or call '
            "ray.shutdown() first"
        )
    _sweep()
    folder, lock = _own_folder()
    token = folder / "token"
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    variables = {
        LOOPBACK: "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_AUTH_TOKEN": None,
        "RAY_ADDRESS": None,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # 15 by default: an engine would wait for whatever else runs
        "TOKENIZERS_PARALLELISM": "false",
    }
    before = {name: os.environ.get(name) for name in variables}
    others = open_to_others(descendants(os.getpid()))
    _restore(variables)
    try:
        ray = _up(cpus, folder / "r")  # Ray opens this one to all users, and the folder around it stays closed
    except Exception as error:
        _restore(before)
        shutil.rmtree(folder, ignore_errors=True)
        raise EngineError(f"Ray cannot be started on this machine: {_first_line(error)}") from error
    session = RaySession(ray=ray, address="", folder=folder, lock=lock, before=before)
    _require_loopback(session, others)
    return session


def _up(cpus: int, folder: Path) -> Any:
    """Start Ray; returns the module. Ray gives its processes half a minute, which a busy machine may not keep."""
    ray: Any = importlib.import_module("ray")
    for last in (False, False, True):
        try:
            with _signals_kept():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder),
                )
            return ray
        except Exception as error:
            ray.shutdown()
            if last or "timed out" not in str(error):
                raise
    return ray


def _require_loopback(session: RaySession, others: Sequence[str]) -> None:
    """End a Ray that other machines could reach.

    Args:
        others: sockets that were open to them before it started.

    Raises:
        EngineError: it listens on another device than loopback.
    """
    reachable = [place for place in open_to_others(descendants(os.getpid())) if place not in others]
    if reachable:
        global _session
        _session = session
        session.end()
        raise EngineError(
            f"Ray would listen on {', '.join(reachable[:3])}, where other machines reach it; expected loopback alone. "
            f"Ray was imported before coterie could ask for that: set {LOOPBACK}=0 in the environment"
        )


def _root() -> Path:
    """Folder of the folders of Ray; paths below a long one would be too long for sockets."""
    root = tempfile.gettempdir()
    return Path(root if len(root) <= _LONGEST else "/tmp")


def _own_folder() -> tuple[Path, IO[str]]:
    """A folder of mode 0700, and its lock, which is held before `_sweep` of another run could find the folder."""
    draft = Path(tempfile.mkdtemp(prefix="coterie-draft-", dir=_root()))
    lock = (draft / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = draft.with_name(draft.name.replace("coterie-draft-", PREFIX))
    draft.rename(folder)
    return folder, lock


def _sweep() -> None:
    """Remove the folders of runs that were killed: their locks are free."""
    for folder in _root().glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _restore(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _signals_kept() -> Generator[None]:
    """Ray takes SIGTERM for itself, which asks a run to stop after its step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
