"""A model on the plain path trains, learns, and resumes to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Lfm2Config

from coterie import launch
from coterie.policy.model import load
from coterie.runs.metrics import MetricsDB
from runs_for_tests import fingerprint, importable, make_config
from tiny import tiny_tokenizer


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model whose short convolutions carry a state along a row."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    tokenizer = tiny_tokenizer()
    config = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def test_a_resumed_run_repeats_every_bit(root: Path) -> None:
    config = make_config(root, steps=4)
    policy = load(config.model, root / "model", dtype=torch.float32, device=torch.device("cpu"))
    assert policy.path.kind == "plain"
    whole = launch.train(config)
    shorter = config.model_copy(update={"name": "two", "steps": 2})
    resumed = launch.train(shorter)
    stored = resumed / "config.toml"
    stored.write_text(stored.read_text(encoding="utf-8").replace("steps = 2", "steps = 4"), encoding="utf-8")
    launch.resume(resumed)
    first, second = fingerprint(whole), fingerprint(resumed)
    assert first["weights"] == second["weights"]
    assert [row for row in first["metrics"] if row[0] > 2] == [row for row in second["metrics"] if row[0] > 2]
    with MetricsDB.reader(whole / "metrics.sqlite") as database:
        assert database.last_step() == 4
    gradients = [value for step, name, value in first["metrics"] if name == "grad_norm"]
    assert all(gradient > 0 for gradient in gradients)
    # The engine's log-probs are the learner's: one model computes both.
    mismatch = [value for step, name, value in first["metrics"] if name == "mismatch/kl"]
    assert max(mismatch) < 1e-6
