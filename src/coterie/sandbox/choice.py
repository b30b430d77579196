"""Choice of a sandbox by tier, with a self-test at its start: what does not hold is not used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from coterie.errors import AssetError, ConfigError
from coterie.sandbox.base import Limits, Sandbox, SandboxError, Test
from coterie.sandbox.native import Bubblewrap, Rlimits
from coterie.sandbox.remote import Remote
from coterie.sandbox.wasi import Wasi

TIERS = ("auto", "wasi", "bubblewrap", "remote", "unsafe_rlimits")
"""Names of the setting `tier`: auto is the first of wasi and bubblewrap that can be had here, never another one."""
PROBE = """
import os, socket
def reached(path):
    try:
        return open(path).read() != ""
    except Exception:
        return False
def connected(port):
    try:
        return socket.create_connection(("127.0.0.1", port), 1) is not None
    except Exception:
        return False
def written(path):
    try:
        open(path, "w").close()
        return True
    except Exception:
        return False
"""
"""What the self-test runs: each function is True where the sandbox has a hole."""


def make_sandbox(tier: str = "auto", *, workers: int = 2, note: Callable[[str], None] | None = None) -> Sandbox:
    """A sandbox that has passed its self-test.

    Raises:
        ConfigError: there is no such tier.
        SandboxError: it cannot be had here, with the remedy, or a probe was not contained.
        AssetError: the interpreter cannot be fetched.
    """
    if tier not in TIERS:
        raise ConfigError(f"there is no sandbox {tier!r}; expected one of {', '.join(TIERS)}")
    if tier == "unsafe_rlimits":
        return Rlimits(workers)
    if tier == "remote":
        return _tested(Remote(workers))
    if tier != "auto":
        sandbox = Wasi(workers=workers, note=note) if tier == "wasi" else Bubblewrap(workers)
        return _tested(sandbox)
    causes = []
    for kind in (lambda: Wasi(workers=workers, note=note), lambda: Bubblewrap(workers)):
        try:
            return _tested(kind())
        except (SandboxError, AssetError) as error:
            causes.append(str(error))
    raise SandboxError(f"no sandbox can be had here: {'; or: '.join(causes)}")


@lru_cache(maxsize=4)
def sandbox_for(tier: str = "auto") -> Sandbox:
    """The sandbox of this process, made once: tools and rewards share it."""
    return make_sandbox(tier)


def _tested(sandbox: Sandbox) -> Sandbox:
    """The sandbox, once its probes have shown that it computes, and reaches no file, secret or network; of a remote
    one, which has files and a network of its own, that it computes and reaches no file of this machine."""
    with tempfile.TemporaryDirectory(prefix="coterie-probe-") as folder:
        secret = Path(folder, "secret")
        secret.write_text("canary")
        secret.chmod(0o644)
        Path(folder).chmod(0o755)
        probes = (
            Test(call="6 * 7", expected="42"),
            Test(call=f"reached({str(secret)!r})", expected="False"),
            Test(call="reached('/etc/passwd')", expected="False"),
            Test(call=f"written({str(Path(folder, 'made'))!r})", expected="False"),
            Test(call=f"reached('/proc/{os.getpid()}/environ')", expected="False"),
            Test(call="connected(22)", expected="False"),
        )
        probes = probes[:2] if sandbox.tier == "remote" else probes
        run = sandbox.run(PROBE, tests=probes, limits=Limits(seconds=10.0))
        if run.end != "ok":
            sandbox.close()
            raise SandboxError(f"the sandbox {sandbox.tier} does not run here: {run.error or run.end}")
        failed = [probe.call for probe, passed in zip(probes, run.passed, strict=True) if not passed]
        if failed or Path(folder, "made").exists():
            sandbox.close()
            raise SandboxError(f"the sandbox {sandbox.tier} does not hold: {', '.join(failed) or 'writing'}")
    return sandbox
