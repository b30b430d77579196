"""The README's own data and reward, trained for real on a tiny model; what that run holds is what the pages say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import ROOT, is_documented, section, write_files

from coterie import launch
from coterie.config.load import load
from coterie.config.schema import RunConfig
from coterie.runs.metrics import MetricsDB
from tiny import tiny_tokenizer
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The finished run of `coterie train @ dates.toml`, shortened."""
    folder, before = tmp_path_factory.mktemp("example"), Path.cwd()
    write_files(folder)
    save_tiny_model(folder / "tiny")
    os.chdir(folder)
    exec((folder / "make_dates.py").read_text(encoding="utf-8"), {})
    try:
        yield folder / launch.train(settings())
    finally:
        os.chdir(before)


def settings() -> RunConfig:
    """With a KL and two optimizer steps, so that every metric there is appears."""
    words = "--model.name tiny --threads 1 --steps 2 --objective.kl-beta 0.01 --optim.minibatches 2 --eval.every 1"
    return load(["@", "dates.toml", *words.split(), "--sampling.max-tokens", "4"], env={}).config


def save_tiny_model(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=0, eos_token_id=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_the_example_is_sound(run: Path) -> None:
    lines = launch.validate(settings()).lines
    assert [text for level, _, text in lines if level == "fail"] == []
    (verdict,) = [text for level, subject, text in lines if (level, subject) == ("ok", "reward similarity")]
    assert verdict.startswith("gold answers score 1, garbage 0")


def test_the_run_leaves_what_the_pages_list(run: Path) -> None:
    assert run.name == "tiny-dates-001"
    shown: set[str] = set()
    for line in (ROOT / "docs/runs.md").read_text(encoding="utf-8").split("## Rollouts")[0].splitlines():
        if line.startswith("| `"):
            shown |= {name.split("/")[0] for name in re.findall(r"`([^`]+)`", line.split("|")[1])}
    left = {path.name for path in run.iterdir() if not path.name.startswith(".") and "sqlite-" not in path.name}
    assert shown - left <= {"quarantine.jsonl"}
    assert left <= shown
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(name in readme for name in left)
    checkpoint = next((run / "checkpoints").glob("step_*"))
    page = section(ROOT / "docs/runs.md", "Checkpoints")
    assert all(path.name in page for path in checkpoint.iterdir())


def test_every_metric_is_on_the_page(run: Path) -> None:
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        assert [name for name in database.names() if not is_documented(name)] == []


def test_every_event_of_a_run_can_be_read(run: Path) -> None:
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        kinds = {event.kind for event in database.events()}
    assert {"versions", "checkpoint"} <= kinds
