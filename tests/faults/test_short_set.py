"""The short set of faults, each section of it a test; `python3 bootstrap.py faults` runs the long one."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import coterie
from coterie.config.load import load
from coterie.errors import ConfigError
from faults import configs
from faults.__main__ import CUT, WHOLE, Share
from faults.cases import Case
from faults.table import TITLES, markdown, merge

TESTS = Path(__file__).parent.parent
LEAST = {
    "flips": 3,
    "damage": 10,
    "power": 2,
    "stop": 6,
    "random": 2,
    "tools": 2,
    "stages": 6,
    "points": 5,
    "disk": 9,
    "calls": 3,
    "secrets": 2,
    "engine": 15,
    "services": 12,
    "clock": 1,
    "soak": 2,
}
"""Section → cases that must have been tried: a skipped case is a failure."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the set for all workers of pytest: the first starts it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "faults"
    out.mkdir(exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "said").exists():
            _run_set(out)
    return out


def _run_set(out: Path) -> None:
    """Runs in processes of its own, which have no threads when they fork."""
    paths = [str(Path(coterie.__file__).parent.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "faults", "--short", "--workers", "2", "--out", str(out), "--only", *LEAST]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    (out / "said").write_text(done.stdout[-4000:] + done.stderr[-4000:])


@pytest.mark.parametrize("section", LEAST)
def test_no_fault_makes_a_difference(results: Path, section: str) -> None:
    file = results / f"{section}.jsonl"
    assert file.exists(), (results / "said").read_text()
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    *cases, end = rows
    assert [f"{case['name']}: {case['problem']}" for case in cases if case["problem"] is not None] == []
    assert "seconds" in end, f"cut off after {len(cases)} cases"
    assert len(cases) >= LEAST[section]


def test_every_mutant_of_the_settings_is_refused_by_its_key() -> None:
    cases = list(configs.refused())
    assert [f"{case.name}: {case.problem}" for case in cases if case.problem] == []
    assert cases[-1].facts["mutants"] >= 500


def test_mutants_are_always_the_same() -> None:
    assert list(configs.mutants()) == list(configs.mutants())


def test_a_file_of_nothing_but_mistakes_is_explained_briefly(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("".join(f"mistake{k} = 1\n" for k in range(2_000)))
    with pytest.raises(ConfigError) as error:
        load(["@", str(tmp_path / "x.toml")], env={})
    lines = str(error.value).split("\n")
    assert lines[0].startswith("unknown setting mistake0")
    assert lines[-1] == "… and 1,970 more"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_workers_leave_nothing_out_and_do_nothing_whole_twice(count: int) -> None:
    assert {*CUT, *WHOLE} == set(TITLES)
    shares = [Share(index, count) for index in range(count)]
    assert {name: sum(share.takes(name) for share in shares) for name in TITLES} == {
        **dict.fromkeys(CUT, count),
        **dict.fromkeys(WHOLE, 1),
    }


def test_rows_of_workers_become_one_table_and_a_section_that_was_cut_off_has_no_time(tmp_path: Path) -> None:
    for index, (points, ended) in enumerate([(2, True), (1, False)]):
        folder = tmp_path / str(index)
        folder.mkdir()
        facts = {"deaths": ["update"], "refusals": [], "recovery": [0.5], "lost": [1]}
        for name, end in (("random", True), ("points", ended)):
            rows = [asdict(Case(section=name, name=f"{k}", problem=None, facts=facts)) for k in range(points)]
            rows += [{"section": name, "seconds": 7 + index, "cpu": 1.0, "seed": 0}] if end else []
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    merge([tmp_path / "0", tmp_path / "1"], tmp_path)
    random, points = markdown(tmp_path).splitlines()[2:]
    assert "| 3 | 3 | 3 kills (update 3)" in random
    assert random.endswith("| 8 s |")
    assert points.endswith("| cut off |")
