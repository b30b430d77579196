"""The same tensors through TRL's own losses, where both define the same thing.

Needs TRL in an environment of its own: the one that `coterie bench compare` makes, or any interpreter named by
COTERIE_TRL_PYTHON.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from coterie.algo.aggregation import LossAggMode, token_weights
from coterie.algo.entropy import top_entropy_mask, top_entropy_threshold
from coterie.algo.losses import LossInputs, policy_loss
from loss_parts import gradient, step, uncorrected

PYTHON = Path(os.environ.get("COTERIE_TRL_PYTHON", Path(__file__).parents[2] / ".bench" / "trl" / "bin" / "python"))
LENGTHS = (3, 1, 5, 2, 4, 5)
LONGEST = 7
SEED = 4
"""One that clips, truncates and drops something in every case; a test below says so."""

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no environment with TRL")

# name → (TRL's settings, our aggregation, our choices)
CASES: dict[str, tuple[dict[str, Any], LossAggMode, dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, "seq-mean-token-mean", {}),
    "grpo with kl": ({"loss_type": "grpo", "beta": 0.1}, "seq-mean-token-mean", {"kl_beta": 0.1}),
    "unbiased kl": (
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": True},
        "seq-mean-token-mean",
        {"kl_beta": 0.1, "kl_estimator": "k3_unbiased"},
    ),
    "bnpo": ({"loss_type": "bnpo"}, "token-mean", {}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, "seq-mean-token-sum-norm", {}),
    "dapo": ({"loss_type": "dapo"}, "token-mean", {}),
    "two-sided": ({"loss_type": "dapo", "delta": 1.5}, "token-mean", {"delta": 1.5}),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.3}, "token-mean", {"loss": "cispo"}),
    "sapo": ({"loss_type": "sapo"}, "seq-mean-token-mean", {"loss": "sapo"}),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.06},
        "seq-mean-token-mean",
        {"ratio": "sequence"},
    ),
    "luspo": (
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.06},
        "seq-mean-token-sum",
        {"ratio": "sequence"},
    ),
    "vespo": ({"loss_type": "vespo"}, "token-mean", {"loss": "vespo"}),
    "vespo corrected": (
        {"loss_type": "vespo"},
        "token-mean",
        {"loss": "vespo", "correction": "token_truncate", "high": 1.2},
    ),
    "token_truncate": (
        {"loss_type": "grpo"},
        "seq-mean-token-mean",
        {"correction": "token_truncate", "high": 1.2},
    ),
    "sequence_mask": (
        {"loss_type": "grpo"},
        "seq-mean-token-mean",
        {"correction": "sequence_mask", "high": 1.2},
    ),
    "off-policy mask": (
        {"loss_type": "grpo", "off_policy_mask_threshold": 0.05},
        "seq-mean-token-mean",
        {"off_policy_mask": 0.05},
    ),
    "top entropy": ({"loss_type": "dapo", "top_entropy_quantile": 0.3}, "token-mean", {}),
    "entropy bonus": ({"loss_type": "grpo", "entropy_coef": 0.1}, "seq-mean-token-mean", {"entropy_bonus": 0.1}),
}


def settings_of(name: str) -> dict[str, Any]:
    return {"epsilon": 0.2, "epsilon_high": 0.3, "max_completion_length": LONGEST, **CASES[name][0]}


def inputs_of(name: str) -> LossInputs:
    """Ours, over all rollouts as one part."""
    settings, (_, how, _) = settings_of(name), CASES[name]
    high = settings["epsilon_high"]
    cispo = settings["loss_type"] == "cispo"  # its epsilon_high is the bound itself, and it has none below
    inputs = step(SEED, LENGTHS, clip_low=1.0 if cispo else settings["epsilon"], clip_high=high - 1 if cispo else high)
    weights = torch.from_numpy(np.repeat(token_weights(LENGTHS, [0] * 6, how, max_tokens=LONGEST), LENGTHS))
    count = len(weights)
    share = settings.get("top_entropy_quantile")
    mask = None
    if share is not None:
        assert inputs.entropy is not None
        mask = top_entropy_mask(inputs.entropy, top_entropy_threshold(inputs.entropy, share))
    return replace(
        inputs,
        weights=weights,
        policy_mask=mask,
        entropy_weights=torch.full((count,), 1 / count, dtype=torch.float64),
        entropy=None if inputs.entropy is None else inputs.entropy.requires_grad_(),
    )


def padded(values: Tensor) -> list[list[float]]:
    """[N] as TRL's [rollouts, longest], with something in the padding that must not matter."""
    rows = values.detach().split(LENGTHS)
    return [row.tolist() + [-1.5] * (LONGEST - len(row)) for row in rows]


def case(name: str) -> dict[str, Any]:
    """The same in TRL's terms."""
    inputs, choices = inputs_of(name), CASES[name][2]
    assert inputs.reference_logprobs is not None
    assert inputs.entropy is not None
    tensors = {
        "logprobs": padded(inputs.logprobs),
        "old_per_token_logps": padded(inputs.old_logprobs),
        "sampling_per_token_logps": padded(inputs.sampler_logprobs),
        "ref_per_token_logps": padded(inputs.reference_logprobs),
        "entropy": padded(inputs.entropy),
        "mask": [[1] * length + [0] * (LONGEST - length) for length in LENGTHS],
        "advantages": [row[0].item() for row in inputs.advantages.split(LENGTHS)],
    }
    if "correction" in choices:
        # As its data side makes them; it pads token ratios with exp(0).
        high = choices["high"]
        logs = [row.numpy() for row in (inputs.old_logprobs - inputs.sampler_logprobs).split(LENGTHS)]
        if choices["correction"] == "token_truncate":
            tensors["importance_sampling_ratio"] = [
                np.minimum(np.exp(row), high).tolist() + [1.0] * (LONGEST - len(row)) for row in logs
            ]
        else:
            products = [float(np.exp(row.sum())) for row in logs]
            tensors["importance_sampling_ratio"] = [[value if value <= high else 0.0] for value in products]
    return {"settings": settings_of(name), "tensors": tensors}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """One child process for all cases: starting TRL takes most of the time."""
    environment = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [PYTHON, "-W", "ignore", Path(__file__).with_name("trl_side.py")],
        input=json.dumps({name: case(name) for name in CASES}),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=tmp_path_factory.mktemp("trl"),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_the_tensors_reach_what_the_cases_are_about():
    outs = {name: policy_loss(inputs_of(name), uncorrected(**CASES[name][2])) for name in CASES}
    for name in ("grpo", "dapo", "gspo", "luspo"):
        assert outs[name].clipped_low.any(), name
        assert outs[name].clipped_high.any(), name
    assert outs["two-sided"].clipped_dual.any()
    assert (outs["cispo"].ratio > 1.3).any()
    assert outs["token_truncate"].correction.truncated.any()
    for name in ("sequence_mask", "off-policy mask", "top entropy"):
        assert 0 < outs[name].active.sum() < sum(LENGTHS), name


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_trls(name, answers):
    inputs = inputs_of(name)
    out = policy_loss(inputs, uncorrected(**CASES[name][2]))
    answer = answers[name]
    # TRL takes SAPO's temperatures in float32.
    close: dict[str, Any] = {"rel": 1e-6, "abs": 1e-8} if name == "sapo" else {"rel": 1e-10, "abs": 1e-12}
    assert out.loss.item() == pytest.approx(answer["loss"], **close)
    rows = zip(answer["logprobs"], LENGTHS, strict=True)
    want = [value for row, length in rows for value in row[:length]]
    assert gradient(out.loss, inputs.logprobs).tolist() == pytest.approx(want, **close)
    assert any(want)
    assert not any(value for row, n in zip(answer["logprobs"], LENGTHS, strict=True) for value in row[n:])


def test_the_entropy_bonus_has_trls_gradient(answers):
    inputs = inputs_of("entropy bonus")
    assert inputs.entropy is not None
    out = policy_loss(inputs, uncorrected(entropy_bonus=0.1))
    rows = zip(answers["entropy bonus"]["entropy"], LENGTHS, strict=True)
    want = [value for row, length in rows for value in row[:length]]
    assert gradient(out.loss, inputs.entropy).tolist() == pytest.approx(want)
