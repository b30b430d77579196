"""How much memory the update takes, measured before the first step, and where it goes."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from coterie.batches import Batch
from coterie.policy.fitting import release
from coterie.policy.learner import Learner
from coterie.policy.model import Policy

GIB = 2**30
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes of main memory that this process holds now; 0 where the system does not say."""
    return _status("VmRSS")


def keep_freed() -> None:
    """Have glibc keep what is freed for the next tensor instead of handing it back at once: an update otherwise spends
    a tenth of its time on the page faults of memory that it had a moment before. Does nothing elsewhere."""
    allocator = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if allocator is not None:
        allocator(_TRIM_THRESHOLD, 1 << 30)
        allocator(_MMAP_THRESHOLD, 1 << 25)  # larger ones on their own: kept, they would break memory into pieces


def reset_peak(device: torch.device) -> None:
    """Start a new high-water mark, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # else the mark stays that of the whole process: too high, never too low
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes at the high-water mark: of the process on a CPU, of torch's tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage's mark is inherited from the parent process on Linux, so it comes second.
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    with suppress(OSError):
        found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0


def sampling_bytes(policy: Policy, slots: int, longest: int) -> int:
    """Bytes of keys and values that the embedded engine reserves for `slots` sequences of `longest` tokens."""
    shape = policy.model.config.get_text_config()
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    values = 2 * shape.num_hidden_layers * heads * size * slots * (-(-longest // 64) * 64)
    return values * policy.head.weight.element_size()


def optimizer_bytes(learner: Learner) -> int:
    """Bytes of the optimizer's state beside the weights."""
    state = learner.optimizer.state()
    return sum(t.numel() * t.element_size() for name, t in state.items() if not name.startswith("weight/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """What a pre-flight pass saw; all in bytes."""

    total: int
    """High-water mark of the pass with the sampling memory beside it: what the run will need."""
    weights: int
    optimizer: int
    gradient: int
    sampling: int
    activations: int
    """The rest of the pass: activations, temporary tensors."""
    tokens: int
    """Of the packed row that was tried."""
    limit: int | None
    """Most tokens of a row that fit, when that one did not."""

    def line(self) -> str:
        """For people."""
        text = (
            f"{self.total / GIB:.1f} GiB at most: weights {self.weights / GIB:.2f}, optimizer "
            f"{self.optimizer / GIB:.2f}, gradient {self.gradient / GIB:.2f}, sampling {self.sampling / GIB:.2f}, "
            f"activations of {self.limit or self.tokens} tokens {self.activations / GIB:.2f}"
        )
        if self.limit is not None:
            text += f"; a row of {self.tokens} tokens did not fit, so rows are cut to {self.limit}"
        return text


def preflight(learner: Learner, batch: Batch, *, sampling: int) -> MemoryReport:
    """Run the largest batch forward and backward once, and drop the gradient: weights, optimizer and random streams
    stay as they are. Where it does not fit, the learner's later batches are cut at once.

    Args:
        batch: see `coterie.batches.largest`.
        sampling: bytes that the engine has not reserved yet.

    Raises:
        DoesNotFitError: not even one rollout of it fits.
    """
    device = learner.policy.device
    release()
    reset_peak(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()
    grads = learner.gradient([batch])
    gradient = sum(grad.numel() * grad.element_size() for grad in grads.values())
    high = peak(device)
    del grads
    release()
    return MemoryReport(
        total=high + sampling,
        weights=sum(p.numel() * p.element_size() for p in learner.policy.model.parameters()),
        optimizer=optimizer_bytes(learner),
        gradient=gradient,
        sampling=sampling,
        activations=max(0, high - before - gradient),
        tokens=len(batch.tokens),
        limit=learner.fitting.limit,
    )
