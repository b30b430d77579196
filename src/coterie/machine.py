"""Hardware of this machine and the threads of the maths, read and set without torch.

torch's wheels for Linux do their sums with GNU OpenMP, which reads its environment once, when torch is loaded. A
thread that has nothing to do first spins for a while, then sleeps: spinning answers sooner, sleeping leaves the core
to others. Which is better depends on the machine and on what else runs there; `python -m benchmarks.peers --threads`
measures it.
GOMP_SPINCOUNT and OMP_WAIT_POLICY: https://gcc.gnu.org/onlinedocs/libgomp/Environment-Variables.html
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
"""CPU flags that decide how fast the maths is; the last two are ARM's."""
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
GIB = 1 << 30
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Variables of oneDNN and of torch's layer above it: most compiled kernels that are kept, 1024 by default. There is one
for each shape of a matrix product, and training has other shapes in every step."""
KERNELS = 256
"""Kernels kept, several times those of one pass forward and backward; made anew, a kernel computes the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The hardware, as far as the standard library can see it."""

    system: str
    python: str
    cpu: str
    flags: tuple[str, ...]
    """Those of `FLAGS` that the CPU has."""
    cores: int
    """Physical cores that this process may use: affinity and the container's limit count."""
    memory: int
    """Bytes that this process may use: the machine's, or the container's limit."""
    memory_free: int
    """Bytes free now."""
    disk_free: int
    """Bytes free where runs are written."""

    @property
    def native_bf16(self) -> bool:
        """True if the CPU multiplies bfloat16 natively; emulated, it is slower than float32."""
        return bool(BF16_FLAGS & set(self.flags))

    def line(self) -> str:
        """One line for a run's README."""
        flags = f" ({', '.join(self.flags)})" if self.flags else ""
        size = f"{self.cores} cores, {self.memory / GIB:.0f} GiB"
        return f"{self.cpu}{flags}, {size}, {self.system}, Python {self.python}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One accelerator."""

    name: str
    memory: int
    """Bytes."""
    device: str = "cuda"
    """Its name as a setting: cuda, mps, xpu."""


def facts(folder: Path | str = ".") -> Facts:
    """Facts of this machine; `folder` is where runs will be written. Takes a millisecond; imports no torch."""
    cpuinfo = _read("/proc/cpuinfo")
    meminfo = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE))
    total = int(meminfo.get("MemTotal", 0)) * 1024 or _sysconf_memory()
    limit = _cgroup_memory()
    memory = min(total, limit) if limit else total
    return Facts(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        cpu=_cpu_name(cpuinfo),
        flags=_flags(cpuinfo),
        cores=cores(cpuinfo),
        memory=memory,
        memory_free=min(memory, int(meminfo.get("MemAvailable", 0)) * 1024 or memory),
        disk_free=_disk_free(Path(folder)),
    )


def cores(cpuinfo: str | None = None) -> int:
    """Physical cores that this process may use; at least 1."""
    allowed = set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    physical = _physical(_read("/proc/cpuinfo") if cpuinfo is None else cpuinfo, allowed)
    physical = physical or int(_command("sysctl", "-n", "hw.physicalcpu") or 0) or len(allowed)
    quota = _cgroup_cpus()
    return max(1, min(physical, round(quota)) if quota else physical)


def gpus() -> list[Gpu]:
    """The accelerators that torch can use. Imports torch."""
    import torch

    accelerators = []
    for device in ("cuda", "xpu"):
        backend = getattr(torch, device, None)
        if backend is not None and backend.is_available():
            properties = [backend.get_device_properties(index) for index in range(backend.device_count())]
            accelerators += [Gpu(name=gpu.name, memory=gpu.total_memory, device=device) for gpu in properties]
    if torch.backends.mps.is_available():
        accelerators.append(Gpu(name="Apple GPU", memory=torch.mps.recommended_max_memory(), device="mps"))
    return accelerators


def extras() -> dict[str, dict[str, str | None]]:
    """Each optional extra with its packages and their installed versions (None: not installed)."""
    packages: dict[str, dict[str, str | None]] = {}
    for requirement in metadata.requires("coterie") or ():
        package = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if package and extra:
            packages.setdefault(extra.group(1), {})[package.group()] = _version(package.group())
    return packages


def plan(hardware: Facts, accelerators: list[Gpu], threads: str) -> list[str]:
    """Device, number format, threads and engine that coterie chooses here; `threads` is a `Choice.line`."""
    lines = []
    if accelerators and accelerators[0].device == "cuda":
        lines.append(f"device: cuda:0, {accelerators[0].name}; numbers: bfloat16, master weights float32")
    else:
        number = (
            "bfloat16 (this CPU multiplies it natively)" if hardware.native_bf16 else "float32 (no native bfloat16)"
        )
        lines.append(f"device: cpu; numbers: {number}, master weights float32")
        for gpu in accelerators[:1]:
            lines.append(f"device: {gpu.name} is used when you set model.device = {gpu.device!r} (numbers: float32)")
    lines.append(f"threads: {threads}")
    lines.append("engine: embedded (samples in this process, from the learner's own weights)")
    lines.append(
        f'hosts: local; with cluster.host = "processes" engines and learner ranks are child processes; {_ray()}'
    )
    if hardware.memory_free < 4 * GIB:
        lines.append("memory: under 4 GiB free; full training of the 135M model needs about 3, so close other programs")
    if hardware.disk_free < 5 * GIB:
        lines.append("disk: under 5 GiB free; a run with checkpoints takes 1 to 4")
    return lines


def _ray() -> str:
    """What `cluster.host = "ray"` would do here, in words."""
    version = _version("ray")
    if version is None:
        return 'cluster.host = "ray" needs the extra ray'
    words = f'with "ray" actors of Ray {version}, of its own on 127.0.0.1 unless cluster.address names a cluster'
    address = os.environ.get("RAY_ADDRESS")
    return f'{words} ("auto": {address}, of RAY_ADDRESS)' if address else words


def resident(process: int | None = None) -> int:
    """Bytes of main memory that a process holds now, by default this one; 0 where the system does not say."""
    return _status("VmRSS", process)


def peak_resident(process: int | None = None) -> int:
    """Most bytes of main memory that a process ever held, by default this one; of another one 0 where the system does
    not say."""
    if (peak := _status("VmHWM", process)) or process is not None:
        return peak
    import resource  # not on Windows

    # The second choice: on Linux it counts what the parent held before exec.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(key: str, process: int | None) -> int:
    file = f"/proc/{'self' if process is None else process}/status"
    match = re.search(rf"^{key}:\s+(\d+) kB", _read(file), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers of a run depend on."""
    names = ("coterie", "torch", "transformers", "tokenizers", "numpy", "peft", "reasoning-gym", "math-verify")
    package_versions = {name: _version(name) for name in names}
    return {"python": platform.python_version()} | {name: text for name, text in package_versions.items() if text}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _command(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _cpu_name(cpuinfo: str) -> str:
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if named:
        return named.group(1).strip()
    return _command("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _flags(cpuinfo: str) -> tuple[str, ...]:
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    have = set(listed.group(1).split()) if listed else set()
    return tuple(flag for flag in FLAGS if flag in have)


def _physical(cpuinfo: str, allowed: set[int]) -> int:
    """Distinct (socket, core) pairs among the allowed processors; 0 where the file does not say."""
    core_ids = set()
    for block in cpuinfo.split("\n\n"):
        fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(\d+)\s*$", block, re.MULTILINE))
        if "core id" in fields and int(fields.get("processor", -1)) in allowed:
            core_ids.add((fields.get("physical id", "0"), fields["core id"]))
    return len(core_ids)


def _cgroup_cpus() -> float | None:
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    return int(quota[0]) / int(quota[1]) if len(quota) == 2 and quota[0].isdecimal() else None


def _cgroup_memory() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdecimal():
            return int(text)
    return None


def _sysconf_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0


def _disk_free(folder: Path) -> int:
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


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
"""Variable of another OpenMP; if the user sets it, nothing is changed either."""
VARIABLES = tuple(dict.fromkeys(name for settings in WAITING.values() for name in settings)) + _OTHERS
"""Variables of the wait policy; none is changed once the user has set any of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """Measured thread settings for machines of one size."""

    cores: int
    """For machines with up to this many physical cores."""
    spare: int
    """Cores left to other processes."""
    waiting: str
    """Key of `WAITING`."""
    because: str
    """The figures, in words."""


DEFAULTS: tuple[Default, ...] = (
    Default(
        cores=2,
        spare=0,
        waiting="default",
        because="on two quiet cores it is the fastest; beside busy programs idle threads sleep, as long as those run",
    ),
    Default(
        cores=1 << 16, spare=0, waiting="default", because="no other policy has been measured to be better in general"
    ),
)
"""By number of cores, smallest first; the first that fits is taken. From `python -m benchmarks.peers --threads`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Thread settings of this process, with the reason."""

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
"""Variables that `prepare` put into this process's environment."""
_done = False
"""True once `prepare` was called in time."""


def count(configured: int = 0, environ: Mapping[str, str] | None = None) -> int:
    """Threads of the maths: the setting if it is not 0, else OMP_NUM_THREADS, else the measured default; at least 1."""
    if configured:
        return configured
    physical = cores()
    return _users_count(os.environ if environ is None else environ) or max(1, physical - _default(physical).spare)


def prepare(environ: MutableMapping[str, str] | None = None) -> None:
    """Set how OpenMP threads wait, and how many kernels are kept, where the user has not. To be called before torch is
    first imported.

    The program `coterie` does so itself. A program that uses it as a library calls it before the first import of torch:

        from coterie import machine
        machine.prepare()
        import torch

    Calling it again, or too late, changes nothing; `choice` then says so. Processes started later inherit what was set,
    unless they are given `clean_environment()`.

    Args:
        environ: the process's own environment when None.
    """
    global _done
    environ = os.environ if environ is None else environ
    if "torch" not in sys.modules:
        for name in (name for name in KERNEL_CACHES if name not in environ):
            environ[name] = _set[name] = str(KERNELS)
    if _done or not _gnu_openmp() or _users(environ) or "torch" in sys.modules:
        return
    settings = WAITING[_default(cores()).waiting]
    _done = True
    environ.update(settings)
    _set.update(settings)


def choice(configured: int = 0, environ: Mapping[str, str] | None = None) -> Choice:
    """Thread settings that hold in this process, after `prepare`.

    Args:
        configured: the setting `threads`; 0 = coterie chooses.
        environ: the process's own environment when None.
    """
    environ = os.environ if environ is None else environ
    physical = cores()
    number, users = count(configured, environ), _users(environ)
    default = _default(physical)
    if users:
        waiting = " ".join(f"{name}={value}" for name, value in users.items())
        source, because = "environment", "the environment says so"
    elif not _gnu_openmp():
        waiting, source, because = "default", "runtime", "torch brings no GNU OpenMP here, whose waiting could be set"
    elif WAITING[default.waiting] and not _done:
        waiting, source = "default", "late"
        because = "coterie.machine.prepare() was not called before the first import of torch"
    else:
        waiting, source, because = default.waiting, "measured", default.because
        settings = " ".join(f"{name}={value}" for name, value in WAITING[waiting].items())
        waiting += f" ({settings})" if settings else ""
    if configured:
        because += "; the setting `threads` gives the number"
    elif _users_count(environ):
        because += f"; {COUNT} gives the number"
    return Choice(count=number, cores=physical, waiting=waiting, source=source, because=because)


def adapts(environ: Mapping[str, str] | None = None) -> bool:
    """True if the wait policy may be switched while the process runs: GNU OpenMP, and no variable of the user's."""
    environ = os.environ if environ is None else environ
    return _gnu_openmp() and not _users(environ) and not WAITING[_default(cores()).waiting]


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without the variables that `prepare` set: for programs measured with their defaults."""
    environ = os.environ if environ is None else environ
    return {name: value for name, value in environ.items() if _set.get(name) != value}


def _default(cores: int) -> Default:
    return next(default for default in DEFAULTS if cores <= default.cores)


def _users(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables about waiting that are set, and not by `prepare`."""
    variables = {name: environ[name] for name in VARIABLES if environ.get(name)}
    return {name: value for name, value in variables.items() if _set.get(name) != value}


def _users_count(environ: Mapping[str, str]) -> int:
    """The user's OMP_NUM_THREADS, of a list by level of nesting the first; 0 if unset."""
    written = re.match(r"\s*(\d+)", environ.get(COUNT, ""))
    return int(written.group(1)) if written else 0


def _gnu_openmp() -> bool:
    return sys.platform == "linux"
