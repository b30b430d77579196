"""The GPU benchmark runs where there is no GPU: the same code, the same table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
EXPECTED = {
    "captured decode step",
    "captured decode, bandwidth efficiency",
    "captured decode, largest difference from eager",
    "generation",
    "forward and backward of a row, sdpa",
    "forward and backward of a row, flex",
    "gradient, flex against sdpa, 1 - cosine",
    "update",
    "update, MFU",
    "step",
    "peak memory",
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=settings)


def test_a_tiny_run_on_the_cpu_measures_everything(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--tiny", "--no-trl", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    values = {row["what"]: row["value"] for row in report["rows"]}
    assert set(values) >= EXPECTED
    assert values["captured decode, largest difference from eager"] == 0
    assert abs(values["gradient, flex against sdpa, 1 - cosine"]) < 1e-6
    assert values["update"] > 0
    assert values["step"] > 0
    assert report["machine"]["device"] == "cpu"
    table = (tmp_path / "gpu.md").read_text()
    assert all(f"| tiny | {what} |" in table for what in EXPECTED)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_how_to_check() -> None:
    done = run()
    assert done.returncode != 0
    assert "--device cpu --tiny" in done.stderr


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--tiny", "--trl", str(tmp_path / "nowhere"))
    assert done.returncode != 0
    assert "nowhere" in done.stderr
