"""Attention kernels of the learner: shared-prefix packing in one FlexAttention call, and regional compilation.

`PackedLayout` calls attention once per prompt and once per group; here the whole packed row is one block-sparse call.
Every token sees at most three runs of the row: one of the head that all prompts share, one of its prompt, and one that
ends at itself. Five numbers per token therefore say everything, sliding window included:

    head_from, head_to        the head's tokens it sees (empty for a token of the head, and without a head)
    prompt_from, prompt_to    the prompt's tokens it sees (empty for a token of the prompt)
    own_from                  first token it sees of its own prompt or continuation; the last one is itself

The block mask follows from them by counting, without ever writing the [T, T] mask down.

Regional compilation compiles each decoder layer, once for all layers, and leaves the rest of the model eager. A layer
is where the time goes (norms, rotary embedding, activation and residuals fuse), and all layers share one compiled
graph, so the wait at the start is that of one layer and not of the whole model.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_op
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, flex_attention

from coterie.batches.batch import Segment
from coterie.errors import ModelError
from coterie.policy.attention import Layout, PackedLayout, ScoreRule
from coterie.policy.model import Policy

BLOCK = 128
"""Tokens in a block of the mask, and what packed rows are padded to: then one compiled kernel serves every length."""


class FlexLayout:
    """Shared-prefix packing through FlexAttention; the same numbers as `PackedLayout`, up to rounding.

    Args:
        windows: whose masks are built at once; others are built at the first layer that asks. Where layers are
            compiled, all of them belong here.
        attention: called as `flex_attention`; None takes the compiled kernel on CUDA, the dense reference elsewhere.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        device: torch.device,
        *,
        windows: Sequence[int | None] = (),
        attention: Callable[..., Any] | None = None,
    ) -> None:
        self.segments = segments
        self.device = device
        # At least two blocks: the compiler treats a size of one as another program.
        self.size = max(2, -(-max((_end(segment) for segment in segments), default=0) // BLOCK)) * BLOCK
        self._attention = attention or (compiled() if device.type == "cuda" else dense)
        self._masks = {window: block_mask(segments, self.size, window, device) for window in windows}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        length = query.shape[2]
        if length < self.size:
            query, key, value = (F.pad(tensor, (0, 0, 0, self.size - length)) for tensor in (query, key, value))
        more: dict[str, Any] = {} if rule.softcap is None else {"score_mod": capped(rule.softcap)}
        if rule.sinks is not None:
            more["return_aux"] = AuxRequest(lse=True)
        out = self._attention(
            query, key, value, block_mask=self.mask(rule.window), scale=rule.scale, enable_gqa=True, **more
        )
        if rule.sinks is not None:
            out, aux = out
            # A sink s adds exp(s) to the softmax's denominator exp(lse) and nothing to its numerator.
            share = torch.sigmoid(aux.lse - rule.sinks.to(aux.lse.dtype)[:, None])
            out = out * share[..., None].to(out.dtype)
        return out[:, :, :length]

    def mask(self, window: int | None) -> BlockMask:
        """The block mask of a window, built once for all layers."""
        if window not in self._masks:
            self._masks[window] = block_mask(self.segments, self.size, window, self.device)
        return self._masks[window]


def _end(segment: Segment) -> int:
    return segment.start + segment.prompt + sum(segment.lengths)


def intervals(segments: Sequence[Segment], size: int, window: int | None) -> np.ndarray:
    """[5, size] int32: head_from, head_to, prompt_from, prompt_to and own_from of every token; what pads the row sees
    nothing."""
    index = np.arange(size)
    bounds = np.stack([*np.zeros((4, size), int), index + 1])
    reach = size + 1 if window is None else window
    head = segments[0].head if segments else 0
    bounds[4, :head] = np.maximum(0, index[:head] - reach + 1)
    for segment in segments:
        first = segment.start + segment.prompt
        runs = [(segment.start, segment.prompt), *_runs(first, segment.lengths)]
        for number, (start, length) in enumerate(runs):
            part = slice(start, start + length)
            bounds[4, part] = np.maximum(start, index[part] - reach + 1)
            # Distances are counted by position: the continuations between do not exist.
            before = first if number else segment.start
            nearest = before + index[part] - start - reach + 1
            if number:
                bounds[2, part] = np.clip(nearest, segment.start, first)
                bounds[3, part] = first
            bounds[0, part] = np.clip(nearest - segment.start + head, 0, head)
            bounds[1, part] = head
    return bounds.astype(np.int32)


def _runs(first: int, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(start, length) of each continuation."""
    ends = np.cumsum([first, *lengths])
    return [(int(end - length), length) for end, length in zip(ends[1:], lengths, strict=True)]


def block_mask(segments: Sequence[Segment], size: int, window: int | None, device: torch.device) -> BlockMask:
    """The block-sparse mask of a packed row of `size` tokens, a multiple of `BLOCK`."""
    bounds = torch.from_numpy(intervals(segments, size, window)).to(device)
    head_from, head_to, prompt_from, prompt_to, own_from = bounds.unbind(0)

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        shared = ((k >= head_from[q]) & (k < head_to[q])) | ((k >= prompt_from[q]) & (k < prompt_to[q]))
        return shared | ((k >= own_from[q]) & (k <= q))

    count = _overlaps([(head_from, head_to), (prompt_from, prompt_to)], own_from)
    full = count == BLOCK * BLOCK
    some = (count > 0) & ~full
    return BlockMask.from_kv_blocks(
        *_listed(some), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(size, size)
    )


def _overlaps(shared: Sequence[tuple[Tensor, Tensor]], own_from: Tensor) -> Tensor:
    """[blocks of queries, blocks of keys]: how many of the BLOCK² pairs may attend."""
    size = own_from.numel()
    start = torch.arange(0, size, BLOCK, device=own_from.device)
    after = torch.arange(1, size + 1, device=own_from.device)[:, None]

    def covered(low: Tensor, high: Tensor) -> Tensor:  # [T, blocks of keys]
        return (torch.minimum(high, start + BLOCK) - torch.maximum(low, start)).clamp(min=0)

    overlaps = covered(own_from[:, None], after)
    for low, high in shared:
        overlaps += covered(low[:, None], high[:, None])
    return overlaps.view(-1, BLOCK, start.numel()).sum(1)


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Number of blocks that each row of blocks visits [1, 1, Q], and their order [1, 1, Q, K]; int32."""
    order = torch.argsort(chosen.int(), dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None].contiguous()


@functools.cache
def compiled() -> Callable[..., Any]:
    """FlexAttention as one fused kernel, compiled at its first call and once more when a second length turns up."""
    return torch.compile(flex_attention)


def _unchanged(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return score


@functools.cache
def capped(softcap: float) -> Callable[..., Tensor]:
    """The score modifier softcap · tanh(score / softcap); one object a value, so that one kernel is compiled."""

    def modify(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return modify


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    block_mask: Any,
    scale: float,
    enable_gqa: bool = True,
    score_mod: Callable[..., Tensor] = _unchanged,
    return_aux: AuxRequest | None = None,
) -> Any:
    """FlexAttention's own dense reference: all scores in memory, any device, with a gradient.

    The public `flex_attention` refuses gradients on a CPU (torch 2.13), although the operator beneath it has them.
    """
    out, lse, *_ = flex_attention_op(query, key, value, score_mod, block_mask.as_tuple(), scale, {})
    if return_aux is None:
        return out
    return out, AuxOutput(lse=lse * math.log(2))  # the operator counts in powers of two


KERNELS = ("auto", "flex", "sdpa")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Attention kernel of the learner, with the reason for its choice."""

    name: Literal["flex", "sdpa"]
    reason: str
    windows: tuple[int | None, ...] = (None,)
    """Sliding windows of the model's layers, in tokens; None is a layer without."""


def choose_kernel(policy: Policy, attention: str = "auto") -> Kernel:
    """FlexAttention where it is compiled and faster, else the plain one; both give the same numbers.

    Args:
        attention: auto, flex (also where it is slow: on a CPU it is the dense reference) or sdpa.
    """
    if attention not in KERNELS:
        raise ModelError(f"the attention kernel is {attention!r}; expected one of {', '.join(KERNELS)}")
    if policy.path.kind == "plain":
        if attention == "flex":
            raise ModelError(
                f"FlexAttention cannot run here: {type(policy.model).__name__} runs through its own attention; use auto"
            )
        return Kernel(name="sdpa", reason="the model runs through its own attention")
    if attention == "sdpa":
        return Kernel(name="sdpa", reason="asked for")
    obstacle = _obstacle(policy.device, policy.dtype, policy.head_size)
    windows = tuple(dict.fromkeys((None, getattr(policy.model.config.get_text_config(), "sliding_window", None))))
    if attention == "auto":
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
    """The reason why the compiled kernel would not run; empty if it would."""
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
    return FlexLayout(segments, device, windows=kernel.windows)


def pad_row(tokens: Tensor, positions: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Lengthen a packed row [1, T] to what the layout's kernel is compiled for; no token sees the added ones."""
    missing = getattr(layout, "size", 0) - tokens.shape[1]
    if missing <= 0:
        return tokens, positions
    return F.pad(tokens, (0, missing)), F.pad(positions, (0, missing))


@contextmanager
def eager(policy: Policy) -> Generator[None]:
    """Context in which compiled layers run eagerly: for the engine, whose shapes would be compiled anew."""
    layers = getattr(policy.decoder, "layers", ())
    if not any(getattr(layer, "_compiled_call_impl", None) for layer in layers):
        yield  # entering a stance loads the compiler
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def compile_layers(policy: Policy, *, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compile the policy's decoder layers in place; the parameters and their names stay the same.

    Args:
        backend: of `torch.compile`.

    Returns:
        The number of layers.
    """
    if policy.path.kind == "plain":
        raise ModelError(
            f"{type(policy.model).__name__} runs through its own forward pass, where its layers would be compiled anew "
            "for every length of a sequence; set optim.compile_layers = false"
        )
    layers = getattr(policy.decoder, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise ModelError(
            f"{type(policy.decoder).__name__} has no list of decoder layers to compile; leave regional compilation off"
        )
    for layer in layers:
        layer.compile(backend=backend)
    return len(layers)
