"""Token statistics of an update, kept as sums and counts so that no average of averages is ever taken."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from coterie.algo.correction import MismatchSums, mismatch_metrics
from coterie.algo.kl import k3
from coterie.algo.losses import LossInputs, LossOutputs
from coterie.algo.sampling import widened

_RENAMED = {"kl_k3": "kl", "kl_k1": "k1"}


class TokenMetrics:
    """Sums and counts over the packed batches of one update."""

    def __init__(self) -> None:
        self.count = self.past = self.compared = 0
        self.sums: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self.mismatch = MismatchSums()

    def add(
        self,
        outputs: LossOutputs,
        inputs: LossInputs,
        entropy: Tensor,
        replayed: np.ndarray | None,
        measured: Tensor | None,
    ) -> None:
        """Add one batch; every tensor is [N].

        Args:
            measured: the learner's log-probs under the weights that sampled; None where they are not known, and nothing
                is said of the mismatch.

        Tokens of replayed rollouts are part of the loss, and have names of their own for the rest: their ratio is to an
        older policy, and beside them a fresh one that is not exactly 1 would go unseen.
        """
        past = None
        if replayed is not None and replayed.any():
            past = torch.from_numpy(replayed).to(outputs.ratio.device)
        for name, value in outputs.terms.items():
            self._sum(f"loss/{name}", float(value))
        self._sum("loss", float(outputs.loss.detach()))
        fresh = None if past is None else ~past
        self._fresh(outputs, inputs, entropy, fresh)
        if measured is not None:
            self._mismatch(outputs, inputs, measured, fresh)
        if past is not None:
            clipped = outputs.clipped_low | outputs.clipped_high | outputs.clipped_dual
            self.past += int(replayed.sum()) if replayed is not None else 0
            self._sum("replay/clipped", float(clipped[past].sum()))
            self._sum("replay/ratio", float(widened(outputs.ratio[past]).sum()))

    def _fresh(self, outputs: LossOutputs, inputs: LossInputs, entropy: Tensor, fresh: Tensor | None) -> None:
        """Statistics of the tokens where `fresh`, or of all."""
        logprobs = inputs.logprobs.detach()
        values = {
            "entropy": entropy,
            "ratio/mean": outputs.ratio,
            "clip/low": outputs.clipped_low,
            "clip/high": outputs.clipped_high,
            "clip/dual": outputs.clipped_dual,
            "active": outputs.active,
            "advantage/abs": inputs.advantages.abs(),
            "kl/old": k3(inputs.old_logprobs, logprobs),
        }
        for name, divergence in outputs.kl.items():
            values["kl/ref" if name == "k3" else f"kl/ref_{name}"] = divergence
        for name, value in values.items():
            chosen = value if fresh is None else value[fresh]
            self._sum(name, float(widened(chosen).sum()))
        ratio = outputs.ratio if fresh is None else outputs.ratio[fresh]
        self.count += ratio.numel()
        if ratio.numel():
            self._peak("ratio/max", float(ratio.max()))
            self._peak("-ratio/min", -float(ratio.min()))

    def _mismatch(self, outputs: LossOutputs, inputs: LossInputs, measured: Tensor, fresh: Tensor | None) -> None:
        """How far the learner's log-probs are from the sampler's: rounding, while both read the same weights."""
        outside = (measured - inputs.sampler_logprobs).clamp(-20, 20).abs() > math.log(1.01)
        chosen = outside if fresh is None else outside[fresh]
        self.compared += chosen.numel()
        self._sum("mismatch/outside", float(widened(chosen).sum()))
        counted = inputs.weights != 0
        self.mismatch = self.mismatch + mismatch_metrics(
            measured,
            inputs.sampler_logprobs,
            inputs.rollout,
            counted if fresh is None else counted & fresh,
            outputs.correction,
        )

    def merge(self, other: TokenMetrics) -> None:
        """Add the sums over other packed batches of the same update."""
        self.count += other.count
        self.past += other.past
        self.compared += other.compared
        for name, value in other.sums.items():
            self._sum(name, value)
        for name, value in other.peaks.items():
            self._peak(name, value)
        self.mismatch = self.mismatch + other.mismatch

    def _sum(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value

    def _peak(self, name: str, value: float) -> None:
        self.peaks[name] = max(self.peaks.get(name, -math.inf), value)

    def summary(self) -> dict[str, float]:
        """Means over tokens, maxima, and the loss and its terms as the sums they are; empty when nothing was trained.

        What is not finite is left out: the optimizer step refuses such a gradient and says so.
        """
        if not self.count + self.past:
            return {}
        sums = {name: value for name, value in self.sums.items() if name.startswith("loss")}
        separate = {"replay": self.past, "mismatch": self.compared}
        counts = {name: separate.get(name.partition("/")[0], self.count) for name in self.sums if name not in sums}
        means = {name: self.sums[name] / count for name, count in counts.items() if count}
        peaks = {name.removeprefix("-"): -value if name[0] == "-" else value for name, value in self.peaks.items()}
        mismatch = {f"mismatch/{_RENAMED.get(name, name)}": value for name, value in self.mismatch.summary().items()}
        metrics = means | peaks | sums | mismatch | {"tokens/trained": float(self.count + self.past)}
        return {name: value for name, value in metrics.items() if math.isfinite(value)}
