"""Records of a pipeline: what each stage was made from, and what it left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.config.schema import RunConfig
from coterie.errors import CheckpointError, RunError
from coterie.rewards.check import sources
from coterie.runs.durable import MANIFEST, json_dumps, json_loads, verify_directory, write_file
from coterie.runs.inspect import DATA, summary
from coterie.runs.models import resolve

FOLDER = "records"
"""Below the pipeline's folder: a file for each stage, and one for the model before them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """What is recorded of a stage."""

    key: str
    """Hash of its settings and of all that it takes."""
    output: str = ""
    """Hash of what it left; empty until it is finished."""
    config: str = ""
    """Hash of the settings in its folder."""
    evaluations: dict[str, Any] | None = None
    """Name of an evaluation → its key, results, items (one a held-out prompt) and examples."""

    @property
    def finished(self) -> bool:
        return bool(self.output)

    def write(self, folder: Path, name: str) -> None:
        """Store it, all or nothing."""
        facts = {"key": self.key, "output": self.output, "config": self.config, "evaluations": self.evaluations or {}}
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        write_file(folder / FOLDER / f"{name}.json", (json_dumps(facts, indent=1) + "\n").encode())


def read_record(folder: Path, name: str) -> StageRecord | None:
    """The record of a stage; None where it never began.

    Raises:
        RunError: it cannot be read.
    """
    path = folder / FOLDER / f"{name}.json"
    if not path.exists():
        return None
    try:
        facts = json_loads(path.read_bytes())
        return StageRecord(**facts)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it, and the stage runs again") from error


def forget(folder: Path, name: str) -> None:
    """Drop the record of a stage, and give its folder another name: nothing is ever overwritten."""
    (folder / FOLDER / f"{name}.json").unlink(missing_ok=True)
    run = folder / name
    if run.exists():
        number = next(n for n in range(1, 10_000) if not (folder / f"{name}-replaced-{n}").exists())
        run.rename(folder / f"{name}-replaced-{number}")


def key_of(kind: str, config: RunConfig, taken: dict[str, str]) -> str:
    """Hash of a stage's settings and inputs: not of where anything lies, so that a project can be moved.

    Args:
        taken: hash of what an earlier stage left, by what is taken from it.
    """
    dump = config.model_dump(mode="json", exclude={"name", "runs", "module_path", "threads"})
    dump["model"]["name"] = taken.get("model") or model_hash(config.model.name, Path(config.runs))
    for part in ("train", "heldout"):
        for index, source in enumerate(dump["data"][part]):
            if source["type"] == "file":
                rows = taken.get(f"data.{index}") if part == "train" else None
                source["path"] = rows or tree_hash(source["path"])
    for section, key, what in (("distill", "teacher", "teacher"), ("reference", "model", "reference")):
        if dump[section] is not None and dump[section][key] is not None:
            dump[section][key] = taken.get(what) or model_hash(dump[section][key], Path(config.runs))
    if dump["rejection"] is not None:
        dump["rejection"]["rollouts"] = sorted(value for what, value in taken.items() if what.startswith("rollouts"))
    facts = [kind, dump, sources(config.rewards, config.environment)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def model_hash(name: str, runs: Path) -> str:
    """Hash of a model: of a checkpoint its manifest, of a folder its files, of anything else its name or address."""
    if "://" in name:
        return name
    source = resolve(name, runs, check_files=False)
    if source.folder is None:
        return source.name
    manifest = source.folder.parent / MANIFEST
    return file_hash(manifest) if manifest.is_file() else tree_hash(source.folder)


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_hash(path: str | Path) -> str:
    """Hash of a file, or of all files of a folder with their names; of what is not there, its path."""
    place = Path(path).expanduser()
    if place.is_file():
        return file_hash(place)
    digest = hashlib.sha256()
    for file in _files(place):
        digest.update(f"{file.relative_to(place).as_posix()}\0{file_hash(file)}\n".encode())
    return digest.hexdigest() if place.is_dir() else str(path)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def output_of(run: Path, kind: str) -> str:
    """Hash of what a finished stage left: its rows, or its newest checkpoint, which is verified.

    Raises:
        CheckpointError: the checkpoint does not verify.
    """
    if kind == "rejection":
        return file_hash(run / DATA)
    if kind == "merge":
        return tree_hash(run)
    folder = resolve(str(run), check_files=False).folder
    assert folder is not None
    verify_directory(folder.parent)
    return file_hash(folder.parent / MANIFEST)


def require_untouched(folder: Path, name: str, kind: str, record: StageRecord) -> None:
    """Refuse a finished stage whose folder is no longer what the stage left.

    Raises:
        RunError: names what differs, and the remedy.
    """
    run = folder / name
    remedy = f"restore it, or make the stage again with --from {name}"
    settings = settings_file(run, kind)
    if not settings.is_file():
        raise RunError(f"{run} is gone, though stage {name!r} was finished; {remedy}")
    if file_hash(settings) != record.config:
        raise RunError(f"{settings} was edited since stage {name!r} was finished; {remedy}")
    try:
        output = output_of(run, kind)
    except (CheckpointError, RunError, OSError) as error:
        raise RunError(f"{run} is not what stage {name!r} left: {error}; {remedy}") from error
    if output != record.output:
        raise RunError(f"{run} is not what stage {name!r} left: its result has another hash; {remedy}")


def settings_file(run: Path, kind: str) -> Path:
    """File of a stage's settings: of a merged model its own."""
    return run / ("config.json" if kind == "merge" else "config.toml")


def is_finished(run: Path, kind: str = "grpo") -> bool:
    """True if a stage's folder holds a finished run, or a merged model."""
    if kind == "merge":
        return settings_file(run, kind).is_file()
    return (run / "config.toml").is_file() and summary(run, tests=False).state == "finished"
