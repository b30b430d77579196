"""What this machine can do at best: matrix products at the model's own shapes, and memory bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.policy.model import Policy

Shape = tuple[int, int]
"""Rows (outputs) and columns (inputs) of a linear layer's weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The model's linear layers."""

    body: tuple[Shape, ...]
    """Of the decoder, in the order in which they run."""
    head: Shape

    @classmethod
    def of(cls, policy: Policy) -> Shapes:
        linears = [module for module in policy.decoder.modules() if isinstance(module, nn.Linear)]
        out, inner = policy.head.weight.shape
        return cls(body=tuple((layer.out_features, layer.in_features) for layer in linears), head=(out, inner))

    @property
    def body_size(self) -> int:
        """Parameters of the body's matrices."""
        return sum(out * inner for out, inner in self.body)

    @property
    def head_size(self) -> int:
        return self.head[0] * self.head[1]


def best(run: Callable[[], object], seconds: float) -> float:
    """Shortest time of one call, out of as many as fit into `seconds` (at least 2, after one that does not count)."""
    run()
    shortest, spent, calls = float("inf"), 0.0, 0
    while calls < 2 or spent < seconds:
        started = time.perf_counter()
        run()
        took = time.perf_counter() - started
        shortest, spent, calls = min(shortest, took), spent + took, calls + 1
    return shortest


class Stack:
    """Random weights of given shapes, each with memory of its own as in the model, so that no cache holds them all."""

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype, seconds: float) -> None:
        self._seconds = seconds
        self._weights = [torch.randn(shape).mul_(shape[1] ** -0.5).to(dtype) for shape in shapes]
        self.size = sum(weight.numel() for weight in self._weights)

    @torch.inference_mode()
    def forward(self, rows: int) -> float:
        """Seconds of one pass of `rows` rows: 2 × size × rows FLOPs."""
        inputs = self._inputs(rows)

        def run() -> None:
            for weight in self._weights:
                F.linear(inputs[weight.shape[1]], weight)

        return best(run, self._seconds)

    @torch.inference_mode()
    def train(self, rows: int) -> float:
        """Seconds of the three products of training, output, gradient of the input, gradient of the weight: 6 × size ×
        rows FLOPs."""
        inputs = self._inputs(rows)
        grads = {weight.shape[0]: torch.randn(rows, weight.shape[0], dtype=weight.dtype) for weight in self._weights}

        def run() -> None:
            for weight in self._weights:
                F.linear(inputs[weight.shape[1]], weight)
            for weight in reversed(self._weights):
                grad = grads[weight.shape[0]]
                torch.mm(grad, weight)
                torch.mm(grad.T, inputs[weight.shape[1]])

        return best(run, self._seconds)

    def _inputs(self, rows: int) -> dict[int, Tensor]:
        return {weight.shape[1]: torch.randn(rows, weight.shape[1], dtype=weight.dtype) for weight in self._weights}


@torch.inference_mode()
def square(side: int, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of a big square product."""
    left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
    return 2 * side**3 / best(lambda: left @ right, seconds)


@torch.inference_mode()
def bandwidth(size: int, seconds: float) -> dict[str, float]:
    """Bytes a second: `read` (a sum), and `copy` (bytes read plus bytes written).

    Args:
        size: bytes of the tensor, several times the last cache.
    """
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    return {
        "read": size / best(source.sum, seconds),
        "copy": 2 * size / best(lambda: target.copy_(source), seconds),
    }
