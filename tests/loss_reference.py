"""The objective once more in plain float64 NumPy, one rollout and one token at a time, from the papers' formulas.

What a paper keeps constant is computed from `held`, so that finite differences over `now` give the intended gradient.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from coterie.algo.losses import LossInputs
from coterie.algo.objective import Objective

Array = np.ndarray


def arrays(inputs: LossInputs) -> dict[str, Array | None]:
    columns = {}
    for name in LossInputs.__dataclass_fields__:
        value = getattr(inputs, name)
        columns[name] = None if value is None else value.detach().numpy()
    return columns


def loss(now: Array, fixed: Array, data: dict[str, Any], objective: Objective) -> float:
    total = 0.0
    for rollout in np.unique(data["rollout"]):
        where = np.flatnonzero(data["rollout"] == rollout)
        columns = {name: None if value is None else value[where] for name, value in data.items()}
        total += _rollout(now[where], fixed[where], columns, objective)
    return total


def gradient(data: dict[str, Any], objective: Objective, size: float = 1e-6) -> Array:
    now = data["logprobs"]
    slopes = np.zeros_like(now)
    for t in range(len(now)):
        for sign in (1, -1):
            moved = now.copy()
            moved[t] += sign * size
            slopes[t] += sign * loss(moved, now, data, objective) / (2 * size)
    return slopes


def _rollout(now: Array, fixed: Array, data: dict[str, Any], objective: Objective) -> float:
    length = len(now)
    old = data["old_logprobs"]
    factor, kept, whole = _correction(old - data["sampler_logprobs"], objective)
    far = np.mean(data["sampler_logprobs"] - fixed)
    mean_ratio = math.exp(sum(now - old) / length)
    fixed_mean_ratio = math.exp(sum(fixed - old) / length)
    total = 0.0
    for t in range(length):
        a = data["advantages"][t]
        rho = math.exp(now[t] - old[t])
        if objective.settings.ratio == "sequence":
            r = mean_ratio
        elif objective.settings.ratio == "sequence_token":
            r = fixed_mean_ratio * math.exp(now[t] - fixed[t])
        else:
            r = rho
        value = _surrogate(t, r, now, fixed, data, objective, whole)
        if objective.settings.loss != "vespo":
            value *= factor[t]
        if a > 0:
            value *= objective.settings.positive_weight
        counts = kept[t] and (data["policy_mask"] is None or data["policy_mask"][t])
        if objective.settings.off_policy_mask is not None and a < 0 and far > objective.settings.off_policy_mask:
            counts = False
        per_token = -value if counts else 0.0
        if objective.kl_beta:
            per_token += objective.kl_beta * _kl(now[t], fixed[t], data["reference_logprobs"][t], rho, objective)
        total += data["weights"][t] * per_token
        if objective.entropy_bonus and (data["policy_mask"] is None or data["policy_mask"][t]):
            total -= objective.entropy_bonus * data["weights"][t] * data["entropy"][t]
    return total


def _surrogate(
    t: int, r: float, now: Array, fixed: Array, data: dict[str, Any], objective: Objective, whole: float
) -> float:
    a, low, high = data["advantages"][t], data["clip_low"][t], data["clip_high"][t]
    old = data["old_logprobs"]
    name = objective.settings.loss
    if name == "clip":
        free = r if objective.settings.delta is None else min(r, objective.settings.delta)
        value = min(free * a, min(max(r, 1 - low), 1 + high) * a)
        return max(value, objective.settings.dual_clip * a) if objective.settings.dual_clip and a < 0 else value
    if name == "unclipped":
        return r * a
    chosen = data["covariant"] is not None and data["covariant"][t]
    if name == "clip_cov":
        return 0.0 if chosen else min(r * a, min(max(r, 1 - low), 1 + high) * a)
    if name == "kl_cov":
        return r * a - (objective.settings.ppo_kl_coef * abs(now[t] - old[t]) if chosen else 0.0)
    if name == "sapo":
        tau = objective.settings.sapo_tau_pos if a > 0 else objective.settings.sapo_tau_neg
        return 4 / tau / (1 + math.exp(-tau * (r - 1))) * a
    if name == "gmpo":
        signs = data["advantages"]
        logs = [
            min(x, h) if s > 0 else max(x, -d) if s < 0 else x
            for x, s, d, h in zip(now - old, signs, data["clip_low"], data["clip_high"], strict=True)
        ]
        return a * math.exp(sum(logs) / len(logs))
    if name == "vespo":
        k, rate = (2, 3) if a >= 0 else (3, 2)
        w = min(max(math.exp(sum(fixed - old)) * whole, 1e-8), math.exp(20))
        return math.exp(rate) * w**k * math.exp(-rate * w) * a * now[t]
    rho = math.exp(fixed[t] - old[t])
    if name == "cispo":
        if objective.settings.ratio != "token":
            rho = math.exp(sum(fixed - old) / len(fixed))
        return min(max(rho, 1 - low), 1 + high) * a * now[t]
    p, q = math.exp(fixed[t]), math.exp(old[t])
    if name == "dppo_tv":
        out = (a > 0 and p - q > high) or (a <= 0 and p - q < -low)
    else:
        divergence = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        out = (a > 0 and divergence > high and p > q) or (a <= 0 and divergence > low and p < q)
    return 0.0 if out else min(rho, 20) * a * now[t]


def _kl(now: float, fixed: float, ref: float, rho: float, objective: Objective) -> float:
    def third(x: float) -> float:
        return math.exp(-x) - 1 + x

    x = now - ref
    if objective.settings.kl_estimator == "k1":
        return x
    if objective.settings.kl_estimator == "k2":
        return x * x / 2
    if objective.settings.kl_estimator == "k3":
        return third(x)
    if objective.settings.kl_estimator == "k3_unbiased":
        return rho * third(x)
    return x * x / 2 - (fixed - ref) ** 2 / 2 + third(fixed - ref)


def _correction(logs: Array, objective: Objective) -> tuple[Array, Array, float]:
    """Factor and keep of each token, and the factor of the rollout as a whole."""
    low, high, mode = objective.correction.low, objective.correction.high, objective.correction.kind
    w, product, mean = np.exp(logs), math.exp(sum(logs)), math.exp(sum(logs) / len(logs))
    ones, every = np.ones(len(logs)), np.ones(len(logs), dtype=bool)
    table = {
        "none": (ones, every),
        "token_truncate": (np.minimum(w, high), every),
        "token_clip": (np.clip(w, low, high), every),
        "token_mask": (w, (w >= low) & (w <= high)),
        "sequence_truncate": (ones * min(product, high), every),
        "sequence_mask": (ones * product, every & (low <= product <= high)),
        "geometric_mask": (ones, every & (low <= mean <= high)),
    }
    factor, kept = table[mode]
    if objective.correction.veto is not None:
        kept = kept & (w >= objective.correction.veto).all()
    return factor, kept, float(np.prod(np.where(kept, factor, 1e-8)))
