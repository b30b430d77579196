"""The set-up file, without setting anything up: what it decides, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "bootstrap.py"


@pytest.fixture
def bootstrap(tmp_path, monkeypatch) -> types.ModuleType:
    """The module over a folder of its own."""
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text('dependencies = ["torch==9.9.9"]')
    (tmp_path / "bootstrap.py").write_text("")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "PYTHON", tmp_path / ".venv/bin/python")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv/coterie-stamp.json")
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS", "PIP_CERT", "SSL_CERT_FILE", "COTERIE_NO_UV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "pip_setting", lambda name: "")
    return module


@pytest.fixture
def installs(bootstrap, monkeypatch) -> list[str]:
    """Every attempt to install, as `tool: words`; all of them work."""
    attempts: list[str] = []
    monkeypatch.setattr(bootstrap, "pip", lambda words, env: attempts.append("pip: " + " ".join(words)) or True)
    monkeypatch.setattr(
        bootstrap, "uv_install", lambda words, env, flags: attempts.append(f"uv: {' '.join(words)} {flags}") or True
    )
    monkeypatch.setattr(bootstrap, "usable_venv", lambda: True)
    return attempts


def test_installs_once_and_again_when_something_changed(bootstrap, installs, tmp_path):
    assert bootstrap.set_up({"train"}, gpu=False) is None
    assert len(installs) == 2
    assert bootstrap.set_up({"train"}, gpu=False) is None
    assert len(installs) == 2
    (tmp_path / "pyproject.toml").write_text('dependencies = ["torch==9.9.8"]')
    assert bootstrap.set_up({"train"}, gpu=False) is None
    assert len(installs) == 4


def test_extras_add_up(bootstrap, installs):
    bootstrap.set_up({"train", "dev"}, gpu=False)
    before = len(installs)
    bootstrap.set_up({"train"}, gpu=False)
    assert len(installs) == before
    bootstrap.set_up({"train", "gpu"}, gpu=True)
    assert json.loads(bootstrap.STAMP.read_text())["extras"] == ["dev", "gpu", "train"]
    assert installs[-1].startswith("uv: -e .[dev,gpu,train]")


def test_broken_stamp_is_no_stamp(bootstrap, installs):
    for text in ("{", "[]", '{"extras": 3}'):
        bootstrap.STAMP.write_text(text)
        assert bootstrap.read_stamp() == {}


def test_without_uv(bootstrap, installs, monkeypatch):
    monkeypatch.setenv("COTERIE_NO_UV", "1")
    assert bootstrap.install({"train"}, gpu=False) == {"train"}
    assert installs == ["pip: install -e .[train]"]


def test_falls_back_to_pip(bootstrap, installs, monkeypatch):
    monkeypatch.setattr(bootstrap, "uv_install", lambda *_: False)
    assert bootstrap.install({"train"}, gpu=False) == {"train"}
    assert installs == ["pip: install -q uv", "pip: install -e .[train]"]


@pytest.mark.parametrize("uv", [True, False])
def test_the_tasks_come_without_what_has_to_be_compiled(bootstrap, installs, monkeypatch, tmp_path, uv):
    (tmp_path / "pyproject.toml").write_text('dependencies = ["torch==9.9.9"]\ntasks = ["reasoning-gym==0.1.25"]')
    if not uv:
        monkeypatch.setenv("COTERIE_NO_UV", "1")
    assert bootstrap.install({"train"}, gpu=False) == {"train"}
    last = "uv: --no-deps reasoning-gym==0.1.25 []" if uv else "pip: install --no-deps reasoning-gym==0.1.25"
    assert installs[-1] == last


def test_set_up_alone_says_where_the_program_is(bootstrap, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "set_up", lambda extras, gpu: None)
    monkeypatch.setattr(bootstrap, "has_gpu", lambda: False)
    assert bootstrap.main(["setup"]) == 0
    assert "coterie is installed: " in capsys.readouterr().err


def test_goes_on_without_the_gpu_extras(bootstrap, installs, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "uv_install", lambda words, *_: "gpu" not in words[-1])
    monkeypatch.setattr(bootstrap, "pip", lambda words, env: "gpu" not in words[-1])
    assert bootstrap.install({"train", "gpu"}, gpu=True) == {"train"}
    assert "vLLM did not install" in capsys.readouterr().err


def test_says_what_helps_when_nothing_installs(bootstrap, installs, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "install", lambda *_: None)
    assert bootstrap.set_up({"train"}, gpu=False) == 1
    assert "what helps: check the network" in capsys.readouterr().err
    assert not bootstrap.STAMP.exists()


def test_says_what_helps_without_venv(bootstrap, installs, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "usable_venv", lambda: False)
    monkeypatch.setattr(bootstrap, "make_venv", lambda: False)
    assert bootstrap.set_up({"train"}, gpu=False) == 1
    assert "python3-venv" in capsys.readouterr().err


def test_cpu_build_of_torch(bootstrap, monkeypatch, tmp_path):
    """On Linux without a GPU: the local wheel when there is one, else the CPU build before the CUDA build."""
    monkeypatch.setattr(bootstrap.sys, "platform", "linux")
    assert bootstrap.torch_flags(False, {}) == [["--torch-backend", "cpu"], []]
    assert bootstrap.torch_flags(True, {}) == [[]]
    (tmp_path / "torch-9.9.9+cpu-cp311.whl").touch()
    assert bootstrap.torch_flags(False, {"UV_FIND_LINKS": f"/nowhere,{tmp_path}"}) == [[]]
    (tmp_path / "pyproject.toml").write_text('dependencies = ["torch==1.0"]')
    assert len(bootstrap.torch_flags(False, {"UV_FIND_LINKS": str(tmp_path)})) == 2


def test_uv_gets_pips_settings(bootstrap, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/a /b")
    monkeypatch.setattr(bootstrap, "pip_setting", {"global.cert": "/c.pem"}.get)
    env = bootstrap.environment()
    assert env["UV_FIND_LINKS"] == "/a,/b"
    assert env["SSL_CERT_FILE"] == "/c.pem"
    assert "UV_DEFAULT_INDEX" not in env


@pytest.mark.parametrize(
    ("rest", "gpu", "tail"),
    [
        ([], False, ["-m", "not slow and not gpu"]),
        (["-k", "x"], True, ["-m", "not slow", "-k", "x"]),
        (["--slow"], True, []),
        (["-m", "assets"], False, ["-m", "assets"]),
    ],
)
def test_test_command(bootstrap, rest, gpu, tail):
    assert bootstrap.test_command(rest, gpu) == ["-m", "pytest", "-n", "2", *tail]


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--help"], 0), (["bogus"], 2)])
def test_usage(bootstrap, words, code, capsys):
    assert bootstrap.main(words) == code
    assert "python3 bootstrap.py demo" in capsys.readouterr().out


def test_needs_nothing_but_the_standard_library():
    code = f"import runpy; runpy.run_path({str(FILE)!r})"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
