"""Memory of the update: activation checkpointing and offload, the allocator, and batches split on out-of-memory."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from coterie.batches.batch import Batch, halves
from coterie.config.optim import OptimConfig
from coterie.errors import ConfigError, DoesNotFitError, ModelError

_SMALL = 1 << 16
"""Tensors of fewer values stay where they are: moving them would cost more than they take."""


def arrange(model: nn.Module, device: torch.device, config: OptimConfig) -> None:
    """Switch on checkpointing where the settings ask for it, and check offload; called once for each model."""
    if config.activation_offload and device.type != "cuda":
        raise ConfigError(
            "optim.activation_offload = true moves activations from a GPU into main memory, but model.device is "
            f"{device.type}; use optim.gradient_checkpointing instead"
        )
    if config.gradient_checkpointing:
        _checkpoint_layers(model)


def _checkpoint_layers(model: nn.Module) -> None:
    # transformers' own switch acts in training mode only, and that would switch dropout on as well.
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} marks no layers for checkpointing; use optim.gradient_checkpointing = false and a "
            "smaller optim.max_tokens_per_microbatch"
        )
    for layer in layers:
        if not getattr(layer.forward, "recomputed", False):
            layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Any) -> Any:
    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Nothing in an eval-mode layer is random, so the generators' state need not be kept.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    call.recomputed = True  # ty: ignore[missing-attribute]
    return call


def saving(parameters: Iterable[Tensor], config: OptimConfig) -> AbstractContextManager[Any]:
    """Context of a forward pass: offload of the tensors saved for the backward pass, or nothing."""
    return Offload(parameters) if config.activation_offload else nullcontext()


class Offload(torch.autograd.graph.saved_tensors_hooks):
    """Keep saved activations in pinned main memory, as torch's `save_on_cpu` does, but leave the weights alone: a
    matrix product saves its weight too, and that is on the device anyway."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        weight_storages = {parameter.untyped_storage().data_ptr() for parameter in parameters}

        def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
            stays = tensor.numel() < _SMALL or tensor.untyped_storage().data_ptr() in weight_storages
            return tensor.device, tensor if stays else _to_main_memory(tensor)

        def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
            device, tensor = packed
            return tensor.to(device, non_blocking=True)

        super().__init__(pack, unpack)


def _to_main_memory(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return copy.copy_(tensor)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library's allocator; None where it has no such thing (musl, other systems)."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def keep_freed() -> None:
    """Have glibc keep what is freed for the next tensor instead of handing it back at once, which costs every update
    the page faults of memory that it had a moment before. Does nothing elsewhere."""
    if mallopt := _glibc("mallopt"):
        mallopt(_TRIM_THRESHOLD, 1 << 30)
        mallopt(_MMAP_THRESHOLD, 1 << 25)  # larger ones on their own: kept, they would break memory into pieces


def release() -> None:
    """Give freed memory back: to the device, and on Linux to the system."""
    gc.collect()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        getattr(torch, accelerator.type).empty_cache()
    if trim := _glibc("malloc_trim"):
        trim(0)


T = TypeVar("T")

_SIGNS = (
    "can't allocate memory",  # torch's CPU allocator
    "std::bad_alloc",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory was refused; torch raises a plain RuntimeError for the CPU's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


class OomSplitter:
    """Work on packed batches that are cut in two when memory is refused; the sum over their tokens stays the same.

    Attributes:
        limit: maximum tokens of a packed row, once a larger one did not fit; None before.
        splits: number of batches cut in two because their memory was refused.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.splits = 0

    def run(self, batch: Batch, attempt: Callable[[Batch, set[str]], T]) -> list[T]:
        """Results of the parts of `batch`, in the order of its rollouts.

        Args:
            attempt: does the work for one part. Its second argument names what an earlier attempt at a larger batch
                finished before it failed: the attempt leaves that out, and adds what it finishes itself.

        Raises:
            DoesNotFitError: a single rollout is too large.
        """
        results: list[T] = []
        todo: list[tuple[Batch, set[str]]] = [(part, set()) for part in self._cut(batch)][::-1]
        while todo:
            part, done = todo.pop()
            done = set(done)
            try:
                results.append(attempt(part, done))
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Outside of the handler: until then the traceback holds what the failed pass had allocated.
            release()
            half_batches = self._halves(part, reason)
            self.splits += 1
            self.limit = min(self.limit or len(part.tokens), max(len(half.tokens) for half in half_batches))
            todo.extend((half, done) for half in reversed(half_batches))
        return results

    def _cut(self, batch: Batch) -> list[Batch]:
        """Cut until every part is within the limit, as far as rollouts allow."""
        if self.limit is None or len(batch.tokens) <= self.limit or len(batch.spans) < 2:
            return [batch]
        return [part for half in halves(batch) for part in self._cut(half)]

    @staticmethod
    def _halves(part: Batch, reason: str) -> tuple[Batch, Batch]:
        if len(part.spans) < 2:
            raise DoesNotFitError(
                f"the update of a single rollout of {len(part.tokens)} tokens does not fit into memory ({reason}); set "
                "optim.gradient_checkpointing = true, lower sampling.max_tokens or data.max_prompt_tokens, use "
                "optim.moments = "
                '"8bit", or train an adapter (model.lora)'
            )
        return halves(part)


class WholeRows(OomSplitter):
    """Packed batches that are never cut: ranks that share weights make the same passes at the same time."""

    def run(self, batch: Batch, attempt: Callable[[Batch, set[str]], T]) -> list[T]:
        """The result of the batch.

        Raises:
            DoesNotFitError: memory was refused.
        """
        try:
            return [attempt(batch, set())]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DoesNotFitError(
                f"memory was refused for a packed row of {len(batch.tokens)} tokens ({str(error).splitlines()[0]}), "
                'and with cluster.strategy = "fsdp" a rank cannot cut a row on its own; lower '
                "optim.max_tokens_per_microbatch, or set optim.gradient_checkpointing = true"
            ) from error
