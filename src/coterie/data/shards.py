"""Folders of data: a dataset saved with `save_to_disk`, or the shards of a hub repository, split by split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coterie.data.files import READERS, is_array, read_file, suffix_of
from coterie.data.rows import Row
from coterie.errors import DataError
from coterie.text import did_you_mean

TRAIN = "train"
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words in the names of files and folders by which `datasets` tells splits apart."""
_PREFERRED = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".feather")
_NO_DATA = re.compile(
    r"dataset_infos?\.json|dataset_dict\.json|state\.json|.*config\.json|tokenizer.*\.json|special_tokens_map\.json"
    r"|vocab\.json|added_tokens\.json|package(-lock)?\.json|.*\.index\.json|cache-.*\.arrow"
)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """The files of one split, in order."""

    files: tuple[Path, ...]
    note: str
    """Choices that were made, for a person."""


def read_path(path: Path, *, split: str | None = None, config: str | None = None) -> tuple[Iterator[Row], str]:
    """Rows of a file or of a folder, with a note on what was recognised or chosen."""
    if not path.is_dir():
        for name, value in (("split", split), ("config", config)):
            if value is not None and path.is_file():
                raise DataError(f"{name} = {value!r} is for folders, and {path} is a file; leave it out")
        lines = path.is_file() and suffix_of(path) in (".jsonl", ".ndjson")
        return read_file(path), "read as one JSON array, not as one object a line" if lines and _array(path) else ""
    shards = shards_of(path, split, config)
    return _numbered(shards.files), shards.note


def _array(path: Path) -> bool:
    try:
        return is_array(path)
    except (OSError, EOFError, ValueError):
        return False  # reading says what is wrong


def _numbered(files: Sequence[Path]) -> Iterator[Row]:
    """Rows of several files, numbered through; those of one file keep their numbers."""
    if len(files) == 1:
        yield from read_file(files[0])
        return
    number = 0
    for file in files:
        for row in read_file(file):
            number += 1
            yield replace(row, number=number)


def shards_of(folder: Path, split: str | None, config: str | None) -> Shards:
    """The data files of a folder.

    Args:
        split: which one; `train`, or the only one, when None.
        config: of those that the README.md of a hub repository names; the default one when None.
    """
    if (folder / "dataset_dict.json").is_file():
        names = [name for name in _saved(folder / "dataset_dict.json").get("splits", ()) if isinstance(name, str)]
        chosen = _choose(names, split, "split", folder, default=TRAIN)
        shards = _saved_dataset(folder / chosen)
        return replace(shards, note=f"split {chosen}{_others(names, chosen)}: {shards.note}")
    if (folder / "state.json").is_file():
        if split is not None:
            raise DataError(f"split = {split!r}, but {folder} is a dataset of one split; leave it out")
        return _saved_dataset(folder)
    splits, title = _repository(folder, config)
    chosen = _choose(list(splits), split, "split", folder, default=TRAIN)
    files = splits[chosen]
    names = f"{files[0].relative_to(folder)}{' …' if len(files) > 1 else ''}"
    number = f"{len(files)} file{'' if len(files) == 1 else 's'}{_missing(files)}"
    return Shards(files=files, note=f"{title}split {chosen}{_others(list(splits), chosen)}: {number} ({names})")


def _choose(names: Sequence[str], wish: str | None, setting: str, folder: Path, *, default: str) -> str:
    if wish is not None and wish not in names:
        hint = did_you_mean(wish, names)
        raise DataError(f"{folder} has no {setting} {wish!r}; it has {', '.join(names) or 'none'}{hint}")
    if wish is not None:
        return wish
    if default in names or len(names) == 1:
        return default if default in names else names[0]
    raise DataError(
        f"{folder} has the {setting}s {', '.join(names) or 'none'}; set {setting} on this source, e.g. {setting} = "
        f'"{next(iter(names), "…")}"'
    )


def _missing(files: Sequence[Path]) -> str:
    """Expected number of shards, where some are missing."""
    totals = {int(match.group(1)) if (match := _SHARD.search(file.stem)) else len(files) for file in files}
    return f" of {totals.copy().pop()}" if len(totals) == 1 and totals != {len(files)} else ""


def _others(names: Iterable[str], chosen: str) -> str:
    others = [name for name in names if name != chosen]
    return f" (not read: {', '.join(others)})" if others else ""


# save_to_disk


def _saved(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; save the dataset again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object; save the dataset again")
    return value


def _saved_dataset(folder: Path) -> Shards:
    state = _saved(folder / "state.json")
    listed = [entry.get("filename") for entry in state.get("_data_files") or () if isinstance(entry, Mapping)]
    files = tuple(folder / name for name in listed if isinstance(name, str))
    missing = [file.name for file in files if not file.is_file()]
    if not files or missing:
        what = f"lacks {', '.join(missing)}" if missing else "names no data files in state.json"
        raise DataError(f"the dataset {folder} {what}; save it again with save_to_disk")
    if state.get("_indices_data_files"):
        raise DataError(
            f"the dataset {folder} was saved by an old version of datasets with an index of its rows; load it, call "
            "flatten_indices() and save it again"
        )
    return Shards(files=files, note=f"{len(files)} shard{'' if len(files) == 1 else 's'} of a saved dataset")


# Hub repositories


def _repository(folder: Path, config: str | None) -> tuple[dict[str, tuple[Path, ...]], str]:
    """(files by split, text of the note before the split)."""
    configs = _configs(folder)
    if configs:
        default = next((name for name, entry in configs.items() if entry.get("default")), "default")
        chosen = _choose(list(configs), config, "config", folder, default=default)
        splits = _configured(folder, configs[chosen])
        if splits:
            title = f"config {chosen}{_others(configs, chosen)}, " if len(configs) > 1 else ""
            return splits, title
    elif config is not None:
        raise DataError(f"config = {config!r}, but {folder} has no README.md that names configurations; leave it out")
    files = _data_files(folder / "data") if (folder / "data").is_dir() else []
    files = files or _data_files(folder)
    if not files:
        names = sorted(path.name for path in folder.iterdir())
        kind = "a model folder" if "config.json" in names and "tokenizer_config.json" in names else "without data files"
        raise DataError(
            f"{folder} is {kind}: expected {', '.join(_PREFERRED)} files, or a dataset saved with save_to_disk; it "
            f"holds {', '.join(names[:10]) or 'nothing'}{' …' if len(names) > 10 else ''}"
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    return {name: tuple(sorted(paths)) for name, paths in splits.items()}, ""


def _configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Configurations by name, as the head of README.md describes them for the hub."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    text = readme.read_text(encoding="utf-8", errors="replace")
    head = re.match(r"\A\ufeff?---\s*\n(.*?)\n---\s*$", text, re.DOTALL | re.MULTILINE)
    if head is None:
        return {}
    import yaml

    try:
        described = yaml.safe_load(head.group(1))
    except yaml.YAMLError:
        return {}
    entries = described.get("configs") if isinstance(described, Mapping) else None
    if not isinstance(entries, list):
        return {}
    return {
        str(entry.get("config_name", "default")): entry
        for entry in entries
        if isinstance(entry, Mapping) and ("data_files" in entry or "data_dir" in entry)
    }


def _configured(folder: Path, entry: Mapping[str, Any]) -> dict[str, tuple[Path, ...]]:
    base = folder / str(entry.get("data_dir", ""))
    patterns = entry.get("data_files")
    if patterns is None:
        splits: dict[str, list[Path]] = {}
        for file in _data_files(base):
            splits.setdefault(_split_of(file.relative_to(base)), []).append(file)
        return {name: tuple(sorted(paths)) for name, paths in splits.items()}
    if isinstance(patterns, Mapping):
        patterns = [{"split": name, "path": path} for name, path in patterns.items()]
    if not isinstance(patterns, list) or not any(isinstance(pattern, Mapping) for pattern in patterns):
        patterns = [{"split": TRAIN, "path": patterns}]
    files = {
        str(pattern.get("split", TRAIN)): _matching(base, pattern.get("path"))
        for pattern in patterns
        if isinstance(pattern, Mapping)
    }
    return {name: paths for name, paths in files.items() if paths}


def _matching(base: Path, patterns: Any) -> tuple[Path, ...]:
    """Files under `base` that one of the patterns names; a pattern that leads out of it names none."""
    files: set[Path] = set()
    for pattern in patterns if isinstance(patterns, list) else [patterns]:
        if not isinstance(pattern, str) or Path(pattern).is_absolute() or ".." in Path(pattern).parts or not pattern:
            continue
        if (base / pattern).is_dir():
            files |= set(_data_files(base / pattern))
        else:
            files |= {file for file in base.glob(pattern) if file.is_file() and suffix_of(file) in READERS}
    return tuple(sorted(files))


def _data_files(folder: Path) -> list[Path]:
    """All data files below a folder of the first format that it has any of, hidden ones left out."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)
        and not _NO_DATA.fullmatch(file.name)
    ]
    for suffix in _PREFERRED:
        chosen = [file for file in files if suffix_of(file) == suffix]
        if chosen:
            return chosen
    return []


def _split_of(relative: Path) -> str:
    """`train` of `data/train-00000-of-00004.parquet` and of `train/0.parquet`; the whole stem's words otherwise."""
    name = relative.name.partition(".")[0]
    for part in (_SHARD.sub("", name), *reversed(relative.parts[:-1])):
        for word in re.split(r"[^a-z0-9]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return TRAIN
