"""Data and models given as Python objects, written to files that settings can name.

A file's name is a hash of its content: the same rows are written once, and a run's settings name them for good.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from coterie.config.data import AssetSource, FileSource, HubSource, PythonSource, ReasoningGymSource
from coterie.errors import ConfigError, DataError, ModelError

FOLDER = ".inputs"
"""Below the runs folder; no run can have this name."""
_SOURCES = (AssetSource, FileSource, HubSource, PythonSource, ReasoningGymSource)
_TYPES = {name for kind in _SOURCES for name in get_args(kind.model_fields["type"].annotation)}
_ROWS = (
    "a list of dicts, a pandas or Arrow table, a Hugging Face Dataset, a path, or a source as in a TOML file: "
    '{"type": "hub", "name": …}'
)


def source_of(data: Any, runs: Path, task: str) -> dict[str, Any]:
    """The data source, as in a TOML file, for what was given as `data` or `heldout`.

    Args:
        runs: the runs folder, below which rows are written.
        task: name of the rows' task, where they have no file of their own.
    """
    if isinstance(data, str | Path):
        from coterie.data.assets import ASSETS

        if isinstance(data, str) and data in ASSETS and not Path(data).exists():
            return {"type": "asset", "name": data}
        return {"type": "file", "path": str(Path(data).expanduser().absolute())}
    if isinstance(data, Mapping) and data.get("type") in _TYPES:
        return dict(data)
    text = "".join(_line(number, row, task) for number, row in enumerate(rows_of(data, task)))
    if not text:
        raise DataError(f"{task} = {type(data).__name__} without rows; expected at least one")
    return {"type": "file", "path": str(_keep(text.encode(), runs, "rows", ".jsonl")), "task": task}


def rows_of(data: Any, task: str) -> Iterable[Any]:
    """Rows of a table, recognised by its methods, or the items of another iterable."""
    if isinstance(data, Mapping):
        hint = f"; name one of its splits, e.g. data[{next(iter(data))!r}]" if hasattr(data, "num_rows") else ""
        raise DataError(f"{task} is a {type(data).__name__} with keys {', '.join(map(str, data))}{hint}: give {_ROWS}")
    if hasattr(data, "to_pylist"):  # pyarrow
        return data.to_pylist()
    if hasattr(data, "to_dicts"):  # polars
        return data.to_dicts()
    if hasattr(data, "iloc") and hasattr(data, "to_dict"):  # pandas
        return data.to_dict("records")
    if hasattr(data, "to_list"):  # datasets
        return data.to_list()
    if not isinstance(data, Iterable) or isinstance(data, bytes):
        raise DataError(f"{task} is a {type(data).__name__}; expected {_ROWS}")
    return data


def _line(number: int, row: Any, task: str) -> str:
    if not isinstance(row, Mapping):
        hint = '; write {"prompt": …}' if isinstance(row, str) else ""
        raise DataError(f"row {number} of {task} is a {type(row).__name__}, expected a dict of columns{hint}")
    columns = {}
    for name, value in row.items():
        try:
            columns[str(name)] = plain(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"row {number} of {task}, column {name!r}: {error}; expected text, numbers, lists and dicts: convert "
                "it, or leave the column out"
            ) from error
    return json.dumps(columns, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A value as plain JSON data; NaN, the mark of a missing value in tables, becomes None."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"{value} is not a finite number")
        return None if math.isnan(value) else float(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist") and hasattr(value, "shape"):  # numpy and torch
        return plain(value.tolist())
    if hasattr(value, "isoformat"):
        text = value.isoformat()
        return None if text == "NaT" else text
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _keep(data: bytes, folder: Path, stem: str, suffix: str) -> Path:
    from coterie.runs.durable import write_file

    path = (folder / FOLDER / f"{stem}-{hashlib.sha256(data).hexdigest()[:16]}{suffix}").absolute()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
    return path


def model_of(model: Any, tokenizer: Any, runs: Path) -> str:
    """The name of a model in the settings; a loaded one is saved below the runs folder first."""
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise ConfigError(f"tokenizer goes with a loaded model; {str(model)!r} has its own: leave it out")
        return str(model)
    if not hasattr(model, "save_pretrained"):
        raise ConfigError(
            f"model is a {type(model).__name__}; expected an asset, a folder, a transformers id, or a loaded model of "
            "transformers with tokenizer="
        )
    if tokenizer is None:
        raise ConfigError("a loaded model needs its tokenizer: give tokenizer=AutoTokenizer.from_pretrained(…)")
    if hasattr(model, "peft_config"):
        raise ModelError(
            "the model has a PEFT adapter: give model.merge_and_unload(), and train a new adapter with "
            'settings={"model.lora.rank": 16}'
        )
    return str(_save(model, tokenizer, runs))


def _save(model: Any, tokenizer: Any, runs: Path) -> Path:
    root = (runs / FOLDER).absolute()
    root.mkdir(parents=True, exist_ok=True)
    import tempfile

    fresh = Path(tempfile.mkdtemp(prefix="model-", suffix=".partial", dir=root))
    try:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        content = hashlib.sha256()
        for file in sorted(fresh.rglob("*")):
            if file.is_file():
                content.update(str(file.relative_to(fresh)).encode() + b"\0")
                with file.open("rb") as stream:
                    content.update(hashlib.file_digest(stream, "sha256").digest())
        name = re.sub(r"[^\w.-]", "-", Path(str(getattr(model, "name_or_path", "") or "model")).name) or "model"
        folder = root / f"{name}-{content.hexdigest()[:16]}"
        if not folder.is_dir():
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder
