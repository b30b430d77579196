"""Memory of the update by use, measured before the first step."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from coterie import machine
from coterie.batches.batch import Batch
from coterie.machine import GIB
from coterie.policy.activations import release
from coterie.policy.learner import Learner


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
    return machine.peak_resident()


def optimizer_bytes(learner: Learner) -> int:
    """Bytes of the optimizer's state beside the weights."""
    optimizers = [learner.optimizer] + ([learner.critic.optimizer] if learner.critic is not None else [])
    states = [item for optimizer in optimizers for item in optimizer.state().items()]
    return sum(t.numel() * t.element_size() for name, t in states if not name.startswith("weight/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Measurements of a pre-flight pass; all in bytes."""

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
    """Maximum tokens of a row that fit, where that one did not."""

    def line(self) -> str:
        """The report as one line of text."""
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
        batch: see `coterie.batches.pack.largest`.
        sampling: bytes that the engine has not reserved yet.

    Raises:
        DoesNotFitError: not even one rollout of it fits.
    """
    device = learner.policy.device
    release()
    reset_peak(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else machine.resident()
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
