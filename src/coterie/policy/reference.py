"""The reference policy of the KL penalty: frozen, unless the run renews it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from coterie.algo.sampling import at_least_float32
from coterie.config.objective import ReferenceConfig
from coterie.policy.model import Policy
from coterie.runs import state_files

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
                name: parameter.detach().to(at_least_float32(parameter.dtype), copy=True) for name, parameter in named
            }

    def due(self, step: int) -> bool:
        """True if the reference is renewed after this training step."""
        return bool(self.config.sync_every) and step % self.config.sync_every == 0

    @torch.no_grad()
    def renew(self) -> None:
        """Copy the policy, or move towards it: ref ← ema·π + (1 - ema)·ref (TR-DPO, arXiv 2404.09656)."""
        if self.copy is None:
            return
        now = dict(self.policy.model.named_parameters())
        for name, parameter in self.copy.model.named_parameters():
            if self.config.sync_ema is None:
                parameter.copy_(now[name])
            else:
                parameter.copy_(self.exact[name].lerp_(now[name].to(self.exact[name].dtype), self.config.sync_ema))
        self.renewed()

    def save(self, folder: Path) -> None:
        """Write the weights, where they are not simply those of the start."""
        if self.copy is not None and self.config.sync_every:
            weights = self.exact or dict(self.copy.model.named_parameters())
            state_files.write(folder / FILE, weights)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restore the weights that `save` wrote."""
        if self.copy is None or not self.config.sync_every:
            return
        saved = state_files.read(folder / FILE)
        for name, parameter in self.copy.model.named_parameters():
            parameter.copy_(saved[name])
            if self.exact:
                self.exact[name].copy_(saved[name])
