"""Token statistics of an update, kept as sums and counts so that no average of averages is ever taken."""

from __future__ import annotations

import math

from torch import Tensor

from coterie.algo.kl import k3
from coterie.algo.losses import LossInputs, LossOutputs
from coterie.algo.mismatch import MismatchSums, mismatch_metrics

_RENAMED = {"kl_k3": "kl", "kl_k1": "k1"}


class TokenMetrics:
    """Accumulates over the packed batches of one update."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self.mismatch = MismatchSums()

    def add(self, outputs: LossOutputs, inputs: LossInputs, entropy: Tensor) -> None:
        """Add one batch; every tensor is [N]."""
        self.count += outputs.ratio.numel()
        log_ratio = (inputs.old_logprobs - inputs.sampler_logprobs).clamp(-20, 20)
        held = inputs.logprobs.detach()
        values = {
            "entropy": entropy,
            "ratio/mean": outputs.ratio,
            "clip/low": outputs.clipped_low,
            "clip/high": outputs.clipped_high,
            "clip/dual": outputs.clipped_dual,
            "active": outputs.active,
            "advantage/abs": inputs.advantages.abs(),
            "kl/old": k3(inputs.old_logprobs, held),
            # How far the learner's log-probs are from the sampler's: rounding, while both read the same weights.
            "mismatch/outside": log_ratio.abs() > math.log(1.01),
        }
        for name, one in outputs.kl.items():
            values["kl/ref" if name == "k3" else f"kl/ref_{name}"] = one
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.double().sum())
        for name, value in outputs.terms.items():
            key = f"loss/{name}"
            self.sums[key] = self.sums.get(key, 0.0) + float(value)
        self.sums["loss"] = self.sums.get("loss", 0.0) + float(outputs.loss.detach())
        self._peak("ratio/max", float(outputs.ratio.max()))
        self._peak("-ratio/min", -float(outputs.ratio.min()))
        self.mismatch = self.mismatch + mismatch_metrics(
            inputs.old_logprobs,
            inputs.sampler_logprobs,
            inputs.rollout,
            inputs.weights != 0,
            outputs.correction,
        )

    def _peak(self, name: str, value: float) -> None:
        self.peaks[name] = max(self.peaks.get(name, -math.inf), value)

    def summary(self) -> dict[str, float]:
        """Means over tokens, maxima, and the loss and its terms as the sums they are; empty when nothing was trained.

        What is not finite is left out: the optimizer step refuses such a gradient and says so.
        """
        if not self.count:
            return {}
        sums = {name: value for name, value in self.sums.items() if name.startswith("loss")}
        means = {name: value / self.count for name, value in self.sums.items() if name not in sums}
        peaks = {name.removeprefix("-"): -value if name[0] == "-" else value for name, value in self.peaks.items()}
        mismatch = {f"mismatch/{_RENAMED.get(name, name)}": value for name, value in self.mismatch.summary().items()}
        found = means | peaks | sums | mismatch | {"tokens/trained": float(self.count)}
        return {name: value for name, value in found.items() if math.isfinite(value)}
