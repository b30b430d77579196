"""Token tensors of a made-up optimizer step, for tests of the loss."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coterie.algo.losses import LossInputs
from coterie.algo.objective import Objective
from coterie.config.objective import ObjectiveConfig, RolloutCorrectionConfig

LENGTHS = (3, 1, 5, 2)


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def number(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def objective_of(*, loss: Any = "clip", **choices: Any) -> Objective:
    """An objective from settings of `[objective]` and, as `correction`, `low`, `high` and `veto`, of
    `[rollout_correction]`; a function is a loss of the user's own."""
    bounds = {name: choices.pop(name) for name in ("low", "high", "veto") if name in choices}
    correction = RolloutCorrectionConfig(kind=choices.pop("correction", "token_truncate"), **bounds)
    estimator = choices.pop("kl_estimator", "k3")
    settings = ObjectiveConfig(loss="tests:own" if callable(loss) else loss, **choices)
    # Not checked: in a loss, k1 is refused as a setting, but its arithmetic is tested like that of the others.
    settings = settings.model_copy(update={"kl_estimator": estimator})
    return Objective(settings=settings, correction=correction, function=loss if callable(loss) else None)


def uncorrected(**choices: Any) -> Objective:
    """These choices, without a correction of the mismatch unless it is one of them."""
    return objective_of(**{"correction": "none"} | choices)


def one_rollout(**changed: Any) -> LossInputs:
    """Everything as on the first step of an update, but for what is given; all tokens belong to one rollout."""
    now = changed["logprobs"]
    count = len(now)
    same = torch.full((count,), 0.2, dtype=torch.float64)
    defaults: dict[str, Any] = {
        "old_logprobs": now.detach(),
        "sampler_logprobs": changed.get("old_logprobs", now.detach()),
        "advantages": torch.ones(count, dtype=torch.float64),
        "clip_low": same,
        "clip_high": same,
        "weights": torch.full((count,), 1 / count, dtype=torch.float64),
        "rollout": torch.zeros(count, dtype=torch.int64),
    }
    return LossInputs(**defaults | changed)


def step(
    seed: int = 0,
    lengths: tuple[int, ...] = LENGTHS,
    *,
    spread: float = 0.4,
    sampler: float = 0.3,
    token_advantages: bool = False,
    clip_low: float = 0.2,
    clip_high: float = 0.3,
) -> LossInputs:
    """Rollouts of these lengths with log-ratios of this spread, in float64; weights are those of a mean of means."""
    rng = np.random.default_rng(seed)
    count = sum(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    now = -0.05 - 2 * rng.random(count)
    per_rollout = rng.normal(size=len(lengths))
    advantages = rng.normal(size=count) if token_advantages else per_rollout[owner]
    old = np.minimum(now + spread * rng.normal(size=count), -0.01)
    columns: dict[str, Any] = {
        "old_logprobs": old,
        "sampler_logprobs": np.minimum(old + sampler * rng.normal(size=count), -0.01),
        "reference_logprobs": now + 0.5 * rng.normal(size=count),
        "advantages": advantages,
        "clip_low": np.full(count, clip_low),
        "clip_high": np.full(count, clip_high),
        "weights": 1 / (len(lengths) * np.asarray(lengths)[owner]),
        "entropy": 3 * rng.random(count),
    }
    return LossInputs(
        logprobs=torch.from_numpy(now).requires_grad_(),
        rollout=torch.from_numpy(owner),
        policy_mask=torch.from_numpy(rng.random(count) < 0.8),
        covariant=torch.from_numpy(rng.random(count) < 0.3),
        **{name: torch.from_numpy(values) for name, values in columns.items()},
    )


def take(inputs: LossInputs, index: Tensor) -> LossInputs:
    """Those tokens of the inputs, in that order, with their rollouts numbered anew."""
    changed: dict[str, Any] = {}
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        changed[field.name] = None if value is None else value[index]
    owner = changed["rollout"].tolist()
    numbers = {key: place for place, key in enumerate(dict.fromkeys(owner))}
    changed["rollout"] = torch.tensor([numbers[key] for key in owner], dtype=torch.int64)
    return replace(inputs, **changed)


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (slopes,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    return slopes
