"""AdamW on full-precision master weights behind the compute copy.

At learning rates near 1e-6 a bfloat16 weight rounds most updates away, so the optimizer steps float32 masters and the
compute copy (which sampler and learner share) is their rounding. Gradients of all micro-batches are summed in float32.

The step works through one piece of one tensor at a time, so that neither a whole float32 master of a bfloat16 weight
nor a second copy of a gradient ever exists, and frees each gradient as it goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coterie.algo.precision import at_least_float32
from coterie.config.optim import OptimConfig
from coterie.errors import CheckpointError
from coterie.policy.gradients import GradientSum
from coterie.policy.masters import join, pieces, split
from coterie.policy.moments import BlockMoments, FullMoments, Moments, kind_of

STATES: dict[str, type[FullMoments] | type[BlockMoments]] = {"float32": FullMoments, "8bit": BlockMoments}
"""What `optim.state` may name."""


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Rate of optimizer step `step` (from 1) of `total`: linear warm-up, then constant, or linear down to
    lr / (total - warmup) at the last step."""
    warm = min(1.0, step / config.warmup) if config.warmup else 1.0
    if config.schedule == "linear" and step > config.warmup:
        warm *= max(0.0, (total - step + 1) / max(1, total - config.warmup))
    return config.lr * warm


class MasterAdamW:
    """AdamW over `parameters`, whose gradients it collects in `gradients`.

    Raises:
        ConfigError: `optim.state` cannot be had for these parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> None:
        self.config = config
        self.parameters = dict(parameters)
        self.gradients = GradientSum(self.parameters)
        self.low = {
            name: torch.zeros(parameter.numel(), dtype=torch.int16, device=parameter.device)
            for name, parameter in self.parameters.items()
            if parameter.dtype == torch.bfloat16
        }
        self.decay = {
            name: config.weight_decay if parameter.ndim > 1 or config.decay_norms else 0.0
            for name, parameter in self.parameters.items()
        }
        facts = {name: (p.numel(), at_least_float32(p.dtype), p.device) for name, p in self.parameters.items()}
        self.moments: Moments = STATES[config.state](facts, config)

    @property
    def masters(self) -> dict[str, Tensor]:
        """Name → master weights in the parameter's shape; new memory for bfloat16 weights."""
        return {
            name: join(_flat(p), self.low[name]).view(p.shape) if name in self.low else p.detach()
            for name, p in self.parameters.items()
        }

    def take_gradients(self) -> dict[str, Tensor]:
        """The summed gradient by name, in master precision; it is gone afterwards."""
        return self.gradients.take()

    @torch.no_grad()
    def step(self, rate: float, norm: float | None = None) -> float:
        """Clip and step at this learning rate; the gradient is cleared either way.

        Args:
            norm: of the gradient, where it is known already.

        Returns:
            The gradient norm before clipping. If it is not finite, the step was not taken.
        """
        norm = self.gradients.norm() if norm is None else norm
        if math.isfinite(norm):
            scale = min(1.0, self.config.max_grad_norm / (norm + 1e-6))
            for name in list(self.gradients.sums):
                self._step(name, self.gradients.sums.pop(name), scale, rate)
        self.gradients.drop()
        return norm

    def _step(self, name: str, grad: Tensor, scale: float, rate: float) -> None:
        weights, flat = _flat(self.parameters[name]), grad.reshape(-1)
        low = self.low.get(name)
        self.moments.advance(name)
        for part in pieces(weights.numel(), weights.device):
            one = flat[part].to(at_least_float32(flat.dtype)).mul_(scale)
            if low is None:
                self.moments.step(name, part, weights[part], one, rate, self.decay[name])
            else:
                master = join(weights[part], low[part])
                self.moments.step(name, part, master, one, rate, self.decay[name])
                split(master, weights[part], low[part])

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, as flat named tensors for safetensors."""
        return {
            **{f"weight/{name}": parameter.detach() for name, parameter in self.parameters.items()},
            **{f"low/{name}": low for name, low in self.low.items()},
            **self.moments.state(),
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state()`.

        Raises:
            CheckpointError: a tensor is missing or of another shape or number format, or the moments are of another
                `optim.state`.
        """
        if kind_of(tensors) != self.moments.kind:
            raise CheckpointError(
                f'the checkpoint was made with optim.state = "{kind_of(tensors)}", the settings say '
                f'"{self.moments.kind}"; put optim.state back, or start a new run'
            )
        for name, parameter in self.parameters.items():
            saved = tensors.get(f"weight/{name}")
            if saved is None or (saved.shape, saved.dtype) != (parameter.shape, parameter.dtype):
                found = "nothing" if saved is None else f"{tuple(saved.shape)} {saved.dtype}"
                raise CheckpointError(
                    f"the checkpoint has {found} for {name}, expected {tuple(parameter.shape)} {parameter.dtype}: it "
                    "is of another model, or of another version of coterie"
                )
            parameter.copy_(saved)
            if name in self.low:
                self.low[name].copy_(tensors[f"low/{name}"])
        self.moments.load(tensors)


def _flat(parameter: Tensor) -> Tensor:
    """The parameter's own memory as [n]."""
    return parameter.detach().view(-1)
