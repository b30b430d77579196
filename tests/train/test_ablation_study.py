"""The benchmark that replays recorded rollouts: its error of a baseline is one, and no variant sees its own reward."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_turns_in_runs import ENVIRONMENT

from coterie import launch
from coterie.grouping.arrays import Rollouts
from coterie.grouping.presets import Settings
from runs_for_tests import importable, make_config

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "grouping"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, found)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("ablate", monkeypatch)


def stream(steps: int, prompts: int, size: int) -> tuple[list[Rollouts], np.ndarray]:
    """Right-or-wrong rollouts of prompts with fixed chances [P]; no features."""
    source = np.random.default_rng(5)
    chances = source.uniform(0.1, 0.9, prompts)
    names = tuple(f"q{index}" for index in range(prompts) for _ in range(size))
    found = [
        Rollouts(
            prompts=names,
            rewards=(source.random(prompts * size) < np.repeat(chances, size)).astype(float),
            features=np.zeros((prompts * size, 0)),
            time=float(step),
        )
        for step in range(steps)
    ]
    return found, chances


def test_the_error_is_the_distance_from_the_true_chance(study: ModuleType) -> None:
    found, chances = stream(steps=60, prompts=40, size=4)
    error = study.judge(found, (), "rloo", Settings())
    # The mean of three siblings misses p by p(1 - p) / 3.
    assert error.whole == pytest.approx(np.mean(chances * (1 - chances)) / 3, rel=0.1)
    floor = np.mean([study.floor(one) for one in found])
    assert floor == pytest.approx(np.mean(chances * (1 - chances)), rel=0.05)
    assert study.judge(found, (), "empirical_bayes", Settings()).whole < error.whole, "its memory knows these prompts"
    assert error.power == pytest.approx(floor + error.whole), "without weights"


def test_a_prompt_with_one_rollout_says_nothing_of_the_floor(study: ModuleType) -> None:
    with pytest.raises(ValueError, match="q0 has a single rollout"):
        study.floor(stream(steps=1, prompts=2, size=1)[0][0])


def test_a_recorded_run_is_replayed_under_every_variant(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(
        tmp_path, grouping={"preset": "empirical_bayes", "min_weight": 4.0}, steps=3, eval={"every": 0}
    )
    run = launch.train(config)
    monkeypatch.setattr(sys, "argv", ["ablate.py", str(run), "--out", "found.json"])
    study.main()
    text = capsys.readouterr().out
    names = [name for name, _, _ in study.variants()]
    assert len(names) == 1 + 5 + 6 + 5
    assert all(f"| {name} | " in text for name in names)
    assert (tmp_path / "found.json").is_file()


def test_recorded_episodes_say_what_their_states_are_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Three turns of which each earns what it says: what was said before does not matter, and the state says so."""
    (tmp_path / "tiny_env.py").write_text(ENVIRONMENT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    config = make_config(
        tmp_path,
        environment={"name": "tiny_env:letters", "max_tokens": 160},
        rewards={"functions": [{"name": "environment"}]},
        grouping={"preset": "mixture", "min_weight": 4.0},
        collect={"prompts_per_step": 2, "group_size": 8},
        steps=3,
        eval={"every": 0},
    )
    run = launch.train(config)
    monkeypatch.setattr(sys, "argv", ["states.py", str(run)])
    states = load("states", monkeypatch)
    states.main()
    assert "| 8 | " in capsys.readouterr().out
    (judged,) = states.judges([run])
    found = {size: states.measure(*judged, size) for size in (1, 2, 8)}
    assert found[1].shared == 0, "nobody else"
    assert found[1].power == 1
    assert 0 < found[2].shared <= found[8].shared <= 1
    assert found[8].power < 1
