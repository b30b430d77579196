"""Token statistics of an update, kept as sums and counts so that no average of averages is ever taken."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coterie.algo.kl import k3
from coterie.algo.losses import LossInputs, LossOutputs


class TokenMetrics:
    """Accumulates over the packed batches of one update."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def add(self, outputs: LossOutputs, inputs: LossInputs, entropy: Tensor, sampler_logprobs: Tensor) -> None:
        """Add one batch; every tensor is [N]."""
        self.count += outputs.ratio.numel()
        mismatch = torch.exp((inputs.old_logprobs - sampler_logprobs).clamp(-20, 20))
        values = {
            "entropy": entropy,
            "ratio/mean": outputs.ratio,
            "clip/low": outputs.clipped_low,
            "clip/high": outputs.clipped_high,
            "advantage/abs": inputs.advantages.abs(),
            # How far the learner's log-probs are from the sampler's: rounding, while both read the same weights.
            "mismatch/kl": k3(sampler_logprobs, inputs.old_logprobs),
            "mismatch/outside": (mismatch < 0.99) | (mismatch > 1.01),
        }
        if outputs.kl is not None:
            values["kl/ref"] = outputs.kl
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.double().sum())
        self.sums["loss"] = self.sums.get("loss", 0.0) + float(outputs.loss.detach())
        self.peaks["ratio/max"] = max(self.peaks.get("ratio/max", 0.0), float(outputs.ratio.max()))

    def summary(self) -> dict[str, float]:
        """Means over tokens, maxima, and the loss as the sum it is; empty when nothing was trained.

        What is not finite is left out: the optimizer step refuses such a gradient and says so.
        """
        if not self.count:
            return {}
        means = {name: value / self.count for name, value in self.sums.items() if name != "loss"}
        found = means | self.peaks | {"loss": self.sums["loss"], "tokens/trained": float(self.count)}
        return {name: value for name, value in found.items() if math.isfinite(value)}
