"""AdamW on full-precision master weights beside the compute copy.

At learning rates near 1e-6 a bfloat16 weight rounds most updates away, so the optimizer steps float32 masters and the
compute copy (which sampler and learner share) is their rounding. Gradients of all micro-batches are summed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coterie.config.schema import OptimConfig
from coterie.errors import CheckpointError

_PARTS = ("master", "exp_avg", "exp_avg_sq")


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Rate of optimizer step `step` (from 1) of `total`: linear warm-up, then constant or linear to zero."""
    warm = min(1.0, step / config.warmup) if config.warmup else 1.0
    if config.schedule == "linear" and step > config.warmup:
        warm *= max(0.0, (total - step + 1) / max(1, total - config.warmup))
    return config.lr * warm


class MasterAdamW:
    """AdamW over `parameters`; their `.grad` is collected as soon as autograd has it, and freed."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> None:
        self.config = config
        self.parameters = dict(parameters)
        self.masters = {name: self._master(parameter) for name, parameter in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            list(self.masters.values()),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        for name, parameter in self.parameters.items():
            if parameter is not self.masters[name]:
                parameter.register_post_accumulate_grad_hook(self._collector(self.masters[name]))

    @staticmethod
    def _master(parameter: nn.Parameter) -> nn.Parameter:
        if parameter.dtype in (torch.float32, torch.float64):
            return parameter
        return nn.Parameter(parameter.detach().float())

    @staticmethod
    def _collector(master: nn.Parameter) -> Any:
        def collect(parameter: Tensor) -> None:
            grad = parameter.grad
            parameter.grad = None
            if grad is None:
                return
            if master.grad is None:
                master.grad = grad.to(master.dtype)
            else:
                master.grad += grad

        return collect

    def take_gradients(self) -> dict[str, Tensor]:
        """The summed gradient by name, in master precision; it is gone afterwards."""
        grads = {name: master.grad for name, master in self.masters.items() if master.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        return grads

    def step(self, rate: float) -> float:
        """Clip and step at this learning rate; the gradient is cleared either way.

        Returns:
            The gradient norm before clipping. If it is not finite, the step was not taken.
        """
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        if not grads:
            return 0.0
        norm = torch.nn.utils.get_total_norm(grads)
        value = float(norm)
        if torch.isfinite(norm):
            torch.nn.utils.clip_grads_with_norm_(self.masters.values(), self.config.max_grad_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self._publish()
        self.optimizer.zero_grad(set_to_none=True)
        return value

    @torch.no_grad()
    def _publish(self) -> None:
        """Round the masters into the compute copy."""
        pairs = [(self.parameters[n], m) for n, m in self.masters.items() if self.parameters[n] is not m]
        if pairs:
            torch._foreach_copy_([p for p, _ in pairs], [m for _, m in pairs])

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, as flat named tensors for safetensors."""
        tensors = {f"master/{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            held = self.optimizer.state.get(master, {})
            for part in _PARTS[1:]:
                if part in held:
                    tensors[f"{part}/{name}"] = held[part]
            if "step" in held:
                tensors[f"step/{name}"] = torch.as_tensor(held["step"]).detach().clone().reshape(1)
        return tensors

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state()`.

        Raises:
            CheckpointError: a tensor is missing or of another shape.
        """
        for name, master in self.masters.items():
            saved = tensors.get(f"master/{name}")
            if saved is None or saved.shape != master.shape:
                found = "nothing" if saved is None else tuple(saved.shape)
                raise CheckpointError(
                    f"the checkpoint has {found} for {name}, expected {tuple(master.shape)}: it is of another model"
                )
            master.copy_(saved)
            if f"exp_avg/{name}" in tensors:
                self.optimizer.state[master] = {
                    # torch keeps the count beside the fused moments, in float32
                    "step": tensors[f"step/{name}"].to(master.device, torch.float32).clone().reshape(()),
                    **{part: tensors[f"{part}/{name}"].to(master.device).clone() for part in _PARTS[1:]},
                }
        self._publish()
