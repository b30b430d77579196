"""The gradient of one optimizer step, summed over its micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from coterie.algo.precision import at_least_float32
from coterie.policy.masters import pieces


class GradientSum:
    """Takes each parameter's gradient as soon as autograd has it, so that only one is ever held twice.

    A lone bfloat16 gradient is kept as it is; from the second micro-batch on the sum is float32.

    Attributes:
        sums: parameter name → the sum so far.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.sums: dict[str, Tensor] = {}
        self._done: set[str] | None = None
        for name, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(self._collector(name))

    def _collector(self, name: str) -> Callable[[Tensor], None]:
        def collect(parameter: Tensor) -> None:
            grad, parameter.grad = parameter.grad, None
            if grad is None or (self._done is not None and name in self._done):
                return
            held = self.sums.get(name)
            exact = at_least_float32(parameter.dtype)
            if held is None:
                self.sums[name] = grad
            elif held.dtype == exact:
                held += grad
            else:
                self.sums[name] = held.to(exact).add_(grad)
            if self._done is not None:
                self._done.add(name)

        return collect

    @contextmanager
    def attempt(self, done: set[str]) -> Generator[None]:
        """Around a backward pass that may fail half way.

        Args:
            done: names whose part of the batch is in the sum already: what this pass has to say about them is dropped.
                It adds the names that it adds to the sum. When a failed batch is run again in two halves, both with
                the names that the failure left here, the sum comes out as if nothing had failed.
        """
        self._done = done
        try:
            yield
        finally:
            self._done = None
            for parameter in self.parameters.values():
                parameter.grad = None  # a failure may strike between autograd and `collect`

    def norm(self) -> float:
        """The L2 norm of the sum, in float32 or better."""
        norms = [_norm(grad) for grad in self.sums.values()]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    def take(self) -> dict[str, Tensor]:
        """The sum by name, in master precision; it is gone afterwards."""
        found = {name: grad.to(at_least_float32(grad.dtype)) for name, grad in self.sums.items()}
        self.drop()
        return found

    def drop(self) -> None:
        """Start the next optimizer step's sum."""
        self.sums.clear()


def _norm(grad: Tensor) -> Tensor:
    """L2 norm of one gradient; piece by piece where better precision takes a copy."""
    if grad.dtype == at_least_float32(grad.dtype):
        return torch.linalg.vector_norm(grad)
    flat = grad.reshape(-1)
    parts = [torch.linalg.vector_norm(flat[part].float()) for part in pieces(flat.numel(), flat.device)]
    return torch.linalg.vector_norm(torch.stack(parts))
