"""Folders: data sets that `datasets` saved, and clones of hub repositories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coterie.data.rows import Row
from coterie.data.shards import read_path
from coterie.errors import DataError


def shard(path: Path, *words: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"problem": list(words)})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)


def saved(folder: Path, *shards: str, **state: Any) -> Path:
    """As `Dataset.save_to_disk` leaves it."""
    names = [f"data-{index:05}-of-{len(shards):05}.arrow" for index in range(len(shards))]
    for name, words in zip(names, shards, strict=True):
        shard(folder / name, *words)
    (folder / "dataset_info.json").write_text('{"features": {}}')
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **state}))
    return folder


def words(rows: list[Row]) -> str:
    return "".join(row.data["problem"] for row in rows if row.data is not None)


def read(path: Path, **choice: str) -> tuple[str, str]:
    rows, note = read_path(path, **choice)
    rows = list(rows)
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    return words(rows), note


def test_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    assert read(saved(tmp_path, "ab", "c")) == ("abc", "2 shards of a saved dataset")
    with pytest.raises(DataError, match=r"split = 'test', but .* is a dataset of one split"):
        read(tmp_path, split="test")
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"lacks data-00001-of-00002.arrow; save it again"):
        read(tmp_path)


def test_a_dataset_with_splits_saved_to_disk(tmp_path: Path) -> None:
    saved(tmp_path / "train", "ab")
    saved(tmp_path / "test", "c")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert read(tmp_path) == ("ab", "split train (not read: test): 1 shard of a saved dataset")
    assert read(tmp_path, split="test")[0] == "c"
    with pytest.raises(DataError, match=r"has no split 'tets'; it has train, test; did you mean 'test'"):
        read(tmp_path, split="tets")


def test_a_folder_of_shards(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# OpenR1\n")
    (tmp_path / ".cache").mkdir()
    shard(tmp_path / ".cache" / "x.parquet", "z")
    shard(tmp_path / "data" / "train-00001-of-00002.parquet", "c")
    shard(tmp_path / "data" / "train-00000-of-00002.parquet", "a", "b")
    shard(tmp_path / "data" / "test-00000-of-00003.parquet", "d")
    where = Path("data") / "train-00000-of-00002.parquet"
    assert read(tmp_path) == ("abc", f"split train (not read: test): 2 files ({where} …)")
    assert read(tmp_path, split="test") == (
        "d",
        f"split test (not read: train): 1 file of 3 ({Path('data') / 'test-00000-of-00003.parquet'})",
    )


README = """---
license: apache-2.0
configs:
- config_name: all
  data_files:
  - split: train
    path: all/part-*
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: [data/held.parquet]
---
# OpenR1-Math
"""


def test_the_configurations_of_a_repository(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README)
    shard(tmp_path / "all" / "part-1.parquet", "x", "y")
    shard(tmp_path / "data" / "train-00000-of-00001.parquet", "a")
    shard(tmp_path / "data" / "held.parquet", "h")
    where = Path("data") / "train-00000-of-00001.parquet"
    assert read(tmp_path) == (
        "a",
        f"config default (not read: all), split train (not read: validation): 1 file ({where})",
    )
    assert read(tmp_path, config="all")[0] == "xy"
    assert read(tmp_path, split="validation")[0] == "h"
    with pytest.raises(DataError, match=r"has no config 'every'; it has all, default"):
        read(tmp_path, config="every")


def test_files_by_split_in_folders_and_names(tmp_path: Path) -> None:
    for name, word in (("train/0.jsonl", "a"), ("dev/0.jsonl", "b"), ("gsm_test.jsonl", "c")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"problem": word}))
    assert [read(tmp_path, split=split)[0] for split in ("train", "validation", "test")] == ["a", "b", "c"]
    (tmp_path / "train" / "0.jsonl").unlink()
    with pytest.raises(
        DataError, match=r'has the splits validation, test; set split on this source, e.g. split = "val'
    ):
        read(tmp_path)


def test_folders_without_data_and_choices_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match=r"is a model folder: expected .parquet"):
        read(tmp_path)
    (tmp_path / "q.jsonl").write_text('{"problem": "a"}')
    with pytest.raises(DataError, match=r"split = 'train' is for folders, and .*q.jsonl is a file"):
        read(tmp_path / "q.jsonl", split="train")
    with pytest.raises(DataError, match=r"config = 'main', but .* has no README.md that names configurations"):
        read(tmp_path, config="main")
