"""Damaged bits, cut files, files of others: noticed before use, named, and walked around."""

from __future__ import annotations

import os
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from coterie import launch
from coterie.errors import CheckpointError, CoterieError, RunError
from coterie.runs import checkpoint, rollouts
from coterie.runs.durable import MANIFEST, publish_directory, verify_directory
from coterie.runs.metrics import MetricsDB
from coterie.runs.rollouts import RolloutRecord
from faults.cases import Case
from faults.child import REFUSED, log_of
from faults.harness import Harness
from faults.world import NAME, divergence, read_chain


def flips(harness: Harness, count: int, seed: int) -> Iterator[Case]:
    """Single flipped bits at random places of the newest checkpoint, of a rollout file, of the database."""
    run = harness.root / "golden" / NAME
    draw = random.Random(seed)
    yield _flips("a checkpoint", _checkpoint_flips(run, harness.folder("flips-c"), count, draw))
    yield _flips("a rollout file", _rollout_flips(run, harness.folder("flips-r"), count // 2, draw))
    yield _flips("the database", _database_flips(run, harness.folder("flips-d"), count // 2, draw))


def _flips(name: str, verdicts: Iterator[str]) -> Case:
    """`noticed`, `harmless` (what is read is the same), or what was wrong."""
    outcomes = list(verdicts)
    wrong = [verdict for verdict in outcomes if verdict not in ("noticed", "harmless")]
    facts = {"flips": len(outcomes), "noticed": outcomes.count("noticed"), "harmless": outcomes.count("harmless")}
    return Case(section="flips", name=name, problem=wrong[0] if wrong else None, facts=facts)


def _flip(file: Path, data: bytes, draw: random.Random) -> None:
    place = draw.randrange(8 * len(data))
    bad = bytearray(data)
    bad[place // 8] ^= 1 << (place % 8)
    file.write_bytes(bad)


def _checkpoint_flips(run: Path, folder: Path, count: int, draw: random.Random) -> Iterator[str]:
    root = folder / "checkpoints"
    shutil.copytree(run / "checkpoints", root)
    older, newest = checkpoint.steps(root)[-2:]
    files = [path for path in sorted((root / f"step_{newest:06d}").rglob("*")) if path.is_file()]
    contents = {path: path.read_bytes() for path in files}
    sizes = [len(contents[path]) for path in files]
    for _ in range(count):
        (file,) = draw.choices(files, sizes)
        _flip(file, contents[file], draw)
        saved = checkpoint.newest(root)
        file.write_bytes(contents[file])
        if saved is None or saved.step != older:
            yield f"a flipped bit in {file.name} was not noticed"
        else:
            named = len(saved.skipped) == 1 and file.name in saved.skipped[0][1]
            yield "noticed" if named else f"{file.name} is not named: {saved.skipped}"


def _rollout_flips(run: Path, folder: Path, count: int, draw: random.Random) -> Iterator[str]:
    file = folder / "step_000003.parquet"
    data = (run / "rollouts" / file.name).read_bytes()
    good = rollouts.read_step(run / "rollouts", 3)
    for _ in range(count):
        _flip(file, data, draw)
        yield _verdict(lambda: rollouts.read_step(folder, 3), good)


def _verdict(read: Callable[[], list[RolloutRecord]], good: list[RolloutRecord]) -> str:
    try:
        return "harmless" if read() == good else "damaged rollouts were read"
    except RunError:
        return "noticed"


def _database_flips(run: Path, folder: Path, count: int, draw: random.Random) -> Iterator[str]:
    file = folder / "metrics.sqlite"
    data = (run / "metrics.sqlite").read_bytes()
    good = _content(run / "metrics.sqlite")
    for _ in range(count):
        _flip(file, data, draw)
        try:
            with closing(MetricsDB(file)) as database:
                damage = database.damage()
            yield "noticed" if damage else "harmless" if _content(file) == good else "damaged numbers were read"
        except RunError:
            yield "noticed"
        for helper in folder.glob("metrics.sqlite-*"):
            helper.unlink()


def _content(file: Path) -> str:
    with closing(MetricsDB.reader(file)) as database:
        steps = [database.step_metrics(step) for step in range(9)]
        items = [database.eval_items(step) for step in range(9)]
        return repr((steps, items, database.evals(), database.events()))


def _truncate(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _swap(folder: Path) -> None:
    other = folder.with_name("step_000004") / "optimizer.safetensors"
    shutil.copy(other, folder / "optimizer.safetensors")


BROKEN: dict[str, Callable[[Path], object]] = {
    "a file cut short": _truncate,
    "an empty file": lambda folder: (folder / "optimizer.safetensors").write_bytes(b""),
    "a missing file": lambda folder: (folder / "state.json").unlink(),
    "a file too many": lambda folder: (folder / "model" / "more.safetensors").write_bytes(b"x"),
    "a file of another step": _swap,
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "a manifest of zeros": lambda folder: (folder / MANIFEST).write_bytes(bytes(900)),
    "a symbolic link": lambda folder: (folder / "link").symlink_to("/etc/passwd"),
    "a named pipe": lambda folder: os.mkfifo(folder / "pipe"),
    "an empty folder": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


def broken(harness: Harness, few: int = 1) -> Iterator[Case]:
    """A resume from a damaged newest checkpoint walks back, says so, and ends as the golden run."""
    for name, damage in list(BROKEN.items())[::few]:
        runs = _copy(harness, name)
        damage(runs / NAME / "checkpoints" / "step_000005")
        done = harness.wait(harness.start(runs))
        log = "".join(path.read_text() for path in (runs / NAME / "logs").iterdir())
        problem = log_of(runs) if done.code else _same(harness, runs)
        if problem is None and "skipped step_000005" not in log:
            problem = "the log does not say that step_000005 was skipped"
        yield Case(section="damage", name=name, problem=problem)


def nothing_left(harness: Harness) -> Iterator[Case]:
    """With checkpoints that are all damaged, or gone, a resume refuses; `--fresh` starts over and loses nothing."""
    for name in ("all damaged", "all gone"):
        runs = _copy(harness, name)
        root = runs / NAME / "checkpoints"
        for step in checkpoint.steps(root):
            folder = root / f"step_{step:06d}"
            _truncate(folder) if name == "all damaged" else shutil.rmtree(folder)
        refused = harness.wait(harness.start(runs))
        log = log_of(runs)
        if refused.code != REFUSED or "--fresh" not in log:
            yield Case(section="damage", name=name, problem=f"exit code {refused.code}: {log}")
            continue
        done = harness.wait(harness.start(runs, None, lambda runs=runs: _fresh(runs)))
        problem = log_of(runs) if done.code else _same(harness, runs)
        if problem is None and name == "all damaged" and not (runs / NAME / "checkpoints-aside-1").is_dir():
            problem = "the old checkpoints were not set aside"
        yield Case(section="damage", name=name, problem=problem)


def _fresh(runs: Path) -> int:
    launch.resume(NAME, runs=runs, fresh=True)
    return 0


def _copy(harness: Harness, name: str) -> Path:
    runs = harness.folder(name)
    shutil.copytree(harness.root / "golden" / NAME, runs / NAME)
    return runs


def _same(harness: Harness, runs: Path) -> str | None:
    golden_chain = read_chain(harness.root / "golden" / "chain")
    return divergence(harness.golden, harness.end, [*golden_chain, *read_chain(runs / "chain")], runs / NAME)


def hostile(harness: Harness, few: int = 1) -> Iterator[Case]:
    """Checkpoints made by somebody else, with a manifest that is right: nothing is executed, nothing gets out."""
    marker = harness.root / "executed"
    code = f"import os; os.close(os.open({str(marker)!r}, os.O_CREAT))"
    pickled = b"cbuiltins\nexec\n(V" + code.encode() + b"\ntR."
    tensors = "optimizer.safetensors"
    files: dict[str, tuple[str, bytes]] = {
        "a pickle for tensors": (tensors, pickled),
        "a header longer than the file": (tensors, struct.pack("<Q", 1 << 30) + b"{}"),
        "a header of a million tensors": (tensors, _endless_header(1_000_000)),
        "a header that is no JSON": (tensors, struct.pack("<Q", 8) + b"notjson!"),
        "tensors of another model": (tensors, struct.pack("<Q", 2) + b"{}"),
        "a state that is no table": ("state.json", b"[1, 2]"),
        "a state without its keys": ("state.json", b"{}"),
        "a state of words": (
            "state.json",
            b'{"step": "x", "cursor": [], "version": null, "learner": 3, "data_hash": 1}',
        ),
        "a state nested without end": ("state.json", b"[" * 100_000),
    }
    for name, (file, data) in list(files.items())[::few]:
        runs = _copy(harness, name)
        folder = runs / NAME / "checkpoints" / "step_000005"
        _republish(folder, file, data)
        for step in (4,):
            shutil.rmtree(folder.with_name(f"step_{step:06d}"))
        began = time.monotonic()
        done = harness.wait(harness.start(runs))
        problem = None if done.code == REFUSED else f"expected a refusal, got exit code {done.code}: {log_of(runs)}"
        if marker.exists():
            problem = "code of the checkpoint was executed"
        seconds = round(time.monotonic() - began, 2)
        yield Case(section="damage", name=name, problem=problem, facts={"seconds": seconds})
    yield _outside(harness)


def _endless_header(count: int) -> bytes:
    """As many tensors without a byte of data."""
    entries = ",".join(f'"{k}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for k in range(count))
    return struct.pack("<Q", len(entries) + 2) + f"{{{entries}}}".encode()


def _republish(folder: Path, file: str, data: bytes) -> None:
    """Put a file in, and give the folder a manifest that vouches for it."""
    facts = verify_directory(folder)
    (folder / MANIFEST).unlink()
    (folder / file).write_bytes(data)
    tmp = folder.with_name("made-up")
    folder.rename(tmp)
    publish_directory(tmp, folder, facts)


def _outside(harness: Harness) -> Case:
    """A manifest that lists a file outside of its folder."""
    from coterie.runs.durable import _measure, _sealed

    runs = _copy(harness, "a name that leads outside")
    folder = runs / NAME / "checkpoints" / "step_000005"
    names = ["../../config.toml"]
    body = {"format": 1, "facts": {}, "files": dict(zip(names, _measure(folder, names), strict=True))}
    (folder / MANIFEST).write_bytes(_sealed(body))
    try:
        verify_directory(folder)
        problem = "it was accepted"
    except CheckpointError:
        problem = None
    except CoterieError as error:
        problem = f"unexpected {error!r}"
    return Case(section="damage", name="a name that leads outside", problem=problem)
