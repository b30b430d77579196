"""The gradient of one optimizer step, summed over its micro-batches, and float32 master weights of bfloat16 weights.

A master is kept as the weight itself and the 16 bits that it lacks:

    float32 bits = (bits of the bfloat16 weight << 16) + remainder,   -32768 <= remainder < 32768

The weight is the nearest bfloat16 of its master (a tie goes away from zero: the one rounding that leaves exactly
65,536 masters to each weight, so that 16 bits suffice). Nothing is lost, and two bytes a parameter are saved against
a master kept beside the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from coterie.algo.sampling import at_least_float32
from coterie.policy.tensor_parts import local


def merge(high: Tensor, low: Tensor) -> Tensor:
    """Master weights of weights and remainders, in new memory.

    Args:
        high: [n] bfloat16 weights.
        low: [n] int16 remainders.

    Returns:
        [n] float32.
    """
    return high.view(torch.int16).to(torch.int32).mul_(1 << 16).add_(low).view(torch.float32)


def split(master: Tensor, high: Tensor, low: Tensor) -> None:
    """Write master weights back into weights and remainders; overwrites `master` [n]."""
    bits = master.view(torch.int32)
    low.copy_(bits)  # the low 16 bits, read as a signed number
    high.view(torch.int16).copy_(bits.sub_(low).bitwise_right_shift_(16))


def chunks(size: int, device: torch.device) -> Iterator[slice]:
    """Chunks of a flat tensor, so small that a float32 copy of one stays in the cache (or is worth a kernel, on a GPU).

    All but the last are a multiple of 256 long, which is a block of the 8-bit state and many vector registers.
    """
    length = 1 << 18 if device.type == "cpu" else 1 << 24
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))


class GradientSum:
    """Sum of gradients that takes each parameter's as soon as autograd has it, so that only one exists twice.

    A single bfloat16 gradient is kept as it is; from the second micro-batch on the sum is float32.

    Attributes:
        sums: parameter name → the sum so far; of a sharded parameter this process's part.
        measure: the norm of what all ranks have; None where this process has all of it.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.sums: dict[str, Tensor] = {}
        self.measure: Callable[[GradientSum], float] | None = None
        self._done: set[str] | None = None
        for name, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(self._collector(name))

    def _collector(self, name: str) -> Callable[[Tensor], None]:
        def collect(parameter: Tensor) -> None:
            grad, parameter.grad = parameter.grad, None
            if grad is None or (self._done is not None and name in self._done):
                return
            grad, running_sum = local(grad), self.sums.get(name)
            exact = at_least_float32(parameter.dtype)
            if running_sum is None:
                self.sums[name] = grad
            elif running_sum.dtype == exact:
                running_sum += grad
            else:
                self.sums[name] = running_sum.to(exact).add_(grad)
            if self._done is not None:
                self._done.add(name)

        return collect

    @contextmanager
    def attempt(self, done: set[str]) -> Generator[None]:
        """Context of a backward pass that may fail half way.

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
        if self.measure is not None:
            return self.measure(self)
        norms = [tensor_norm(grad) for grad in self.sums.values()]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    def take(self) -> dict[str, Tensor]:
        """The sum by name, in master precision; it is gone afterwards."""
        gradients = {name: grad.to(at_least_float32(grad.dtype)) for name, grad in self.sums.items()}
        self.drop()
        return gradients

    def drop(self) -> None:
        """Start the next optimizer step's sum."""
        self.sums.clear()


def tensor_norm(grad: Tensor) -> Tensor:
    """L2 norm of one gradient; chunk by chunk where better precision takes a copy."""
    if grad.dtype == at_least_float32(grad.dtype) or not grad.numel():
        return torch.linalg.vector_norm(grad)
    flat = grad.reshape(-1)
    parts = [torch.linalg.vector_norm(flat[part].float()) for part in chunks(flat.numel(), flat.device)]
    return torch.linalg.vector_norm(torch.stack(parts))
