"""Where a phase's time goes, by part: from torch's profiler, by the names and the input shapes of the operations."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch.profiler import ProfilerActivity, profile

PARTS = ("linear", "attention", "norm, rope, elementwise", "head", "sampling", "optimizer", "other")
"""`head` is all that has the vocabulary's size, softmax and log-probs included, under training; when generating,
`head` is the product alone and `sampling` the rest. `other` is Python, dispatch, indexing and what has no part."""
_PRODUCTS = re.compile(r"::(mm|addmm|linear|matmul|mkldnn_linear|_?mkldnn_\w*linear\w*|_linear_pointwise|mv|addmv)$")
_ATTENTION = re.compile(
    r"scaled_dot_product|_flash_attention|flex|::(bmm|baddbmm|_softmax\w*|index_put_|_index_put_impl_)$"
)
_HEAD = re.compile(r"ChunkedLogprobs")
_OPTIMIZER = re.compile(r"^Optimizer|adamw?|_foreach_|linalg_vector_norm|_multi_tensor", re.IGNORECASE)
_ELEMENTWISE = re.compile(
    r"::(mul|add|sub|div|pow|mean|rsqrt|neg|cat|silu|silu_backward|sigmoid|copy_|sum|exp|fill_|zero_|rms_norm|"
    r"_fused_rms_norm\w*|gelu\w*|mul_|add_|div_|sub_|native_layer_norm\w*|threshold_backward|sigmoid_backward)$"
)
_GATHERED = re.compile(r"::(index_select|index_add_|index_copy_)$")
_BLOCK = 512
"""The sampler sums the vocabulary in blocks of this many."""


def part_of(name: str, shapes: Sequence[Any], vocabulary: int, *, training: bool) -> str:
    """The part that an operation belongs to.

    Args:
        name: as the profiler gives it, e.g. `aten::mm`.
        shapes: of its inputs; a list of tensors has a list of shapes.
        vocabulary: the head's number of rows.
        training: in an update, where nothing is sampled.
    """
    if _OPTIMIZER.search(name):
        return "optimizer"
    sized = [shape for shape in _flat(shapes) if _of_vocabulary(shape, vocabulary)]
    if _HEAD.search(name) or (sized and (training or _PRODUCTS.search(name))):
        return "head"
    if sized:
        return "sampling"
    if _PRODUCTS.search(name):
        return "linear"
    if _ATTENTION.search(name) or (_GATHERED.search(name) and any(len(shape) >= 3 for shape in _flat(shapes))):
        return "attention"
    return "norm, rope, elementwise" if _ELEMENTWISE.search(name) else "other"


def shares(run: Callable[[], object], vocabulary: int, *, training: bool) -> dict[str, float]:
    """Share of the wall-clock time by part; they sum to 1. `run` is called once before, unprofiled."""
    run()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        started = time.perf_counter()
        run()
        wall = time.perf_counter() - started
    seconds = dict.fromkeys(PARTS, 0.0)
    for event in profiler.key_averages(group_by_input_shape=True):
        part = part_of(event.key, event.input_shapes, vocabulary, training=training)
        seconds[part] += event.self_cpu_time_total / 1e6
    wall = max(wall, sum(seconds.values()))
    seconds["other"] += wall - sum(seconds.values())
    return {part: value / wall for part, value in seconds.items()}


def _flat(shapes: Sequence[Any]) -> list[list[int]]:
    """Shapes of all tensors, also of those in lists."""
    flat: list[list[int]] = []
    for shape in shapes:
        if isinstance(shape, list | tuple) and shape:
            flat += _flat(shape) if isinstance(shape[0], list | tuple) else [list(shape)]
    return flat


def _of_vocabulary(shape: Sequence[int], vocabulary: int) -> bool:
    padded = -(-vocabulary // _BLOCK)
    return vocabulary in shape or padded * _BLOCK in shape or list(shape[-2:]) == [padded, _BLOCK]
