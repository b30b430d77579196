"""The language-model head: hidden states to logits, with the transform that a model applies to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.algo.sampling import at_least_float32


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """cap · tanh(scale · z / cap) of the head's output z; without a cap, scale · z.

    Granite divides its logits (`logits_scaling`), Cohere multiplies them (`logit_scale`), Gemma caps them
    (`final_logit_softcapping`).
    """

    scale: float = 1.0
    cap: float | None = None

    @property
    def identity(self) -> bool:
        return self.scale == 1 and self.cap is None

    def apply_(self, logits: Tensor) -> Tensor:
        """Apply in place; `logits` are in full precision already."""
        if self.cap is None:
            return logits.mul_(self.scale)
        return logits.mul_(self.scale / self.cap).tanh_().mul_(self.cap)

    def slope(self, transformed: Tensor) -> Tensor | float:
        """Derivative of the transformed logits by the head's output, as a function of the transformed ones."""
        if self.cap is None:
            return self.scale
        return (1 - (transformed / self.cap).square_()).mul_(self.scale)


class Head:
    """A model's output embedding followed by its `LogitTransform`; called with states [.., D], it gives logits [.., V].

    Args:
        linear: the output embedding: a module with `weight` [V, D] and, where it has one, `bias` [V].
    """

    def __init__(self, linear: Any, transform: LogitTransform | None = None) -> None:
        self.linear = linear
        self.transform = transform or LogitTransform()

    def __call__(self, states: Tensor) -> Tensor:
        logits = self.linear(states)
        if self.transform.identity:
            return logits
        scaled = logits.to(at_least_float32(logits.dtype)) * self.transform.scale
        return scaled if self.transform.cap is None else torch.tanh(scaled / self.transform.cap) * self.transform.cap

    @property
    def weight(self) -> Any:
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.linear, "bias", None)

    @property
    def in_features(self) -> int:
        return int(self.weight.shape[1])

    def requires_grad_(self, required: bool = True) -> Head:
        self.linear.requires_grad_(required)
        return self
