"""Which attention kernel the learner uses: one block-sparse FlexAttention call a layer, or plain calls."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.batches.segments import Segment
from coterie.errors import ModelError
from coterie.policy.attention import Layout, PackedLayout
from coterie.policy.model import Policy

KERNELS = ("auto", "flex", "sdpa")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Which attention the learner uses, and why."""

    name: Literal["flex", "sdpa"]
    reason: str
    windows: tuple[int | None, ...] = (None,)
    """Sliding windows of the model's layers, in tokens; None is a layer without."""


def choose_kernel(policy: Policy, wanted: str = "auto") -> Kernel:
    """FlexAttention where it is compiled and faster, else the plain one; both give the same numbers.

    Args:
        wanted: auto, flex (also where it is slow: on a CPU it is the dense reference) or sdpa.

    Raises:
        ModelError: an unknown name, or flex where no kernel exists.
    """
    if wanted not in KERNELS:
        raise ModelError(f"the attention kernel is {wanted!r}; expected one of {', '.join(KERNELS)}")
    if policy.path.kind == "plain":
        if wanted == "flex":
            raise ModelError(
                f"FlexAttention cannot run here: {type(policy.model).__name__} runs through its own attention; use auto"
            )
        return Kernel(name="sdpa", reason="the model runs through its own attention")
    if wanted == "sdpa":
        return Kernel(name="sdpa", reason="asked for")
    obstacle = _obstacle(policy.device, policy.dtype, policy.head_size)
    windows = tuple(dict.fromkeys((None, getattr(policy.model.config.get_text_config(), "sliding_window", None))))
    if wanted == "auto":
        if policy.device.type != "cuda":
            return Kernel(name="sdpa", reason=f"FlexAttention trains on CUDA only, this is {policy.device.type}")
        if obstacle:
            return Kernel(name="sdpa", reason=obstacle)
        if policy.path.ruled:
            return Kernel(
                name="sdpa", reason="attention scores are capped or have sinks: flex takes them when asked for"
            )
        return Kernel(name="flex", reason="compiled for CUDA: one block-sparse call a layer", windows=windows)
    if obstacle:
        raise ModelError(f"FlexAttention cannot run here: {obstacle}; use sdpa or auto")
    return Kernel(name="flex", reason="asked for", windows=windows)


def _obstacle(device: torch.device, dtype: torch.dtype, size: int) -> str:
    """Why the compiled kernel would not run; empty if it would."""
    if device.type != "cuda":
        return ""
    if importlib.util.find_spec("triton") is None:
        return "triton, which compiles it, is not installed"
    if dtype == torch.float64:
        return "it has no float64 kernel"
    if size < 16:
        return f"its heads have at least 16 numbers, these have {size}"
    if torch.cuda.get_device_capability(device) < (7, 5):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 7.5"
    return ""


def packed_layout(segments: Sequence[Segment], device: torch.device, kernel: Kernel) -> Layout:
    """The layout of one packed row under the chosen kernel."""
    if kernel.name == "sdpa":
        return PackedLayout(segments, device)
    from coterie.policy.flex import FlexLayout  # brings the compiler along, which takes a second to load

    return FlexLayout(segments, device, windows=kernel.windows)


def pad_row(tokens: Tensor, positions: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Lengthen a packed row [1, T] to what the layout's kernel is compiled for; nobody sees the added tokens."""
    missing = getattr(layout, "size", 0) - tokens.shape[1]
    if missing <= 0:
        return tokens, positions
    return F.pad(tokens, (0, missing)), F.pad(positions, (0, missing))
