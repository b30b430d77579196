#!/usr/bin/env python3
"""From an empty machine to a running coterie: makes .venv, installs what the task needs, runs it.

    python3 bootstrap.py setup           install coterie into .venv, without running anything
    python3 bootstrap.py demo [ARGS]     train a small model to learn something, in minutes
    python3 bootstrap.py test [ARGS]     the tests; --slow adds the minutes-long ones, the rest goes to pytest
    python3 bootstrap.py check [ARGS]    formatting, lint and types, then the tests
    python3 bootstrap.py run ARGS        any command of coterie, e.g. run doctor
    python3 bootstrap.py faults [ARGS]   kills, full disks, flipped bits by the hundred; half an hour, --short a minute
    python3 bootstrap.py cluster [ARGS]  engine services, Ray, and vLLM in an environment of its own; minutes
    python3 bootstrap.py bench [ARGS]    speed and memory beside TRL and vLLM; --quick takes minutes, all cases hours

Needs Python 3.11 or newer, and a network (or pip's find-links) the first time.
COTERIE_NO_UV=1 installs with pip alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "coterie-stamp.json"
EXTRAS = {
    "setup": {"train"},
    "demo": {"train"},
    "run": {"train"},
    "bench": {"train"},
    "test": {"train", "tasks", "experience", "board", "serve", "tensorboard", "dev"},
    "check": {"train", "tasks", "experience", "board", "serve", "tensorboard", "dev"},
    "faults": {"train", "dev"},
    "cluster": {"train", "dev", "serve", "ray"},
}
ALONE = {"tasks": "reasoning-gym", "instructions": "lm-eval"}
"""Packages that are installed without their dependencies, by the extra that has them whole."""
LINTED = ["src", "tests", "bootstrap.py", "recipes", "benchmarks"]


def main(argv: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - the file may be started by an older Python
        return fail(
            f"coterie needs Python 3.11 or newer, this is {sys.version.split()[0]}",
            f"{newer_python()} bootstrap.py {' '.join(argv) or 'demo'}",
        )
    if not argv or argv[0] not in EXTRAS:
        print(__doc__)
        return 0 if argv[:1] in ([], ["-h"], ["--help"]) else 2
    verb, rest = argv[0], argv[1:]
    gpu = has_gpu()
    problem = set_up(EXTRAS[verb] | ({"gpu"} if gpu else set()), gpu)
    if problem is not None:
        return problem
    if verb == "setup":
        say(f"coterie is installed: {BIN / 'coterie'} --help")
        return 0
    if verb == "demo":
        return run_program(["-m", "coterie", "demo", *rest])
    if verb == "run":
        return run_program(["-m", "coterie", *rest])
    os.chdir(ROOT)
    if verb == "bench":
        return run_program(["-m", "benchmarks.peers", *rest])
    if verb in ("faults", "cluster"):
        paths = [str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        return run_program(["-m", "faults" if verb == "faults" else "cluster_set", *rest])
    return (check() if verb == "check" else 0) or run_program(test_command(rest, gpu))


def newer_python() -> str:
    """Name of a Python on the path that is new enough, else the name of the oldest that would be."""
    names = [f"python3.{minor}" for minor in range(14, 10, -1)]
    return next((name for name in names if shutil.which(name)), names[-1])


def test_command(rest: list[str], gpu: bool) -> list[str]:
    """pytest on two workers; slow tests only with --slow, GPU tests only with a GPU."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers already fill two cores
    left_out = ([] if "--slow" in rest else ["not slow"]) + ([] if gpu else ["not gpu"])
    marker = ["-m", " and ".join(left_out)] if left_out and "-m" not in rest else []
    return ["-m", "pytest", "-n", "2", *marker, *(word for word in rest if word != "--slow")]


def check() -> int:
    """Formatting, lint, types; the first that fails ends it."""
    paths = [path for path in LINTED if (ROOT / path).exists()]
    for words in (["ruff", "format", "--check"], ["ruff", "check"], ["ty", "check"]):
        code = subprocess.call([str(PYTHON), "-m", *words, *paths])
        if code:
            return fail(f"`{' '.join(words)}` found something", f"{BIN / words[0]} {' '.join(words[1:])} shows it")
    return 0


def run_program(words: list[str]) -> int:
    # argv[0] must be the venv's path: CPython finds its prefix, hence its packages, from it.
    command = [str(PYTHON), *words]
    if os.name == "nt":
        return subprocess.call(command)
    sys.stdout.flush()
    os.execv(command[0], command)


def has_gpu() -> bool:
    """Whether the NVIDIA driver lists a device."""
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def set_up(extras: set[str], gpu: bool) -> int | None:
    """Bring .venv up to date; None on success, an exit code otherwise. Warm: reads one stamp."""
    wanted = fingerprint(gpu)
    stamp = read_stamp()
    if stamp.get("made_from") == wanted and extras <= set(stamp["extras"]) and PYTHON.exists():
        return None
    start = time.monotonic()
    say(f"setting up {VENV} with [{', '.join(sorted(extras))}]; the first time this downloads about 0.6 GB")
    STAMP.unlink(missing_ok=True)
    if not usable_venv() and not make_venv():
        return fail(
            f"python cannot make a virtual environment in {VENV}",
            "install your system's venv package (Debian: apt install python3-venv) or free disk space",
        )
    extras = extras | set(stamp.get("extras", []))
    installed = install(extras, gpu)
    if installed is None:
        return fail(
            "the packages could not be installed (the reason is above)",
            "check the network, the free disk space (2 GB; 12 GB with a GPU) and `pip config list`; then run "
            "the same command again: what was downloaded is kept",
        )
    STAMP.write_text(json.dumps({"made_from": wanted, "extras": sorted(installed)}))
    say(f"ready after {time.monotonic() - start:.0f} s")
    return None


def fingerprint(gpu: bool) -> str:
    """Hash of everything that decides what is installed, except the extras."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "bootstrap.py")]
    parts.append(f"{sys.version} {ROOT} gpu={gpu}".encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp() -> dict:
    try:
        stamp = json.loads(STAMP.read_text())
        return stamp if isinstance(stamp.get("extras"), list) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def usable_venv() -> bool:
    """Whether .venv has a working Python of this version, with pip."""
    probe = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        seen = subprocess.run([str(PYTHON), "-c", probe], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return seen.returncode == 0 and seen.stdout.strip() == f"{sys.version_info[0]}.{sys.version_info[1]}"


def make_venv() -> bool:
    return subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]) == 0


def install(extras: set[str], gpu: bool) -> set[str] | None:
    """Install the package with its extras; the extras that were installed, None when nothing worked."""
    env = environment()
    uv = not os.environ.get("COTERIE_NO_UV") and pip(["install", "-q", "uv"], env)
    attempts = [extras] + ([extras - {"gpu"}] if "gpu" in extras else [])
    for attempt in attempts:
        target = f".[{','.join(sorted(attempt))}]"
        installed = uv and any(uv_install(["-e", target], env, flags) for flags in torch_flags(gpu, env))
        if installed and install_alone(attempt, lambda words: uv_install(words, env, [])):
            return attempt
        say("installing with pip" + (", since uv did not manage" if uv else ""))
        installed = pip(["install", "-e", target], env)
        if installed and install_alone(attempt, lambda words: pip(["install", *words], env)):
            return attempt
        if "gpu" in attempt:
            say("no GPU extras: vLLM did not install (it needs Linux and an NVIDIA driver >= 580)")
    return None


def pip(words: list[str], env: dict[str, str]) -> bool:
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.call(command, cwd=ROOT, env=env) == 0


def uv_install(words: list[str], env: dict[str, str], flags: list[str]) -> bool:
    """Install with uv, and compile as pip does: else every process compiles torch and transformers for eight seconds
    where PYTHONDONTWRITEBYTECODE is set."""
    command = [str(PYTHON), "-m", "uv", "pip", "install", "--compile-bytecode", "--python", str(PYTHON), *flags, *words]
    return subprocess.call(command, cwd=ROOT, env=env) == 0


def install_alone(extras: set[str], tool: Callable[[list[str]], bool]) -> bool:
    """Packages without their dependencies, unless their extra has installed those too.

    Of reasoning-gym's, one must be compiled, and only a few generators need them. Of lm-eval, only the checks of
    instructions are used, and they need none of its 500 MB.
    """
    text = (ROOT / "pyproject.toml").read_text()
    pins = {extra: re.search(rf"^{extra} = .*?({name}\S*?==[\w.]+)", text, re.M) for extra, name in ALONE.items()}
    words = [re.sub(r"\[.*\]", "", pin[1]) for extra, pin in pins.items() if pin and extra not in extras]
    return not words or tool(["--no-deps", *words])


def torch_flags(gpu: bool, env: dict[str, str]) -> list[list[str]]:
    """What to try in turn: on Linux without a GPU, the small CPU build before the CUDA build."""
    if gpu or sys.platform != "linux" or local_torch(env.get("UV_FIND_LINKS", "")):
        return [[]]
    return [["--torch-backend", "cpu"], []]


def local_torch(find_links: str) -> bool:
    """Whether the find-links have the pinned torch (a remote page is taken at its word)."""
    pin = re.search(r"torch==([\w.]+)", (ROOT / "pyproject.toml").read_text())
    folders = [link.removeprefix("file://") for link in find_links.split(",") if link]
    pattern = f"torch-{pin.group(1)}*.whl" if pin else "torch-*.whl"
    return any("://" in folder or any(Path(folder).glob(pattern)) for folder in folders)


def environment() -> dict[str, str]:
    """uv reads none of pip's settings: hand it the find-links, the index and the certificate."""
    env = dict(os.environ)
    copies = {"UV_FIND_LINKS": "find-links", "UV_DEFAULT_INDEX": "index-url", "SSL_CERT_FILE": "cert"}
    for variable, setting in copies.items():
        value = os.environ.get("PIP_" + setting.replace("-", "_").upper()) or pip_setting(f"global.{setting}")
        if value and not env.get(variable):
            env[variable] = ",".join(value.split()) if setting == "find-links" else value
    env["VIRTUAL_ENV"] = str(VENV)
    return env


def pip_setting(name: str) -> str:
    seen = subprocess.run([str(PYTHON), "-m", "pip", "config", "get", name], capture_output=True, text=True)
    return seen.stdout.strip() if seen.returncode == 0 else ""


def say(message: str) -> None:
    print(f"bootstrap: {message}", file=sys.stderr, flush=True)


def fail(message: str, remedy: str) -> int:
    say(f"{message}\nbootstrap: what helps: {remedy}")
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
