"""The pages keep their word: links resolve, files are named, numbers and names are those of the code."""

from __future__ import annotations

import ast
import asyncio
import doctest
import importlib
import re
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import source_tree
from pages import PAGES, ROOT, Block, blocks, blocks_of, load_module, prose, section, write_files

from coterie.data.assets import ASSETS
from coterie.grouping.arrays import Rollouts
from coterie.grouping.estimator import self_influence
from coterie.grouping.model import GroupAwareBaseline
from coterie.rewards import registry
from coterie.runs.metrics import MetricsDB
from coterie.runs.rows import schema
from coterie.types import Prompt

PACKAGE = ROOT / "src/coterie"
LONGEST = {"README.md": 199, "reader_loop.py": 200}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST["README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_in_prose_exist(page: Path) -> None:
    """`policy/learner.py` stands for a file of the package, `tests/…` for one of the repository."""
    for name in re.findall(r"`([\w./-]+/[\w-]+\.(?:py|toml|md))`", prose(page)):
        assert (ROOT / name).is_file() or (PACKAGE / name).is_file(), f"{page.name}: {name}"


def test_the_readme_describes_files_by_their_docstrings() -> None:
    (block,) = [block for block in blocks_of(ROOT / "README.md") if block.note == "tree"]
    for line in block.text.splitlines():
        name, _, description = line.partition(" ")
        assert description.strip() == source_tree.first_sentence(PACKAGE / name), name


def test_the_demo_names_a_part_of_the_readme() -> None:
    (part,) = re.findall(r"README\.md, ([^\"]+)", (PACKAGE / "demo.py").read_text(encoding="utf-8"))
    assert f"**2. {part}**" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_of_source_files_is_that_of_the_docstrings() -> None:
    """`python tests/docs/source_tree.py` writes it."""
    assert source_tree.PAGE.read_text(encoding="utf-8") == source_tree.page()


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = compile(block.text, str(block), "exec", dont_inherit=True)
    if block.note == "session":  # tests/docs/test_python_page.py trains with these
        return
    if block.note == "sketch":
        loop = (PACKAGE / "train/grpo.py").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Call):
                called = node.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                assert f"{name}(" in loop, f"{block}: the loop calls no {name}"
        return
    if "runs/" in block.text:
        MetricsDB(tmp_path / "runs/smollm2-135m-chain_sum-001/metrics.sqlite").close()
    exec(code, {"__name__": "page"})


def test_the_rewards_of_the_page_do_what_it_says() -> None:
    (block,) = [block for block in blocks("python") if block.note == "my_rewards.py"]
    page: dict[str, Any] = {}
    exec(block.text, page)
    assert page["ends_politely"](["9, thank you.", "9"], task=["", ""]) == [1.0, 0.0]
    near = page["near"](["it is 7", "it is 12", "so", "7"], ["7", "7", "7", None], scale=10.0)
    assert asyncio.run(near) == [1.0, 0.5, 0.0, None]


def test_modules_with_examples() -> None:
    """Every `>>>` in a docstring of the package is run."""
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in file.read_text(encoding="utf-8")]
    assert {"advantages", "surrogates", "kl", "stats"} <= {file.stem for file in files}
    for file in files:
        name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        result = doctest.testmod(importlib.import_module(name))
        assert result.attempted > 0, name
        assert result.failed == 0, name


def test_the_reader_loop_learns(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "recipes/reader_loop.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST["reader_loop.py"]
    curve = load_module(path).train()
    assert curve[0] < 0.6
    assert curve[-1] > 0.9
    assert "reward" in capsys.readouterr().out


def test_every_column_and_table_is_on_the_page(tmp_path: Path) -> None:
    columns = section(ROOT / "docs/runs.md", "Rollouts")
    named = set(re.findall(r"`([a-z_]+)`", "".join(line.split("|")[1] for line in columns.splitlines() if "|" in line)))
    assert set(schema().names) == named
    MetricsDB(tmp_path / "metrics.sqlite").close()
    with sqlite3.connect(tmp_path / "metrics.sqlite") as database:
        stored = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    database.close()
    text = section(ROOT / "docs/runs.md", "Metrics")
    assert stored == {name for name in stored if f"`{name}`" in text}


def test_every_reward_and_its_params_are_on_the_page() -> None:
    rows = {}
    for line in section(ROOT / "docs/rewards.md", "Built in").splitlines():
        cells = line.split("|")
        if len(cells) == 5 and cells[1].strip().startswith("`"):
            rows[cells[1].strip(" `")] = set(re.findall(r"`(\w+)`", cells[3]))
    assert rows == {name: set(registry.load(name, {}).settings) for name in registry.BUILT_IN}


def test_every_step_function_and_its_params_are_on_the_page() -> None:
    rows = {}
    for line in section(ROOT / "docs/rewards.md", "Step rewards").splitlines():
        cells = line.split("|")
        if len(cells) == 6 and cells[1].strip().startswith("`"):
            rows[cells[1].strip(" `")] = set(re.findall(r"`(\w+)`", cells[4]))
    assert rows == {name: set(registry.load(name, {}, steps=True).settings) for name in registry.STEPS}


def test_the_steps_of_the_page_do_what_it_says() -> None:
    (block,) = [block for block in blocks("python") if block.note == "my_steps.py"]
    page: dict[str, Any] = {}
    exec(block.text, page)
    assert page["short_sentences"](["one. and two more.", "none"], most=2) == [[(4, True), (18, False)], []]


def test_the_groups_of_the_page_do_what_it_says() -> None:
    (block,) = [block for block in blocks("python") if block.note == "my_groups.py"]
    page: dict[str, Any] = {}
    exec(block.text, page)
    baseline = GroupAwareBaseline(preset="my_groups:siblings_or_past", custom=page["siblings_or_past"])
    rollouts = Rollouts(prompts=tuple("aaab"), rewards=np.array([1.0, 0, 0, 1]), features=np.zeros((4, 0)), time=0.0)
    assert baseline.predict(rollouts).tolist() == [0.0, 0.5, 0.5, 0.5]
    assert self_influence(baseline, rollouts) < 1e-12
    baseline.observe(rollouts)
    later = Rollouts(prompts=("b", "c"), rewards=np.array([0.0, 1]), features=np.zeros((2, 0)), time=1.0)
    assert baseline.predict(later).tolist() == [1.0, 0.5]
    prompt = Prompt(id="a", messages=(), answer=None, task="sums", attributes={"source": "book"})
    assert page["by_source"](prompt) == "book"


def test_every_asset_is_on_the_page_with_its_licence() -> None:
    table = section(ROOT / "docs/data.md", "Assets")
    for name, asset in ASSETS.items():
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
        assert asset.requirement.replace("==", " ") in row
        assert asset.licence in row
        assert not asset.noncommercial or "not for commercial use" in row
