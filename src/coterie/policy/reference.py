"""The reference policy of the KL penalty: frozen, unless the run renews it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from coterie.algo.sampling import at_least_float32
from coterie.config.objective import ReferenceConfig
from coterie.policy.model import Policy
from coterie.policy.tensor_parts import local

FILE = "reference.safetensors"


class Reference:
    """A frozen copy of the policy, or, for an adapter, the policy without it.

    Args:
        policy: the one that is trained.
        copy: frozen weights; None takes the policy's `without_adapters`.
        config: when it is renewed, and how.
    """

    def __init__(self, policy: Policy, copy: Policy | None, config: ReferenceConfig) -> None:
        self.policy = policy
        self.copy = copy
        self.config = config
        self.renewed: Callable[[], object] = lambda: None
        """Called after the reference was renewed here, so that other copies of it are too."""
        self.exact: dict[str, Tensor] = {}
        if copy is not None and config.sync_ema is not None:
            # A bfloat16 weight would round small moves away.
            named = copy.model.named_parameters()
            self.exact = {
                name: local(parameter).to(at_least_float32(parameter.dtype), copy=True) for name, parameter in named
            }

    def due(self, step: int) -> bool:
        """True if the reference is renewed after this training step."""
        return bool(self.config.sync_every) and step % self.config.sync_every == 0

    @torch.no_grad()
    def renew(self) -> None:
        """Copy the policy, or move towards it: ref ← ema·π + (1 - ema)·ref (TR-DPO, arXiv 2404.09656)."""
        if self.copy is None:
            return
        now = _weights(self.policy)
        for name, weight in _weights(self.copy).items():
            if self.config.sync_ema is None:
                weight.copy_(now[name])
            else:
                weight.copy_(self.exact[name].lerp_(now[name].to(self.exact[name].dtype), self.config.sync_ema))
        self.renewed()

    def state(self) -> dict[str, Tensor]:
        """The weights by name, where they are not simply those of the start; else empty."""
        if self.copy is None or not self.config.sync_every:
            return {}
        return self.exact or _weights(self.copy)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `state()`."""
        assert self.copy is not None
        for name, weight in _weights(self.copy).items():
            weight.copy_(tensors[name])
            if self.exact:
                self.exact[name].copy_(tensors[name])


def _weights(policy: Policy) -> dict[str, Tensor]:
    """All weights by name, of shards this process's part."""
    return {name: local(parameter) for name, parameter in policy.model.named_parameters()}
