"""Divergence of a model from its base: zero from a copy of itself, and exactly what the two models' log-probs say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from coterie import launch
from coterie.cli.main import main
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError, DataError
from coterie.runs import rollouts
from runs_for_tests import make_config, make_model


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    return make_config(tmp_path, steps=4, eval={"samples": 3, "k": 1, "every": 0}, model={"dtype": "float32"})


def test_a_copy_has_not_moved(config: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(config.model.name, tmp_path / "copy")
    (drift,) = launch.drift(str(tmp_path / "copy"), config)
    assert drift.model == drift.base
    assert drift.forward.value == drift.reverse.value == 0
    assert drift.prompts == 4


def test_a_run_has_moved_by_what_its_models_say(config: RunConfig) -> None:
    run = launch.train(config)
    (drift,) = launch.drift(str(run), config)
    assert drift.forward.low > 0
    assert drift.reverse.low > 0
    # The run's own last evaluation is what the model says again.
    eval_rollouts = [row.rollout for row in rollouts.read_step(run / "evals", 4)]
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        for path in (run / "checkpoints" / "step_000004" / "model", config.model.name)
    ]
    by_prompt: dict[str, list[np.ndarray]] = {}
    for rollout in eval_rollouts:
        (turn,) = rollout.turns
        ids = torch.tensor([turn.prompt_tokens + turn.tokens])
        with torch.no_grad():
            tables = [torch.log_softmax(model(input_ids=ids).logits[0].double(), -1) for model in models]
        start = len(turn.prompt_tokens)
        spoken = [[float(table[start + k - 1, token]) for k, token in enumerate(turn.tokens)] for table in tables]
        ratio = np.array(spoken[1]) - np.array(spoken[0])
        by_prompt.setdefault(rollout.context.prompt_id, []).append(np.exp(ratio) - ratio - 1)
    expected = np.mean([np.concatenate(values).mean() for values in by_prompt.values()])
    assert drift.forward.value == pytest.approx(expected, rel=1e-3)


def test_the_verb(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = launch.train(config)
    capsys.readouterr()
    assert main(["drift", str(run), "--json"]) == 0
    (drift,) = json.loads(capsys.readouterr().out)
    assert drift["forward"]["value"] > 0
    assert main(["drift", str(run), "--eval.samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "KL(base‖model)" in out
    assert "4" in out


def test_what_cannot_be_compared_is_refused(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compared with itself"):
        launch.drift(None, config)
    with pytest.raises(ConfigError, match="compared with itself"):
        launch.drift(config.model.name, config, config.model.name)
    other = make_model(tmp_path / "other")
    empty = config.model_copy(update={"data": config.data.model_copy(update={"heldout": []})})
    with pytest.raises(DataError, match=r"data\.heldout is empty"):
        launch.drift(str(other), empty)
    template = other / "chat_template.jinja"
    template.write_text("{{ 'x' }}" + template.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ConfigError, match="as different tokens"):
        launch.drift(str(other), config)
