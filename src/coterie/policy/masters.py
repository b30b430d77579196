"""The float32 master of a bfloat16 weight, kept as the weight itself and the 16 bits that it lacks.

    float32 bits = (bits of the bfloat16 weight << 16) + remainder,   -32768 <= remainder < 32768

The weight is the nearest bfloat16 of its master (a tie goes away from zero: the one rounding that leaves exactly 65,536
masters to each weight, so that 16 bits suffice). Nothing is lost, and two bytes a parameter are saved against a master
kept beside the weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def join(high: Tensor, low: Tensor) -> Tensor:
    """The masters, in new memory.

    Args:
        high: [n] bfloat16 weights.
        low: [n] int16 remainders.

    Returns:
        [n] float32.
    """
    return high.view(torch.int16).to(torch.int32).mul_(1 << 16).add_(low).view(torch.float32)


def split(master: Tensor, high: Tensor, low: Tensor) -> None:
    """Write masters back into weights and remainders; `master` [n] is used up."""
    bits = master.view(torch.int32)
    low.copy_(bits)  # the low 16 bits, read as a signed number
    high.view(torch.int16).copy_(bits.sub_(low).bitwise_right_shift_(16))


def pieces(size: int, device: torch.device) -> Iterator[slice]:
    """Cut a flat tensor so that a float32 copy of one piece stays in the cache (or is worth a kernel, on a GPU).

    All but the last are a multiple of 256 long, which is a block of the 8-bit state and many vector registers.
    """
    length = 1 << 18 if device.type == "cpu" else 1 << 24
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))
